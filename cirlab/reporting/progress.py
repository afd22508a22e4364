"""How far a long piece of work is, with the counts that matter to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class CountedBar:
    """One bar of a display.

    Args:
        progress: the display; None shows nothing.
        what: is done, in the plural.
        total: how many there are.
        counts: those of now: "completed", and what the display's text names.
    """

    def __init__(
        self,
        progress: Progress | None,
        what: str,
        total: int,
        counts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.progress, self.counts = progress, counts
        if progress is not None:
            self.task = progress.add_task(what, total=total, **counts())

    def show(self) -> None:
        """Bring it up to date."""
        if self.progress is not None:
            self.progress.update(self.task, **self.counts())


def progress_display(text: str, **options: Any) -> Progress:
    """A display of bars with a text behind each.

    Args:
        text: names counts by `{task.fields[..]}`.
        options: of rich's `Progress`.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(text),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        **options,
    )
