from __future__ import annotations

import io
import json
import multiprocessing
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.dialogue.played import Tally
from cirlab.dialogue.playing import Playing, Summary, check_beforehand, play, progress_bar
from cirlab.dialogue.talk import Talk
from cirlab.errors import UserError
from tests.dialogue.players import REGISTRY, Asks, Ranks, Tells, openings

COUNT, ROUNDS = 10, 3


def good(talk: Talk) -> str:
    return f"is it like number {talk.number} of {len(talk.rounds)} things?"


def telling(image: str, question: str) -> str:
    return f"{image} knows"


def run(path: Path, asks: Asks | None = None, tells: Tells | None = None, **how: Any) -> Summary:
    settings = {"registry": REGISTRY, "rounds": ROUNDS, "batch_size": 4} | how
    asks, tells = asks or Asks(good), tells or Tells(telling)
    return play(openings(COUNT), asks, tells, path, Playing(**settings))


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.with_suffix(".played.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def files(path: Path) -> tuple[bytes, ...]:
    suffixes = (".json", ".played.jsonl", ".settings.json", ".counts.json")
    return tuple(path.with_suffix(suffix).read_bytes() for suffix in suffixes)


def test_whole_dialogues_are_written_in_chatirs_format(tmp_path: Path) -> None:
    path = tmp_path / "new" / "played.json"
    summary = run(path)
    assert json.loads(path.read_text()) == [
        {
            "img": f"images/{number}.jpg",
            "dialog": [
                f"a photo of thing {number}",
                *(
                    f"is it like number {number} of {at} things? images/{number}.jpg knows"
                    for at in range(ROUNDS)
                ),
            ],
        }
        for number in range(COUNT)
    ]
    assert (summary.played, summary.tally.rounds) == (COUNT, COUNT * ROUNDS)
    settings = json.loads(path.with_suffix(".settings.json").read_text())
    assert settings["questioner"] == {"kind": "asks", "name": "rule"}
    assert settings["openings"]["count"] == COUNT and settings["retriever"] is None


def test_what_cannot_be_put_is_counted_asked_for_again_and_replaced(tmp_path: Path) -> None:
    def say(talk: Talk) -> str:
        if talk.number == 1:
            return "" if not talk.refused else "is it red? is it blue?"
        if talk.number == 2:
            return "is it red?"
        if talk.number == 3 and not talk.refused:
            return "no question at all"
        return good(talk)

    path = tmp_path / "played.json"
    asks = Asks(say)
    run(path, asks, tries=1)
    rows = {row["number"]: row for row in lines(path)}
    assert rows[1]["replaced"] == [1, 2, 3] and rows[1]["repeated"] == []
    assert [text.split("?")[0] for text in rows[1]["dialog"][1:]] == [
        question.rstrip("?") for question in REGISTRY[:3]
    ]
    assert [each["fault"] for each in rows[1]["refused"]] == ["empty", "several questions"] * 3
    assert rows[2]["replaced"] == [2, 3]
    assert [each["fault"] for each in rows[2]["refused"]] == ["repeated"] * 4
    assert rows[3]["replaced"] == [] and len(rows[3]["refused"]) == 3
    assert rows[0]["refused"] == []
    counts = json.loads(path.with_suffix(".counts.json").read_text())
    assert counts == {
        "dialogues": COUNT,
        "rounds": COUNT * ROUNDS,
        "unanswered": 0,
        "replaced": 5,
        "repeated": 0,
        "refused": {"empty": 3, "no question": 3, "repeated": 4, "several questions": 3},
    }


def test_a_registry_that_has_run_out_repeats_itself_and_says_so(tmp_path: Path) -> None:
    asks = Asks(lambda talk: "?" if talk.number or talk.rounds else good(talk))
    path = tmp_path / "played.json"
    summary = run(path, asks, rounds=6, tries=0)
    row = next(row for row in lines(path) if row["number"] == 1)
    assert (row["replaced"], row["repeated"]) == ([1, 2, 3, 4, 5, 6], [5, 6])
    assert [text.split("?")[0] for text in row["dialog"][5:]] == [
        question.rstrip("?") for question in REGISTRY[:2]
    ]
    assert summary.tally.repeated == 2 * (COUNT - 1) + 1


def test_rounds_without_an_answer_are_kept_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "played.json"
    tells = Tells(lambda image, question: " " if "of 1 things" in question else "a  dog\n")
    summary = run(path, tells=tells)
    assert summary.tally.unanswered == COUNT
    row = lines(path)[0]
    assert row["unanswered"] == [2]
    assert row["dialog"][1].endswith("things? a dog") and row["dialog"][2].endswith("things?")


def test_people_who_say_nothing_are_told_after_one_round(tmp_path: Path) -> None:
    path = tmp_path / "played.json"
    silent, deaf = Asks(lambda talk: " "), Tells(lambda image, question: "")
    with pytest.raises(UserError, match=r"the questioner rule \(asks\) has no question that"):
        run(path, silent)
    assert len(silent.seen) == 3 and lines(path) == []
    with pytest.raises(UserError, match=r"answerer rule \(tells\) has no answer to any of 4 quest"):
        run(path, tells=deaf)
    with pytest.raises(UserError, match="has no answer to the first question; choose another ans"):
        run(path, tells=deaf, batch_size=1)
    # Whoever has spoken before may be silent in a whole batch.
    run(path, Asks(lambda talk: good(talk) if talk.number < 4 else ""))


def test_questioners_see_what_is_ranked_first_at_each_round(tmp_path: Path) -> None:
    asks = Asks(good, looks_at=2)
    start = openings(COUNT)
    how = Playing(registry=REGISTRY, rounds=ROUNDS, batch_size=4)
    path = tmp_path / "played.json"
    play(start, asks, Tells(telling), path, how, Ranks(list(start.gallery)))
    for talks in asks.seen:
        for each in talks:
            said = len(each.texts)
            assert [image.id for image in each.best] == [f"images/{said + i}.jpg" for i in (0, 1)]
    assert json.loads(path.with_suffix(".settings.json").read_text())["retriever"] == {
        "kind": "ranks"
    }
    with pytest.raises(UserError, match="looks at the best images, but nothing ranks them; name"):
        run(tmp_path / "other.json", asks)


def test_the_same_run_again_asks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "played.json"
    first = run(path)
    before, asks = files(path), Asks(good)
    again = run(path, asks)
    assert (again.tally, again.played, asks.seen) == (first.tally, 0, [])
    assert files(path) == before


def mostly_good(talk: Talk) -> str:
    """Only the second question is good, of some dialogues none."""
    if talk.number % 3 == 0 or not talk.refused:
        return "who? me"
    return good(talk)


@pytest.mark.parametrize("torn", [b"", b'{"number": 9, "im', b"\xc3"])
def test_whatever_is_left_of_the_lines_a_run_goes_on_to_the_same_files(
    tmp_path: Path, torn: bytes
) -> None:
    path = tmp_path / "played.json"
    run(path, Asks(mostly_good))
    whole = files(path)
    for kept in range(0, COUNT, 3):
        path.unlink()
        rows = whole[1].splitlines(keepends=True)
        path.with_suffix(".played.jsonl").write_bytes(b"".join(rows[:kept]) + torn)
        asks = Asks(mostly_good)
        run(path, asks)
        assert files(path) == whole
        # A batch is played again as a whole, a complete one is not.
        asked = {each.number for talks in asks.seen for each in talks}
        assert asked == set(range(kept - kept % 4, COUNT))


def _run(path: Path) -> None:
    run(path, Asks(mostly_good, pause=0.01), batch_size=2)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob("*.played.jsonl"))


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole" / "played.json", tmp_path / "killed" / "played.json"
    _run(whole)
    # Forked, so that a process starts in no time; nothing in it computes with threads.
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        before, process = _size(path), context.Process(target=_run, args=(path,))
        process.start()
        while _size(path) == before and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert before < _size(path) < _size(whole)
        assert not path.exists()
    _run(path)
    assert files(path) == files(whole)


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"rounds": 4}, "rounds: 3, now 4"),
        ({"tries": 0}, "tries: 2, now 0"),
        ({"max_words": 7}, "max_words: 25, now 7"),
        ({"registry": REGISTRY[:2]}, "registry"),
    ],
)
def test_other_settings_do_not_continue(tmp_path: Path, change: dict[str, Any], other: str) -> None:
    path = tmp_path / "played.json"
    run(path)
    before = files(path)
    says = f"{path} was begun with another {other}; choose another output, or the settings that "
    with pytest.raises(UserError, match=re.escape(says)):
        run(path, **change)
    how = Playing(**({"registry": REGISTRY, "rounds": ROUNDS} | change))
    with pytest.raises(UserError, match=re.escape(says)):
        check_beforehand(openings(COUNT), {}, path, how)
    assert files(path) == before
    run(path, batch_size=9)
    with pytest.raises(UserError, match=r"another openings \(count\): 10, now 9"):
        check_beforehand(openings(9), {}, path, Playing(REGISTRY, rounds=ROUNDS))
    with pytest.raises(UserError, match=r'another questioner \(kind\): "asks", now "llm"'):
        known = {"questioner": {"kind": "llm"}}
        check_beforehand(openings(COUNT), known, path, Playing(REGISTRY, rounds=ROUNDS))


