from __future__ import annotations

import io
import json
import multiprocessing
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.chat.llm import Decoding
from cirlab.errors import UserError
from cirlab.triplets.building import (
    WINDOW,
    Building,
    Summary,
    build,
    check_beforehand,
    progress_bar,
)
from cirlab.triplets.captions import Captioned, Captions
from cirlab.triplets.files import Tally
from cirlab.triplets.prompt import Example, TripletPrompt
from tests.triplets.talkers import Script, caption_of, good_answer, mostly_good_answer

EXAMPLES = (Example("a dog", "add a cat to the picture", "a dog and a cat beside it"),)


def captions(count: int = 40) -> Captions:
    return Captions(Captioned(f"images/{i}.jpg", caption_of(i)) for i in range(count))


def make(path: Path, llm: Script, count: int = 40, **options: Any) -> Summary:
    return build(captions(count), llm, path, Building(**({"batch_size": 4} | options)))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def both(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_suffix(".set_aside.jsonl").read_bytes()


def test_every_caption_comes_out_once_in_one_file_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "triplets.jsonl"
    summary = make(path, Script(mostly_good_answer))
    made, aside = rows(path), rows(path.with_suffix(".set_aside.jsonl"))
    assert sorted(row["pair"] for row in [*made, *aside]) == list(range(40))
    assert (summary.tally.made, summary.tally.set_aside.total()) == (len(made), len(aside))
    assert made and aside
    for row in made:
        caption = caption_of(row["pair"])
        assert row == {
            "pair": row["pair"],
            "image": f"images/{row['pair']}.jpg",
            "caption": caption,
            "instruction": "make it white",
            "modified_caption": f"a white bag, once {caption}",
        }
    for row in aside:
        assert row["reason"] == "no JSON object"
        assert row["answers"] == [f"I would rather not speak of {row['caption']}"]


def test_batches_hold_captions_of_like_length(tmp_path: Path) -> None:
    llm = Script(good_answer)
    make(tmp_path / "triplets.jsonl", llm)
    assert [len(batch) for batch in llm.asked] == [4] * 10
    spread = [{len(caption.split()) for caption in batch} for batch in llm.asked]
    assert max(len(lengths) for lengths in spread) == 1
    lengths = [max(len(caption.split()) for caption in batch) for batch in llm.asked]
    assert lengths == sorted(lengths, reverse=True)


def test_unusable_answers_are_asked_for_again_sampling_with_seeds_of_their_own(
    tmp_path: Path,
) -> None:
    llm = Script(mostly_good_answer)
    summary = make(tmp_path / "triplets.jsonl", llm, tries=2, retry_temperature=0.5)
    first, *_ = llm.decodings
    assert first == Decoding()
    assert {d.temperature for d in llm.decodings} == {0.0, 0.5}
    assert len(set(llm.seeds)) == len(llm.seeds)
    times = Counter(caption for batch in llm.asked for caption in batch)
    assert set(times.values()) == {1, 2, 3}
    aside = rows(tmp_path / "triplets.set_aside.jsonl")
    assert {len(row["answers"]) for row in aside} == {3}
    once = make(tmp_path / "once.jsonl", Script(mostly_good_answer))
    assert summary.tally.made > once.tally.made
    again = Script(mostly_good_answer)
    make(tmp_path / "again.jsonl", again, tries=2, retry_temperature=0.5, seed=1)
    assert not set(again.seeds) & set(llm.seeds)


def test_a_caption_without_room_is_not_asked_about(tmp_path: Path) -> None:
    long = Captions([Captioned("a", "bag " * 80), Captioned("b", caption_of(1))])
    llm = Script(good_answer)
    summary = build(long, llm, tmp_path / "triplets.jsonl")
    assert llm.asked == [[caption_of(1)]]
    assert summary.tally.set_aside == {"caption too long for the model": 1}


def test_the_same_run_again_asks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "triplets.jsonl"
    first = make(path, Script(mostly_good_answer))
    before = both(path)
    llm = Script(mostly_good_answer)
    again = make(path, llm)
    assert (again.tally, again.asked, llm.asked) == (first.tally, 0, [])
    assert both(path) == before


@pytest.mark.parametrize("torn", [b"", b'{"pair": 3, "im', b"{", b"\xc3"])
def test_whatever_is_left_of_the_files_a_run_goes_on_to_the_same_ones(
    tmp_path: Path, torn: bytes
) -> None:
    path = tmp_path / "triplets.jsonl"
    make(path, Script(mostly_good_answer))
    whole = both(path)
    for cut, part in ((0, 0.0), (0, 0.5), (1, 0.0), (1, 0.7)):
        for file, data in zip((path, path.with_suffix(".set_aside.jsonl")), whole, strict=True):
            file.write_bytes(data)
        lines = whole[cut].splitlines(keepends=True)
        kept = lines[: int(part * len(lines))]
        file = (path, path.with_suffix(".set_aside.jsonl"))[cut]
        file.write_bytes(b"".join(kept) + torn)
        make(path, Script(mostly_good_answer))
        assert both(path) == whole


def _run(path: Path) -> None:
    build(captions(), Script(mostly_good_answer, pause=0.02), path, Building(batch_size=4, tries=1))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}*.jsonl"))


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    _run(tmp_path / "undisturbed.jsonl")
    path = tmp_path / "killed" / "triplets.jsonl"
    # Forked, so that a process starts in no time; nothing in it computes with threads.
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        before, process = _size(path), context.Process(target=_run, args=(path,))
        process.start()
        while _size(path) == before and process.is_alive():
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert before < _size(path) < _size(tmp_path / "undisturbed.jsonl")
    _run(path)
    assert both(path) == both(tmp_path / "undisturbed.jsonl")


