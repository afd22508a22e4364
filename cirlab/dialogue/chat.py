"""A chat about a gallery at the terminal: say what you look for, answer, watch the ranks change.

The person sees, or has in mind, the image that is looked for; a questioner asks. After each answer
the gallery is ranked again, and a contact sheet shows the best images of every round so far.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import PIL.Image
import PIL.ImageOps
from rich.console import Console

from cirlab.dialogue.faults import Fault, cleaned, fault_of
from cirlab.dialogue.questioners import open_questions
from cirlab.dialogue.retriever import GalleryRetriever
from cirlab.dialogue.talk import Questioner, Refused, Talk
from cirlab.reading.atomic import whole_file
from cirlab.records import FileImage, Image
from cirlab.reporting.sheet import THUMB, Row, draw

QUIT = "/quit"
#: How often a questioner is asked again for a question that can be put.
TRIES = 2


@dataclass(frozen=True)
class Standing:
    """What a round has come to.

    Attributes:
        text: what was said in it.
        best: ids of the images ranked first, best first.
        rank: of the target, from 1; None without one.
    """

    text: str
    best: tuple[str, ...]
    rank: int | None


@dataclass
class Session:
    """One chat, whoever reads and types.

    Attributes:
        retriever: ranks the gallery.
        images: of the gallery, by id.
        questioner: asks.
        registry: what is asked where it has nothing that can be put.
        top: how many images are shown.
        target: id of the image whose rank is told; None tells of none.
        standings: of the rounds so far, the first of what the chat began with.
    """

    retriever: GalleryRetriever
    images: Mapping[str, Image]
    questioner: Questioner
    registry: tuple[str, ...]
    top: int = 10
    target: str | None = None
    standings: list[Standing] = field(default_factory=list)
    _talk: Talk | None = None
    _passed: list[str] = field(default_factory=list)

    def begin(self, description: str) -> Standing:
        """Rank by what the person looks for."""
        self._talk = Talk(0, description)
        return self._stand(description)

    def answered(self, question: str, answer: str) -> Standing:
        """Rank by all that was said, this answer included."""
        self._talk = self._begun.told(question, answer)
        return self._stand(self._talk.rounds[-1].text)

    def pass_over(self, question: str) -> None:
        """Leave a question without an answer; it is not put again."""
        self._passed.append(question)

    def question(self) -> str:
        """The next question; empty where there is none left."""
        talk, unwanted = self._begun, (*self._begun.asked, *self._passed)
        best = self.standings[-1].best
        if self.questioner.looks_at > len(best):
            (best,) = map(tuple, self.retriever.rank([talk.texts], self.questioner.looks_at))
        shown = tuple(self.images[name] for name in best[: self.questioner.looks_at])
        passed = tuple(Refused(question, Fault.REPEATED) for question in self._passed)
        talk = replace(talk, best=shown, refused=passed)
        for _ in range(1 + TRIES):
            found = cleaned(self.questioner.ask([talk])[0])
            if (fault := fault_of(found, unwanted)) is None:
                return found
            talk = talk.refusing(found, fault)
        return next(iter(open_questions(talk, self.registry)), "")

    @property
    def _begun(self) -> Talk:
        assert self._talk is not None, "begin was not called"
        return self._talk

    def _stand(self, text: str) -> Standing:
        rank = None
        if self.target is None:
            (best,) = self.retriever.rank([self._begun.texts], self.top)
        else:
            best, rank = self.retriever.find(self._begun.texts, self.top, self.target)
        self.standings.append(Standing(text, tuple(best), rank))
        return self.standings[-1]


def moves(before: Sequence[str] | None, now: Sequence[str]) -> list[str]:
    """How each image of a list came to its place: "new", "up 2", "down 1", or "" if it stayed.

    Args:
        before: ids of the list one round earlier; None in the first round, when nothing has moved.
        now: ids, best first.
    """
    if before is None:
        return ["" for _ in now]
    places = {name: place for place, name in enumerate(before)}
    return [
        _move(places[name] - place) if name in places else "new" for place, name in enumerate(now)
    ]


def _move(risen: int) -> str:
    if not risen:
        return ""
    return f"up {risen}" if risen > 0 else f"down {-risen}"


@dataclass(frozen=True)
class Terminal:
    """Shows a session and listens.

    Attributes:
        session: what is shown.
        console: where to.
        sheet: the contact sheet, .png.
        title: of the sheet.
        read: gives a line, after showing a prompt.
        echo: whether to show what was read, for lines that nobody has typed here.
    """

    session: Session
    console: Console
    sheet: Path
    title: str
    read: Callable[[str], str] = input
    echo: bool = field(default_factory=lambda: not sys.stdin.isatty())
    _rows: list[Row] = field(default_factory=list, repr=False)

    def run(self) -> None:
        """Chat until nobody wants to go on, or nothing is left to ask."""
        try:
            self._chat()
        except KeyboardInterrupt:
            self._say("")
        self._close()

    def _chat(self) -> None:
        self._say(f"Say what you are looking for; {QUIT} ends.")
        while not (description := self._listen("> ")):
            if description is None:
                return
            self._say(f"Describe the image in a few words, or say {QUIT}.")
        self._show(self.session.begin(description))
        while question := self._question():
            answer = self._listen(f"{question} ")
            if answer is None:
                return
            if answer:
                self._show(self.session.answered(question, answer))
            else:
                self.session.pass_over(question)
                self._say("(passed over)")
        self._say("There is nothing left to ask.")

    def _question(self) -> str:
        with self.console.status("thinking of a question"):
            return self.session.question()

    def _listen(self, prompt: str) -> str | None:
        """A line without blanks around it; None at the end of the chat."""
        while True:
            try:
                line = " ".join(self.read(prompt).split())
            except EOFError:
                self._say("")
                return None
            if self.echo:
                self._say(line)
            if not line.startswith("/"):
                return line
            if line.lower() == QUIT:
                return None
            self._say(f"There is no {line.split()[0]}; {QUIT} ends, an empty line passes over.")

    def _show(self, standing: Standing) -> None:
        """The list, what became of the one before it, and the sheet."""
        earlier = self.session.standings[:-1]
        before = earlier[-1] if earlier else None
        marks = moves(before.best if before is not None else None, standing.best)
        for place, (name, move) in enumerate(zip(standing.best, marks, strict=True), start=1):
            mark = "  <- target" if name == self.session.target else ""
            self._say(f"{place:4}  {move:8}{self._path(name)}{mark}")
        if before is not None and (gone := [n for n in before.best if n not in standing.best]):
            self._say(f"      no longer among the first {len(standing.best)}: {', '.join(gone)}")
        if standing.rank is not None:
            was = f", was {before.rank:,}" if before is not None else ""
            count = len(self.session.images)
            self._say(f"rank of the target: {standing.rank:,} of {count:,}{was}")
        self._draw(standing)
        self._say(f"pictures: {self.sheet}")

    def _path(self, name: str) -> str:
        image = self.session.images[name]
        return str(image.path) if isinstance(image, FileImage) else name

    def _draw(self, standing: Standing) -> None:
        """A further row of the sheet."""
        target = self.session.target
        row = Row(
            image=None,
            text=f"{len(self._rows)}: {standing.text}",
            target=self._small(target) if target is not None else None,
            found=[self._small(name) for name in standing.best],
            correct=[name == target for name in standing.best],
            rank=standing.rank or 0,
        )
        self._rows.append(row)
        with whole_file(self.sheet) as unfinished:
            draw(self._rows, self.title).save(unfinished, format="PNG")

    def _small(self, name: str) -> PIL.Image.Image:
        # Kept for all later rounds, which photographs of full size would be too large for.
        return PIL.ImageOps.contain(self.session.images[name].load(), (THUMB, THUMB))

    def _close(self) -> None:
        rounds = len(self.session.standings) - 1
        if rounds < 0:
            return
        ranks = [each.rank for each in self.session.standings if each.rank is not None]
        told = f"; rank of the target by round: {', '.join(map(str, ranks))}" if ranks else ""
        self._say(f"{rounds} {'answer' if rounds == 1 else 'answers'}{told}")

    def _say(self, text: str) -> None:
        """Show a line as it is, whatever it holds."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
