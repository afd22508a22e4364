"""Plays whole dialogues over a benchmark, batch by batch: one asks, one answers, a gallery ranks.

As ChatIR makes its dialogues (arXiv 2305.20062, section 4): the questioner reads the caption and
what was said, the answerer sees the image. Here the questioner may also see what the retriever
ranks first at each round. Questions that cannot be put are counted and replaced, so that every
dialogue comes to its number of rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from rich.progress import Progress

from cirlab.dialogue.faults import MAX_WORDS, Fault, cleaned, fault_of
from cirlab.dialogue.openings import Openings
from cirlab.dialogue.played import Played, PlayedFiles, Tally, check_output
from cirlab.dialogue.pool import least_asked
from cirlab.dialogue.questioners import named
from cirlab.dialogue.talk import Answerer, Questioner, Refused, Retriever, Talk
from cirlab.errors import UserError
from cirlab.reporting.progress import CountedBar, progress_display


@dataclass(frozen=True)
class Playing:
    """How dialogues are played.

    Attributes:
        registry: what is asked where a questioner has nothing that can be put; the question that
            was asked least often in the dialogue, of several the first.
        rounds: questions of each dialogue.
        tries: how often a questioner is asked again for a question that can be put.
        max_words: of a question.
        batch_size: dialogues played at once. A run may continue with another one.
    """

    registry: tuple[str, ...]
    rounds: int = 10
    tries: int = 2
    max_words: int = MAX_WORDS
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("tries", 0), ("max_words", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; set it to {least} or more")
        if not self.registry:
            raise UserError("the registry holds no question; give at least one")

    def settings(self, openings: Openings, people: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the dialogues.

        Args:
            openings: what they begin with.
            people: identities of questioner, answerer and retriever, or what is known of them.
        """
        own = {name: value for name, value in asdict(self).items() if name != "batch_size"}
        return {**people, "openings": {"count": len(openings), "digest": openings.digest()}, **own}


@dataclass(frozen=True)
class Summary:
    """What a run has come to.

    Attributes:
        tally: of the files, earlier sessions included.
        played: dialogues of this session.
        seconds: of this session.
    """

    tally: Tally
    played: int
    seconds: float

    def lines(self, path: Path) -> Iterator[str]:
        """What a person wants to know."""
        tally = self.tally
        yield f"{tally.dialogues:,} dialogues, {tally.rounds:,} rounds in {path}"
        yield f"{tally.refused.total():,} questions could not be put"
        for fault, count in tally.refused.most_common():
            yield f"  {fault}: {count:,}"
        yield f"{tally.replaced:,} rounds were asked by the registry, {tally.repeated:,} once more"
        yield f"{tally.unanswered:,} rounds have no answer"
        if self.played:
            each = self.seconds / self.played
            yield f"{self.played:,} dialogues in {self.seconds:,.0f} s, {each:.3g} s each"


def check_beforehand(
    openings: Openings, people: Mapping[str, Any], path: Path, how: Playing
) -> None:
    """Refuse what `play` would refuse, before models are loaded.

    Args:
        openings: what dialogues begin with.
        people: what is known of questioner, answerer and retriever.
        path: of the list, `.json`.
        how: it is played.

    Raises:
        UserError: `path` cannot be written, there is something else, or images are missing.
    """
    check_output(path, how.settings(openings, people))
    openings.check_files()


