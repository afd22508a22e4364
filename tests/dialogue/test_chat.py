from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from rich.console import Console

from cirlab.dialogue.chat import Session, Terminal, moves
from cirlab.dialogue.questioners import ListQuestioner
from cirlab.dialogue.retriever import GalleryRetriever
from cirlab.dialogue.talk import Talk
from tests.dialogue.players import REGISTRY, Asks, image_of

IMAGES = {image.id: image for image in map(image_of, range(20))}


class Digits:
    """An image is as near to a text as its number is to the last digits that were said."""

    def image_collator(self) -> Any:
        return lambda images: {"at": [int(i.id[7:-4]) for i in images]}

    def query_collator(self) -> Any:
        return lambda queries: {"at": [int(query.text.split()[-1]) for query in queries]}

    def encode_images(self, inputs: Any, prompt: str | None = None) -> torch.Tensor:
        angles = torch.tensor(inputs["at"]) / 10
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def encode_queries(self, inputs: Any) -> torch.Tensor:
        # Between two images, so that none stand equally near.
        return self.encode_images({"at": [at + 0.1 for at in inputs["at"]]})


def session(say: Callable[[Talk], str] | None = None, **options: Any) -> Session:
    questioner = ListQuestioner(REGISTRY) if say is None else Asks(say, looks_at=2)
    retriever = GalleryRetriever(Digits(), list(IMAGES.values()))
    return Session(retriever, IMAGES, questioner, REGISTRY, **({"top": 4} | options))


def chatted(
    folder: Path, lines: list[str | type[BaseException]], chat: Session, echo: bool = False
) -> str:
    """What the terminal shows when somebody types these lines."""
    out, said = io.StringIO(), iter(lines)

    def read(prompt: str) -> str:
        line = next(said, EOFError)
        out.write(f"{prompt}\n")
        if isinstance(line, str):
            return line
        raise line

    console = Console(file=out, width=40)
    Terminal(chat, console, folder / "made" / "sheet.png", "title", read, echo).run()
    return out.getvalue()


def test_moves_say_how_each_came_to_its_place() -> None:
    assert moves(None, ["a", "b"]) == ["", ""]
    assert moves(["a", "b", "c", "d"], ["c", "b", "x", "a"]) == ["up 2", "", "new", "down 3"]


def test_answers_move_the_ranks_and_the_target_is_followed(tmp_path: Path) -> None:
    chat = session(target="images/8.jpg")
    shown = chatted(tmp_path, ["thing 2", "6", "8"], chat)
    assert [each.best[0][7:-4] for each in chat.standings] == ["2", "6", "8"]
    assert [each.rank for each in chat.standings] == [9, 4, 1]
    assert chat.standings[1].text == "what is in front? 6"
    first, second, third, _ = (part.splitlines() for part in shown.split("pictures: "))
    assert first[-1] == "rank of the target: 9 of 20"
    paths = [f"images/{number}.jpg" for number in (2, 3, 1, 4)]
    assert first[-5:-1] == [f"{place:4}{'':10}{path}" for place, path in enumerate(paths, start=1)]
    assert "   1  new     images/6.jpg" in second
    assert "   4  new     images/8.jpg  <- target" in second
    assert f"      no longer among the first 4: {', '.join(paths)}" in second
    assert second[-1] == "rank of the target: 4 of 20, was 9"
    assert "   1  up 3    images/8.jpg  <- target" in third
    assert shown.rstrip().endswith("2 answers; rank of the target by round: 9, 4, 1")


def test_the_sheet_has_a_row_for_each_round(tmp_path: Path) -> None:
    chatted(tmp_path, ["2"], session())
    one = PIL.Image.open(tmp_path / "made" / "sheet.png")
    one.load()
    chatted(tmp_path, ["2", "6", "8"], session(target="images/8.jpg"))
    three = PIL.Image.open(tmp_path / "made" / "sheet.png")
    assert three.width == one.width and three.height > 2 * one.height
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["sheet.png"]


def test_an_empty_line_passes_over_for_good(tmp_path: Path) -> None:
    chat = session()
    shown = chatted(tmp_path, ["2", "", "  ", "5", ""], chat)
    assert shown.count("(passed over)") == 3
    assert [each.text for each in chat.standings] == ["2", "where was this taken? 5"]
    for question in REGISTRY:
        assert shown.count(f"{question} ") == 1
    assert "There is nothing left to ask." in shown


@pytest.mark.parametrize("end", ["/quit", " /QUIT ", EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [[], ["2"], ["2", "6"]])
def test_a_chat_can_end_at_any_prompt(
    tmp_path: Path, before: list[str], end: str | type[BaseException]
) -> None:
    chat = session()
    shown = chatted(tmp_path, [*before, end, "never read"], chat)
    assert len(chat.standings) == len(before) and "never read" not in shown
    told = ["", "0 answers", "1 answer"][len(before)]
    assert shown.rstrip().endswith(told) and shown.count("answer") == bool(told)
    assert (tmp_path / "made").exists() == bool(before)


def test_a_description_is_asked_for_until_there_is_one(tmp_path: Path) -> None:
    chat = session()
    shown = chatted(tmp_path, ["", "/help", "7"], chat, echo=True)
    assert "Describe the image in a few words, or say /quit." in shown
    assert "There is no /help; /quit ends" in shown
    assert [each.text for each in chat.standings] == ["7"]
    # What nobody has typed here is shown.
    assert "> \n7\n" in shown


def test_the_questioner_sees_what_is_ranked_first_and_is_asked_again(tmp_path: Path) -> None:
    said: Iterator[str] = iter(["Question: who is it?", "no question", "", "who is it?", "why?"])
    chat = session(lambda talk: next(said))
    chatted(tmp_path, ["2", "6", ""], chat)
    assert isinstance(chat.questioner, Asks)
    seen = [talks[0] for talks in chat.questioner.seen]
    assert [image.id for image in seen[0].best] == list(chat.standings[0].best[:2])
    assert [len(talk.refused) for talk in seen[:4]] == [0, 0, 1, 2]
    # It never had one that can be put, so that the registry asked; then it had.
    assert chat.standings[1].text == "who is it? 6"
    assert [talk.texts for talk in seen[1:4]] == [("2", "who is it? 6")] * 3


def test_markup_and_long_paths_are_shown_as_they_are(tmp_path: Path) -> None:
    shown = chatted(tmp_path, ["[bold]a cat[/bold] 2", "/quit"], session(), echo=True)
    assert "[bold]a cat[/bold] 2" in shown
    assert f"pictures: {tmp_path / 'made' / 'sheet.png'}" in shown
