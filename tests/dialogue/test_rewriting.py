from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from cirlab.chat.llm import Decoding, Message, Reply
from cirlab.dialogue.rewrite_prompt import read_rewrite_prompt
from cirlab.dialogue.rewriting import Flaw, LLMRewriter, Rewriter, Rewriting, cleaned
from cirlab.errors import UserError
from tests.dialogue.players import Chats

BARE = Rewriting(read_rewrite_prompt("bare"), batch_size=2)
DIALOGUES = [
    ["a dog", "what colour? brown", "where? on a beach", "is it day? yes"],
    ["a cat", "what colour? grey"],
    ["a dog", "what colour? brown", "how large? small"],
]


def joined(text: str) -> str:
    """What was said, on one line."""
    return " + ".join(line.rpartition("? ")[2] for line in text.splitlines())


def rewriter(
    path: Path, say: Callable[[str], str] = joined, how: Rewriting = BARE, room: int = 1000
) -> tuple[Rewriter, Chats]:
    chats = Chats(lambda text, _: say(text), room)
    return Rewriter(lambda: chats, {"name": "script"}, path / "rewritten.jsonl", how), chats


def asked(chats: Chats) -> list[str]:
    return [chat[-1]["content"] for chat in chats.chats]


def test_every_round_becomes_a_caption_and_the_first_stays(tmp_path: Path) -> None:
    write, chats = rewriter(tmp_path)
    texts, tally = write.dialogues(DIALOGUES)
    assert texts[0] == [
        "a dog",
        "a dog + brown",
        "a dog + brown + on a beach",
        "a dog + brown + on a beach + yes",
    ]
    assert [len(each) for each in texts] == [4, 2, 3]
    assert tally.as_dict() == {"rounds": 5, "repeated": 0, "flaws": {}}
    assert {each.temperature for each in chats.decodings} == {0}
    # Two dialogues begin alike.
    assert sorted(asked(chats)) == sorted(set(asked(chats))) and len(asked(chats)) == 5


def test_the_longest_are_written_first_and_what_is_written_is_never_asked_again(
    tmp_path: Path,
) -> None:
    write, chats = rewriter(tmp_path)
    whole = write.dialogues(DIALOGUES)
    lengths = [chats.length(chat) for chat in chats.chats]
    assert lengths == sorted(lengths, reverse=True)
    again, unused = rewriter(tmp_path)
    assert again.dialogues(DIALOGUES) == whole
    assert unused.chats == []
    # A further dialogue costs its own rounds alone.
    more, asks = rewriter(tmp_path, how=replace(BARE, batch_size=1))
    more.dialogues([*DIALOGUES, ["a bird", "where? in a tree"]])
    assert asked(asks) == ["a bird\nwhere? in a tree"]


def test_a_run_that_broke_goes_on_and_ends_alike(tmp_path: Path) -> None:
    class Breaks(Chats):
        def replies(
            self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
        ) -> list[Reply]:
            if self.chats:
                raise KeyboardInterrupt
            return super().replies(chats, decoding, seed)

    write, _ = rewriter(tmp_path / "whole")
    whole = write.dialogues(DIALOGUES)
    write, _ = rewriter(tmp_path / "broken")
    broken = Breaks(lambda text, _: joined(text))
    write.load = lambda: broken
    with pytest.raises(KeyboardInterrupt):
        write.dialogues(DIALOGUES)
    path = tmp_path / "broken" / "rewritten.jsonl"
    assert len(path.read_text().splitlines()) == 2
    # As if the kill had come while the second line was written.
    path.write_bytes(path.read_bytes()[:-9])
    write, rest = rewriter(tmp_path / "broken")
    assert write.dialogues(DIALOGUES) == whole
    assert path.read_bytes() == (tmp_path / "whole" / "rewritten.jsonl").read_bytes()
    # The batch of which a line was lost is asked as it was, so that its texts are those they were.
    assert asked(rest)[:2] == asked(broken)


def test_empty_texts_fall_back_to_the_round_before_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    say = {"a dog\nwhat colour? brown": " \n", "a cat\nwhat colour? grey": '"..."'}
    write, _ = rewriter(tmp_path, lambda text: say.get(text, joined(text)))
    histories = [tuple(DIALOGUES[0][:n]) for n in (4, 3, 2, 1)] + [tuple(DIALOGUES[1])]
    texts = write(histories)
    assert texts[2] == "a dog" and texts[4] == "a cat"
    assert texts[1] == "a dog + brown + on a beach"
    _, tally = write.with_tally(histories)
    assert tally.flaws == {Flaw.EMPTY: 2} and tally.rounds == 4 and tally.repeated == 0
    assert "2 of 4 rounds have no text and keep that of the round before" in caplog.text


def test_a_round_asked_for_alone_falls_back_to_what_stands_before_it(tmp_path: Path) -> None:
    last = "\n".join(DIALOGUES[0])
    write, _ = rewriter(tmp_path, lambda text: "" if text == last else joined(text))
    assert write([DIALOGUES[0]]) == ["a dog + brown + on a beach"]


