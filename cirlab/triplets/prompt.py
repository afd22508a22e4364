"""What an instruction LLM is asked, and how it answers: a caption, changed.

InstructCIR (arXiv 2412.05756) has its triplets written by a large model from captions alone; its
prompt was not released, and this wording is this project's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cirlab.chat.llm import Message
from cirlab.errors import UserError
from cirlab.reading.jsonl import Row
from cirlab.reading.yaml_files import read_mapping

#: Stands for the caption in a prompt.
CAPTION_MARK = "{caption}"

#: Asks for a change to a caption.
PROMPT = (
    "Invent a change to the image with this caption. Answer in JSON with the keys instruction and "
    f"modified_caption. Caption: {CAPTION_MARK}"
)


def answer(instruction: str, modified_caption: str) -> str:
    """The answer that is asked for, one line of JSON."""
    return json.dumps({"instruction": instruction, "modified_caption": modified_caption})


class Example(NamedTuple):
    """A caption with an answer to it."""

    caption: str
    instruction: str
    modified_caption: str


@dataclass(frozen=True)
class TripletPrompt:
    """What is asked about each caption.

    There is no system message: not every chat template has a place for one.

    Attributes:
        user: the message; `{caption}` stands for the caption.
        examples: answered in the same chat before the caption is asked about.

    Raises:
        UserError: the message has no place for the caption.
    """

    user: str = PROMPT
    examples: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        if CAPTION_MARK not in self.user:
            raise UserError(
                f"the prompt {self.user[:60]!r} does not hold {CAPTION_MARK}; write it where the "
                "caption is to stand"
            )

    def messages(self, caption: str) -> list[Message]:
        """A chat that ends with the question about a caption."""
        chat: list[Message] = []
        for example in self.examples:
            chat.append(self._question(example.caption))
            said = answer(example.instruction, example.modified_caption)
            chat.append({"role": "assistant", "content": said})
        return [*chat, self._question(caption)]

    def _question(self, caption: str) -> Message:
        return {"role": "user", "content": self.user.replace(CAPTION_MARK, caption)}


#: Prompts by name: one sentence, or more about what makes a good change, with examples.
NAMED: dict[str, Path | None] = {"short": None, "few_shot": Path(__file__).parent / "few_shot.yaml"}


def read_prompt(name: str) -> TripletPrompt:
    """A prompt by name (`NAMED`), or from a YAML file of the form of few_shot.yaml.

    Raises:
        UserError: there is no such file, or it holds no prompt.
    """
    path = NAMED.get(name, Path(name))
    if path is None:
        return TripletPrompt()
    if not path.is_file():
        raise UserError(
            f"there is no prompt {name!r}; give {' or '.join(NAMED)}, or the path of a YAML file"
        )
    row = read_mapping(path, "prompt", required=["user"], optional=["examples"])
    examples = row.objects("examples") if row.get("examples") else ()
    return TripletPrompt(row.text("user").strip(), _examples(examples))


def _examples(rows: Sequence[Row]) -> tuple[Example, ...]:
    return tuple(Example(*(row.text(field) for field in Example._fields)) for row in rows)
