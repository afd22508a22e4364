"""A bar shows the counts of the work, and nothing where there is no display."""

from __future__ import annotations

import io

from rich.console import Console

from cirlab.reporting.progress import CountedBar, progress_display


def test_a_bar_follows_its_counts() -> None:
    shown = io.StringIO()
    counts = {"completed": 1, "broken": 0}
    console = Console(file=shown, force_terminal=True, width=100)
    with progress_display("{task.fields[broken]} broken", console=console) as progress:
        bar = CountedBar(progress, "cups", 5, lambda: counts)
        assert (progress.tasks[0].completed, progress.tasks[0].total) == (1, 5)
        counts |= {"completed": 5, "broken": 3}
        bar.show()
    last = shown.getvalue().rpartition("cups")[2]
    assert "5/5" in last and "3 broken" in last


def test_without_a_display_nothing_is_counted() -> None:
    def fails() -> dict[str, int]:
        raise AssertionError

    CountedBar(None, "cups", 5, fails).show()
