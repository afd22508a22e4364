"""From captions to triplets: an instruction LLM is asked about each, in batches of like length.

InstructCIR (arXiv 2412.05756, stage 2) learns from a picture, an instruction and the caption of
what it leads to. No target picture is needed, so any image-caption data become such triplets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from rich.progress import Progress

from cirlab.chat.llm import ChatModel, Decoding, Message
from cirlab.errors import UserError
from cirlab.reporting.progress import CountedBar, progress_display
from cirlab.triplets.answers import AnswerReader, Change, Reason
from cirlab.triplets.captions import Captions
from cirlab.triplets.files import Outcome, Tally, TripletFiles, check_output
from cirlab.triplets.prompt import TripletPrompt

#: Captions among which those of like length are brought together. A killed run asks about at most
#: one batch again, wherever it was in them.
WINDOW = 1024


@dataclass(frozen=True)
class Building:
    """How triplets are made.

    Attributes:
        prompt: what is asked.
        decoding: how answers are drawn.
        max_words: of an instruction; longer ones are set aside.
        tries: how often a model is asked again after an answer that is of no use, sampling.
        retry_temperature: of that sampling.
        seed: of all sampling.
        batch_size: captions asked about at once. A run may continue with another one.
    """

    prompt: TripletPrompt = field(default_factory=TripletPrompt)
    decoding: Decoding = field(default_factory=Decoding)
    max_words: int = 40
    tries: int = 0
    retry_temperature: float = 0.8
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("max_words", 1), ("tries", 0), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; set it to {least} or more")
        if self.retry_temperature <= 0:
            raise UserError(
                f"retry_temperature is {self.retry_temperature}; set it above 0, since the same "
                "answer would come again"
            )

    def settings(self, model: Mapping[str, Any], captions: Captions) -> dict[str, Any]:
        """What decides the answers.

        Args:
            model: its identity, or what is known of it.
            captions: what it is asked about.
        """
        own = {name: value for name, value in asdict(self).items() if name != "batch_size"}
        pairs = {"count": len(captions), "digest": captions.digest()}
        return {"model": model, "pairs": pairs, **own}


@dataclass(frozen=True)
class Summary:
    """What a run has come to.

    Attributes:
        tally: of the files, earlier sessions included.
        asked: captions of this session.
        seconds: of this session.
    """

    tally: Tally
    asked: int
    seconds: float

    def lines(self, path: Path) -> Iterator[str]:
        """What a person wants to know."""
        aside = self.tally.set_aside
        yield f"{_counted(self.tally.made, 'triplet')} in {path}"
        yield f"{aside.total():,} of {_counted(self.tally.total, 'answer')} set aside"
        for reason, count in aside.most_common():
            yield f"  {reason}: {count:,}"
        if self.asked:
            rate = self.asked / max(self.seconds, 1e-9)
            asked = _counted(self.asked, "caption")
            yield f"{asked} in {_duration(self.seconds)}, {rate:,.2f} a second"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{max(seconds, 0.01):.2g} s"


def check_beforehand(captions: Captions, model: str, path: Path, how: Building) -> None:
    """Refuse what `build` would refuse, before the model of this name is loaded.

    Raises:
        UserError: `path` cannot be written, or there is something else.
    """
    check_output(path, how.settings({"name": model}, captions))


def build(
    captions: Captions,
    llm: ChatModel,
    path: Path,
    how: Building | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Make triplets, or go on where a run with the same settings has ended.

    Args:
        captions: `captions_of` pairs, or `read_captions` of a file.
        llm: who answers.
        path: `.jsonl`, see `cirlab.triplets.files`.
        how: prompt, decoding and what counts as an answer; None for the defaults.
        progress: shows how far it is; None shows nothing.

    Raises:
        UserError: `path` cannot be written, or there is something else.
    """
    how = how or Building()
    settings = how.settings(llm.identity(), captions)
    asker = _Asker(llm, how)
    with TripletFiles(path, len(captions), settings) as files:
        begun, before = monotonic(), files.tally.total
        bar = CountedBar(progress, "captions", len(captions), files.tally.counts)
        for numbers in _batches(captions, files, asker):
            texts = [captions[number].caption for number in numbers]
            outcomes = asker(numbers, texts)
            files.add((captions[outcome.pair], outcome) for outcome in outcomes)
            bar.show()
        return Summary(files.tally, files.tally.total - before, monotonic() - begun)


def _batches(captions: Captions, files: TripletFiles, asker: _Asker) -> Iterator[list[int]]:
    """Numbers of captions that are asked about together, those of batches that are not done.

    The same batches whatever is done, so that what a run leaves does not depend on where it was
    interrupted; the longest ones first, so that memory runs out soon if it does.
    """
    size = asker.how.batch_size
    for start in range(0, len(captions), WINDOW):
        window = range(start, min(start + WINDOW, len(captions)))
        if not files.lacks(window):
            continue
        length = {number: asker.length(captions[number].caption) for number in window}
        order = sorted(window, key=lambda number: (-length[number], number))
        for first in range(0, len(order), size):
            numbers = order[first : first + size]
            if files.lacks(numbers):
                yield numbers


@dataclass(frozen=True)
class _Asker:
    """Asks about a batch of captions, and again where an answer is of no use."""

    llm: ChatModel
    how: Building

    def __call__(self, numbers: Sequence[int], captions: Sequence[str]) -> list[Outcome]:
        """Outcomes in the order of the captions."""
        read = AnswerReader(self.how.prompt, self.how.max_words)
        rows = range(len(numbers))
        asked = [row for row in rows if self._has_room(captions[row])]
        found: dict[int, Change | Reason] = {}
        answers: dict[int, tuple[str, ...]] = {}
        for attempt in range(1 + self.how.tries):
            open_rows = [row for row in asked if not isinstance(found.get(row), Change)]
            if not open_rows:
                break
            replies = self.llm.replies(
                [self._chat(captions[row]) for row in open_rows],
                self._decoding(attempt),
                seed=_seed(self.how.seed, min(numbers), attempt),
            )
            for row, reply in zip(open_rows, replies, strict=True):
                found[row] = read(reply, captions[row])
                answers[row] = (*answers.get(row, ()), reply.text)
        return [
            Outcome(numbers[row], found.get(row, Reason.NO_ROOM), answers.get(row, ()))
            for row in rows
        ]

    def length(self, caption: str) -> int:
        """Tokens of the chat about a caption."""
        return self.llm.length(self._chat(caption))

    def _has_room(self, caption: str) -> bool:
        return self.llm.has_room(self.length(caption), self.how.decoding)

    def _chat(self, caption: str) -> list[Message]:
        return self.how.prompt.messages(caption)

    def _decoding(self, attempt: int) -> Decoding:
        if attempt == 0:
            return self.how.decoding
        return replace(self.how.decoding, temperature=self.how.retry_temperature)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def progress_bar(**options: Any) -> Progress:
    """A display of the counts that matter here."""
    return progress_display(
        "{task.fields[made]} made, {task.fields[set_aside]} set aside", **options
    )
