"""What an instruction LLM is told when it is to turn a dialogue into one caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cirlab.chat.llm import Message
from cirlab.dialogue.prompt import check_mark, filled
from cirlab.errors import UserError
from cirlab.reading.jsonl import Row
from cirlab.reading.yaml_files import read_mapping

#: Prompts by name: one for any instruction LLM, one for those that were tuned to rewrite.
NAMED: dict[str, Path] = {
    "full": Path(__file__).parent / "rewrite.yaml",
    "bare": Path(__file__).parent / "rewrite_bare.yaml",
}


@dataclass(frozen=True)
class Rewritten:
    """A dialogue, and the caption that it came to."""

    caption: str
    rounds: tuple[str, ...]
    rewritten: str


@dataclass(frozen=True)
class RewritePrompt:
    """Asks for one caption that says what a dialogue has told.

    There is no system message: not every chat template has a place for one.

    Attributes:
        user: the message; {dialogue} stands for what was said.
        caption: how the dialogue begins; {caption} stands for what was said first.
        round: how it goes on; {round} stands for question and answer.
        example: rewritten in the same chat before.

    Raises:
        UserError: a place is missing.
    """

    user: str
    caption: str = "{caption}"
    round: str = "{round}"
    example: Rewritten | None = None

    def __post_init__(self) -> None:
        for name, mark in (("user", "dialogue"), ("caption", "caption"), ("round", "round")):
            check_mark(name, getattr(self, name), mark)

    def messages(self, caption: str, rounds: Sequence[str]) -> list[Message]:
        """A chat that ends with the message about this dialogue.

        Args:
            caption: what it began with.
            rounds: "question? answer" each.
        """
        chat: list[Message] = []
        if self.example is not None:
            chat.append(self._message(self.example.caption, self.example.rounds))
            chat.append({"role": "assistant", "content": self.example.rewritten})
        return [*chat, self._message(caption, rounds)]

    def _message(self, caption: str, rounds: Sequence[str]) -> Message:
        said = [filled(self.caption, {"caption": caption})]
        said += [filled(self.round, {"round": text}) for text in rounds]
        return {"role": "user", "content": filled(self.user, {"dialogue": "\n".join(said)})}


def read_rewrite_prompt(name: str) -> RewritePrompt:
    """A prompt by name (full, bare), or from a YAML file of their form.

    Raises:
        UserError: there is no such file, or it holds no such prompt.
    """
    path = NAMED.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"there is no prompt {name!r}; give one of {', '.join(NAMED)}, or the path of a YAML "
            "file"
        )
    row = read_mapping(path, "prompt", required=["user"], optional=("caption", "round", "example"))
    texts = {key: row.text(key) for key in ("user", "caption", "round") if key in row}
    example = _example(row.object("example")) if row.get("example") is not None else None
    return RewritePrompt(**texts, example=example)


def _example(row: Row) -> Rewritten:
    return Rewritten(row.text("caption"), tuple(row.texts("rounds")), row.text("rewritten"))