def play(
    openings: Openings,
    questioner: Questioner,
    answerer: Answerer,
    path: Path,
    how: Playing,
    retriever: Retriever | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Play dialogues, or go on where a run with the same settings has ended.

    Args:
        openings: what they begin with.
        questioner: who asks.
        answerer: who sees the images that are looked for.
        path: `.json`, see `cirlab.dialogue.played`.
        how: it is played.
        retriever: ranks the gallery for questioners that look at it.
        progress: shows how far it is; None shows nothing.

    Raises:
        UserError: `path` cannot be written, or there is something else; the questioner needs a
            retriever; or questioner or answerer have nothing to say.
    """
    if questioner.looks_at and retriever is None:
        raise UserError(
            f"the questioner {named(questioner.identity())} looks at the best images, but nothing "
            "ranks them; name a retriever"
        )
    table = _Table(openings, questioner, answerer, how, retriever if questioner.looks_at else None)
    with PlayedFiles(path, len(openings), how.settings(openings, table.people())) as files:
        begun, before = monotonic(), files.tally.dialogues
        bar = CountedBar(progress, "dialogues", len(openings), files.tally.counts)
        for first in range(0, len(openings), how.batch_size):
            numbers = range(first, min(first + how.batch_size, len(openings)))
            # The same batches whatever is done, so that what a run leaves does not depend on where
            # it was interrupted.
            if files.lacks(numbers):
                files.add(table.play(numbers, heard=files.tally))
                bar.show()
        files.finish()
        played = files.tally.dialogues - before
        return Summary(files.tally, played, monotonic() - begun)


@dataclass
class _Seat:
    """One dialogue of a batch, and what went wrong in it."""

    talk: Talk
    refused: list[tuple[int, Refused]] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)

    def refuse(self, question: str, fault: Fault) -> None:
        self.talk = self.talk.refusing(question, fault)
        self.refused.append((len(self.talk.rounds) + 1, self.talk.refused[-1]))


@dataclass(frozen=True)
class _Table:
    """Who sits at it, and how a batch is played."""

    openings: Openings
    questioner: Questioner
    answerer: Answerer
    how: Playing
    retriever: Retriever | None

    def people(self) -> dict[str, Any]:
        seen = None if self.retriever is None else dict(self.retriever.identity())
        return {
            "questioner": dict(self.questioner.identity()),
            "answerer": dict(self.answerer.identity()),
            "retriever": seen,
        }

    def play(self, numbers: Sequence[int], heard: Tally) -> list[Played]:
        """Whole dialogues of one batch.

        Args:
            numbers: of the dialogues.
            heard: what all that were played before have come to.
        """
        seats = [_Seat(Talk(number, self.openings[number].caption)) for number in numbers]
        for at in range(1, self.how.rounds + 1):
            self._look(seats)
            questions = self._questions(seats)
            images = [self.openings[number].image for number in numbers]
            said = self.answerer.answer(images, questions)
            answers = [" ".join(answer.split()) for answer in said]
            if at == 1:
                self._check_heard(seats, answers, heard)
            for seat, question, answer in zip(seats, questions, answers, strict=True):
                seat.talk = seat.talk.told(question, answer)
        return [self._played(seat) for seat in seats]

    def _look(self, seats: Sequence[_Seat]) -> None:
        """Show everybody what is ranked first now."""
        if self.retriever is None:
            return
        histories = [seat.talk.texts for seat in seats]
        ranked = self.retriever.rank(histories, self.questioner.looks_at)
        for seat, ids in zip(seats, ranked, strict=True):
            seat.talk = replace(seat.talk, best=tuple(self.openings.gallery[name] for name in ids))

    def _questions(self, seats: Sequence[_Seat]) -> list[str]:
        """A question for each, asked for again where it cannot be put."""
        found: dict[int, str] = {}
        for _ in range(1 + self.how.tries):
            rows = [row for row in range(len(seats)) if row not in found]
            if not rows:
                break
            proposed = self.questioner.ask([seats[row].talk for row in rows])
            for row, text in zip(rows, proposed, strict=True):
                question, talk = cleaned(text), seats[row].talk
                if fault := fault_of(question, talk.asked, self.how.max_words):
                    seats[row].refuse(question, fault)
                else:
                    found[row] = question
        return [found.get(row) or self._replacement(seats[row]) for row in range(len(seats))]

    def _replacement(self, seat: _Seat) -> str:
        at, asked = len(seat.talk.rounds) + 1, seat.talk.asked
        question = least_asked(self.how.registry, asked)
        seat.replaced.append(at)
        if fault_of(question, asked) is not None:
            seat.repeated.append(at)
        return question

    def _check_heard(self, seats: Sequence[_Seat], answers: Sequence[str], heard: Tally) -> None:
        """Refuse to play on with somebody of whom not a word was heard, from the first round on."""
        silent = all(
            seat.replaced and all(each.fault == Fault.EMPTY for _, each in seat.refused)
            for seat in seats
        )
        if silent and not heard.rounds - heard.replaced:
            raise UserError(
                f"the questioner {named(self.questioner.identity())} has no question that can "
                f"be read for {_any_of(len(seats), 'dialogue')}; choose another model or prompt, "
                "or let it write more"
            )
        if not any(answers) and not heard.rounds - heard.unanswered:
            raise UserError(
                f"the answerer {named(self.answerer.identity())} has no answer to "
                f"{_any_of(len(seats), 'question')}; choose another answerer, or questions that it "
                "understands"
            )

    def _played(self, seat: _Seat) -> Played:
        talk = seat.talk
        return Played(
            number=talk.number,
            image=self.openings[talk.number].image.id,
            caption=talk.caption,
            rounds=talk.rounds,
            refused=tuple(seat.refused),
            replaced=tuple(seat.replaced),
            repeated=tuple(seat.repeated),
        )


def progress_bar(**options: Any) -> Progress:
    """A display of the counts that matter here."""
    return progress_display("{task.fields[refused]} questions refused", **options)


def _any_of(count: int, what: str) -> str:
    return f"any of {count} {what}s" if count > 1 else f"the first {what}"