def test_texts_that_say_the_same_are_counted(tmp_path: Path) -> None:
    texts = iter(["A dog.", "a dog", "a cat", "a brown dog", "a small brown dog"])
    by_text: dict[str, str] = {}
    write, _ = rewriter(tmp_path, lambda text: by_text.setdefault(text, next(texts)))
    written, tally = write.dialogues(DIALOGUES)
    same = sum(
        now.lower().strip(".") == before.lower().strip(".")
        for each in (written[0], written[1], written[2][1:])
        for before, now in pairwise(each)
    )
    assert tally.repeated == same > 0


def test_dialogues_that_do_not_fit_are_counted_and_not_asked(tmp_path: Path) -> None:
    write, chats = rewriter(tmp_path, room=8)
    written, tally = write.dialogues(DIALOGUES)
    assert tally.flaws == {Flaw.NO_ROOM: 2}
    assert written[0][3] == written[0][2] == "a dog + brown"
    assert all(chats.length(chat) <= 8 for chat in chats.chats)


def test_answers_that_were_cut_off_stand_and_are_counted(tmp_path: Path) -> None:
    class Long(Chats):
        def replies(
            self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
        ) -> list[Reply]:
            found = super().replies(chats, decoding, seed)
            return [replace(reply, finished=False) for reply in found]

    write, _ = rewriter(tmp_path)
    write.load = lambda: Long(lambda text, _: joined(text))
    written, tally = write.dialogues(DIALOGUES[1:2])
    assert written == [["a cat", "a cat + grey"]] and tally.flaws == {Flaw.CUT_OFF: 1}


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        (" a dog\n on a  beach ", "a dog on a beach"),
        ("New caption: a dog", "a dog"),
        ('Caption: "a dog"', "a dog"),
        ("\u201cDescription: a dog\u201d", "a dog"),
        ('a dog\'s "bone"', 'a dog\'s "bone"'),
        ("caption: ...", ""),
        ("", ""),
    ],
)
def test_captions_stand_without_what_models_write_around_them(text: str, caption: str) -> None:
    assert cleaned(text) == caption


# ---- other settings, bad input --------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        (replace(BARE, max_new_tokens=7), r"with another max_new_tokens: 128, now 7"),
        (Rewriting(read_rewrite_prompt("full")), r"with another user"),
    ],
)
def test_other_settings_need_another_file(tmp_path: Path, how: Rewriting, problem: str) -> None:
    rewriter(tmp_path)[0].dialogues(DIALOGUES)
    other, chats = rewriter(tmp_path, how=how)
    for refused in (other.check, lambda: other.dialogues(DIALOGUES)):
        with pytest.raises(UserError, match=problem):
            refused()
    assert chats.chats == []
    larger, _ = rewriter(tmp_path, how=replace(BARE, batch_size=5))
    larger.check()


def test_another_model_needs_another_file(tmp_path: Path) -> None:
    rewriter(tmp_path)[0].dialogues(DIALOGUES)
    other = Rewriter(lambda: None, {"name": "other"}, tmp_path / "rewritten.jsonl", BARE)
    with pytest.raises(UserError, match=r"another model \(name\): \"script\", now \"other\""):
        other(DIALOGUES)


def test_a_model_of_which_nothing_is_heard_ends_the_run(tmp_path: Path) -> None:
    write, _ = rewriter(tmp_path, lambda _: "")
    with pytest.raises(UserError, match="the model script has rewritten none of 2 rounds; choose"):
        write.dialogues(DIALOGUES)


def test_broken_lines_are_told(tmp_path: Path) -> None:
    write, _ = rewriter(tmp_path)
    write.dialogues(DIALOGUES)
    path = tmp_path / "rewritten.jsonl"
    path.write_text(path.read_text() + json.dumps({"key": "k", "text": 1, "flaw": None}) + "\n")
    with pytest.raises(UserError, match=r"line 6: the field 'text' is 1"):
        write.dialogues(DIALOGUES)


def test_arguments_are_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is .*texts\.json; name a \.jsonl file"):
        LLMRewriter("zoo:tiny_mllm", str(tmp_path / "texts.json"))
    with pytest.raises(UserError, match="batch_size is 0"):
        LLMRewriter("zoo:tiny_mllm", str(tmp_path / "a.jsonl"), batch_size=0)
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        LLMRewriter("zoo:tiny_mllm", str(tmp_path / "a.jsonl"), max_new_tokens=0)
    with pytest.raises(UserError, match="there is no device 'abacus' here"):
        LLMRewriter("zoo:tiny_mllm", str(tmp_path / "a.jsonl"), device="abacus")
    whole = LLMRewriter("no/such-model", str(tmp_path / "a.jsonl"))
    assert isinstance(pickle.loads(pickle.dumps(whole)), Rewriter)
    assert list(tmp_path.iterdir()) == []
