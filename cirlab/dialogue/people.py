"""A person at the terminal, who asks or answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cirlab.dialogue.talk import Talk
from cirlab.errors import UserError
from cirlab.records import FileImage, Image


class _Person:
    """Somebody who reads and types.

    Args:
        console: where it is read.
        read: gives a line, after showing a prompt.
    """

    def __init__(self, console: Console | None = None, read: Callable[[str], str] = input) -> None:
        self.console = console or Console()
        self._read = read

    def identity(self) -> dict[str, Any]:
        return {"kind": "human"}

    def say(self, text: str) -> None:
        """Show a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def listen(self, prompt: str) -> str:
        """A line of theirs, asked for until it holds something.

        Raises:
            UserError: there will be none.
        """
        try:
            while not (line := self._read(prompt).strip()):
                self.say("an empty line says nothing; type something, or end with Ctrl-C")
            return line
        except (EOFError, KeyboardInterrupt) as error:
            raise UserError(
                "the input has ended within a dialogue; it is begun again when the same command "
                "runs at a terminal"
            ) from error


class HumanQuestioner(_Person):
    """A person who has read the caption and asks about an image without seeing it.

    Args:
        looks_at: how many of the retriever's best images are named.
        console: where it is read.
        read: gives a line, after showing a prompt.
    """

    def __init__(
        self,
        looks_at: int = 0,
        console: Console | None = None,
        read: Callable[[str], str] = input,
    ) -> None:
        super().__init__(console, read)
        self.looks_at = looks_at

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        return [self._asked(talk) for talk in talks]

    def _asked(self, talk: Talk) -> str:
        if talk.refused:
            self.say(f"that cannot be put ({talk.refused[-1].fault}); ask something else")
        else:
            self.say("\n".join(["", *talk.texts]))
            for place, image in enumerate(talk.best, start=1):
                self.say(f"  {place}. {image.id}")
        return self.listen("question: ")


class HumanAnswerer(_Person):
    """A person who looks at the image and answers.

    An image that is no file of its own is written to one before it is asked about.
    """

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[str]:
        return [self._answered(*each) for each in zip(images, questions, strict=True)]

    def _answered(self, image: Image, question: str) -> str:
        self.say(f"\nlook at {self._path(image)}")
        return self.listen(f"{question} ")

    def _path(self, image: Image) -> Path:
        if isinstance(image, FileImage) and not image.part:
            return image.path
        if not hasattr(self, "_folder"):
            self._folder = tempfile.TemporaryDirectory(prefix="cirlab-")
        path = Path(self._folder.name) / "image.png"
        image.load().save(path)
        return path
