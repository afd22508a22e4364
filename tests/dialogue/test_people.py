from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from cirlab.dialogue.faults import Fault
from cirlab.dialogue.people import HumanAnswerer, HumanQuestioner
from cirlab.errors import UserError
from cirlab.records import FileImage
from tests.dialogue.players import image_of, talk


def typing(*lines: str) -> Callable[[str], str]:
    left = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def test_a_person_reads_what_was_said_and_asks() -> None:
    shown = io.StringIO()
    person = HumanQuestioner(2, Console(file=shown), typing(" is it red? ", "is it blue?"))
    begun = talk(("who is there?", "a dog"), best=[image_of(3)])
    assert person.ask([begun]) == ["is it red?"]
    assert shown.getvalue() == ("\na photo of thing 0\nwho is there? a dog\n  1. images/3.jpg\n")
    assert person.ask([begun.refusing("is it red?", Fault.REPEATED)]) == ["is it blue?"]
    assert shown.getvalue().endswith("that cannot be put (repeated); ask something else\n")
    with pytest.raises(UserError, match="the input has ended within a dialogue"):
        person.ask([begun])


def test_a_person_is_told_where_the_image_lies_and_answers(tmp_path: Path) -> None:
    shown = io.StringIO()
    asked: list[str] = []

    def read(prompt: str) -> str:
        asked.append(prompt)
        path = Path(shown.getvalue().split()[-1])
        return f"{PIL.Image.open(path).size} [red]"

    PIL.Image.new("RGB", (3, 4)).save(tmp_path / "own.png")
    person = HumanAnswerer(Console(file=shown), read)
    images = [image_of(1), FileImage("own", tmp_path / "own.png")]
    assert person.answer(images, ["a?", "b?"]) == ["(8, 8) [red]", "(3, 4) [red]"]
    assert asked == ["a? ", "b? "]
    assert f"look at {tmp_path / 'own.png'}\n" in shown.getvalue()
    assert person.identity() == {"kind": "human"}


def test_an_empty_line_is_no_question_and_no_answer() -> None:
    shown = io.StringIO()
    asks = HumanQuestioner(0, Console(file=shown), typing("", "  ", "is it red?"))
    assert asks.ask([talk()]) == ["is it red?"]
    tells = HumanAnswerer(Console(file=shown), typing("", "yes"))
    assert tells.answer([image_of(1)], ["is it red?"]) == ["yes"]
    assert shown.getvalue().count("an empty line says nothing; type something") == 3


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_whoever_stops_typing_is_told_how_to_go_on(end: type[BaseException]) -> None:
    def read(prompt: str) -> str:
        raise end

    with pytest.raises(UserError, match="begun again when the same command runs at a terminal"):
        HumanAnswerer(Console(file=io.StringIO()), read).answer([image_of(1)], ["is it red?"])
