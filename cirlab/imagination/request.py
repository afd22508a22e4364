"""What is to be imagined, and under which name the picture of it lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cirlab.errors import UserError
from cirlab.records import Image

#: What a dialogue's name may hold, as a part of a file's name on any system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class Request:
    """A text to be seen.

    Attributes:
        dialogue: its name or number.
        round: of the dialogue; 0 is what it began with.
        prompt: the text.

    Raises:
        UserError: the dialogue's name cannot be a part of a file's, or the round is negative.
    """

    dialogue: str
    round: int
    prompt: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.dialogue):
            raise UserError(
                f"dialogue {self.dialogue!r} cannot name a picture; use letters, digits, dots and "
                "dashes"
            )
        if self.round < 0:
            raise UserError(
                f"round {self.round} of dialogue {self.dialogue} is negative; count rounds from 0"
            )

    def picture(self, number: int) -> str:
        """The name of one of its pictures, without suffix."""
        return f"{self.dialogue}_{self.round}_{number}"


class Imagination(Protocol):
    """Whatever has pictures of texts."""

    def pictures(self, requests: Sequence[Request]) -> list[list[Image]]:
        """The pictures of each request, equally many.

        Raises:
            UserError: there are none, and none can be made.
        """


def named(names: Sequence[str], shown: int = 3) -> str:
    """The first of some names, for a sentence."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")