@pytest.mark.parametrize(
    ("change", "other"),
    [
        # Of what is long, no part is shown that may look alike.
        ({"prompt": TripletPrompt("Now: {caption}")}, "prompt (user)"),
        ({"prompt": TripletPrompt(examples=EXAMPLES)}, "prompt (examples)"),
        ({"decoding": Decoding(temperature=0.5)}, "decoding (temperature): 0.0, now 0.5"),
        ({"max_words": 7}, "max_words: 40, now 7"),
        ({"tries": 3}, "tries: 0, now 3"),
        ({"seed": 5}, "seed: 0, now 5"),
    ],
)
def test_other_settings_do_not_continue(tmp_path: Path, change: dict[str, Any], other: str) -> None:
    path = tmp_path / "triplets.jsonl"
    make(path, Script(good_answer))
    before = both(path)
    says = f"{path} was begun with another {other}; choose another output, or the settings that "
    with pytest.raises(UserError, match=re.escape(says)):
        make(path, Script(good_answer), **change)
    how = Building(**({"batch_size": 4} | change))
    with pytest.raises(UserError, match=re.escape(says)):
        check_beforehand(captions(), "script", path, how)
    assert both(path) == before
    check_beforehand(captions(), "script", path, Building(batch_size=9))
    with pytest.raises(UserError, match=r'another model \(name\): "script", now "other"; choose'):
        check_beforehand(captions(), "other", path, Building())


def test_other_captions_do_not_continue_but_another_batch_size_does(tmp_path: Path) -> None:
    path = tmp_path / "triplets.jsonl"
    make(path, Script(good_answer))
    with pytest.raises(UserError, match=r"begun with another pairs \(count\): 40, now 41;"):
        make(path, Script(good_answer), count=41)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:10]))
    make(path, Script(good_answer), batch_size=7)
    assert sorted(row["pair"] for row in rows(path)) == list(range(40))