def test_what_is_not_its_own_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "played.json"
    path.write_text("dear diary")
    with pytest.raises(UserError, match=r"is there, but not played\.settings\.json"):
        run(path)
    assert path.read_text() == "dear diary"
    with pytest.raises(UserError, match=r"must end in \.json"):
        run(tmp_path / "played.txt")
    own = tmp_path / "own.json"
    run(own)
    line = own.with_suffix(".played.jsonl").read_text().splitlines()[0]
    own.with_suffix(".played.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match=r"line 2: the dialogue 0 is there twice"):
        run(own)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "played.json"

    def say(talk: Talk) -> str:
        with pytest.raises(UserError, match="another process writes"):
            run(path)
        return good(talk)

    assert run(path, Asks(say)).played == COUNT


def test_numbers_out_of_range_are_refused() -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: Playing(REGISTRY, rounds=0), "rounds is 0; set it to 1 or more"),
        (lambda: Playing(REGISTRY, tries=-1), "tries is -1; set it to 0 or more"),
        (lambda: Playing(REGISTRY, batch_size=0), "batch_size is 0"),
        (lambda: Playing(()), "the registry holds no question"),
    ]
    for make, problem in wrong:
        with pytest.raises(UserError, match=problem):
            make()


def test_bar_and_summary_tell_what_went_wrong(tmp_path: Path) -> None:
    shown = io.StringIO()
    path = tmp_path / "played.json"
    console = Console(file=shown, force_terminal=True, width=120)
    how = Playing(REGISTRY, rounds=ROUNDS)
    with progress_bar(console=console) as progress:
        people = Asks(mostly_good), Tells(telling)
        summary = play(openings(COUNT), *people, path, how, progress=progress)
    refused = summary.tally.refused.total()
    assert "10/10" in shown.getvalue() and f"{refused} questions refused" in shown.getvalue()
    told = list(Summary(summary.tally, 10, 4.0).lines(path))
    assert told == [
        f"10 dialogues, 30 rounds in {path}",
        f"{refused} questions could not be put",
        f"  holds an answer: {refused}",
        "12 rounds were asked by the registry, 0 once more",
        "0 rounds have no answer",
        "10 dialogues in 4 s, 0.4 s each",
    ]
    assert len(list(Summary(Tally(), 0, 0.0).lines(path))) == 4