def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "triplets.jsonl"
    path.write_text("dear diary")
    with pytest.raises(UserError, match=r"is there, but not triplets\.settings\.json"):
        make(path, Script(good_answer))
    assert path.read_text() == "dear diary"
    with pytest.raises(UserError, match=r"must end in \.jsonl"):
        make(tmp_path / "triplets.txt", Script(good_answer))
    make(tmp_path / "own.jsonl", Script(good_answer))
    line = (tmp_path / "own.jsonl").read_text().splitlines()[0]
    (tmp_path / "own.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match=r"line 2: the pair .* is there twice"):
        make(tmp_path / "own.jsonl", Script(good_answer))


def test_a_record_of_settings_that_is_none_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "triplets.settings.json"
    for text in ("", "{", "[1]"):
        record.write_text(text)
        with pytest.raises(UserError, match="does not hold a run's settings; choose another"):
            make(tmp_path / "triplets.jsonl", Script(good_answer))
        assert record.read_text() == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.set_aside.jsonl", "a.settings.json", ".", "file"])
def test_an_output_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.jsonl" if name == "file" else tmp_path / "a.jsonl"
    if name == ".":
        path = tmp_path / f"{'a' * 300}.jsonl"
    elif name != "file":
        (tmp_path / name).mkdir()
    there = sorted(tmp_path.iterdir())
    at = tmp_path / name if name.startswith("a.") else path
    says = f"the output {at} cannot be written ("
    with pytest.raises(UserError, match=re.escape(says)):
        check_beforehand(captions(), "script", path, Building())
    assert sorted(tmp_path.iterdir()) == there
    with pytest.raises(UserError, match=r"a\.jsonl cannot be written \(|\.set_aside\.jsonl cannot"):
        make(path, Script(good_answer))


def test_looking_beforehand_leaves_nothing(tmp_path: Path) -> None:
    check_beforehand(captions(), "script", tmp_path / "new" / "a.jsonl", Building())
    assert not list(tmp_path.iterdir())
    make(tmp_path / "a.jsonl", Script(mostly_good_answer))
    before = both(tmp_path / "a.jsonl")
    check_beforehand(captions(), "script", tmp_path / "a.jsonl", Building())
    assert both(tmp_path / "a.jsonl") == before


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device"):
        make(path, Script(good_answer))


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "triplets.jsonl"

    def say(caption: str, asked_before: int) -> str:
        with pytest.raises(UserError, match="another process writes"):
            make(path, Script(good_answer))
        with pytest.raises(UserError, match="another process writes"):
            check_beforehand(captions(2), "script", path, Building())
        return good_answer(caption)

    assert make(path, Script(say), count=2).tally.made == 2


def test_numbers_out_of_range_are_refused() -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: Building(batch_size=0), "batch_size is 0; set it to 1 or more"),
        (lambda: Building(tries=-1), "tries is -1"),
        (lambda: Building(retry_temperature=0.0), "retry_temperature is 0.0; set it above 0"),
        (lambda: Decoding(temperature=-0.1), "temperature is -0.1"),
        (lambda: Decoding(max_new_tokens=0), "max_new_tokens is 0"),
    ]
    for build_it, problem in wrong:
        with pytest.raises(UserError, match=problem):
            build_it()


def test_windows_beyond_the_first_are_asked_about_too(tmp_path: Path) -> None:
    count = WINDOW + 3
    summary = make(tmp_path / "triplets.jsonl", Script(good_answer), count=count, batch_size=256)
    assert summary.tally.made == count


def test_bar_and_summary_tell_what_was_made_and_set_aside(tmp_path: Path) -> None:
    shown = io.StringIO()
    path = tmp_path / "triplets.jsonl"
    console = Console(file=shown, force_terminal=True, width=120)
    with progress_bar(console=console) as progress:
        summary = build(captions(), Script(mostly_good_answer), path, progress=progress)
    made, aside = summary.tally.made, summary.tally.set_aside.total()
    assert "40/40" in shown.getvalue() and f"{made} made, {aside} set aside" in shown.getvalue()
    text = "\n".join(summary.lines(path))
    assert f"{made} triplets in {path}" in text
    assert f"{aside} of 40 answers set aside\n  no JSON object: {aside}" in text
    assert "40 captions in" in text and "a second" in text


def test_the_summary_counts_in_plain_words() -> None:
    one = Summary(Tally(made=1), asked=1, seconds=0.04)
    assert list(one.lines(Path("a.jsonl"))) == [
        "1 triplet in a.jsonl",
        "0 of 1 answer set aside",
        "1 caption in 0.04 s, 25.00 a second",
    ]
    many = Summary(Tally(made=2000), asked=1000, seconds=12.4)
    assert list(many.lines(Path("a.jsonl"))) == [
        "2,000 triplets in a.jsonl",
        "0 of 2,000 answers set aside",
        "1,000 captions in 12 s, 80.65 a second",
    ]
