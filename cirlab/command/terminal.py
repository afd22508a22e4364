"""What a command says on the terminal: what came of it, or one sentence; nothing of libraries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from rich.console import Console

from cirlab.errors import UserError

log = logging.getLogger(__name__)


def tell(work: Callable[[Console], Iterable[str]]) -> int:
    """Do a command's work and print the lines that it gives.

    Args:
        work: may print to the console itself, too.

    Returns:
        The exit status: 0, or 2 with one sentence if what the user has given is of no use.
    """
    quiet_libraries()
    console = Console()
    try:
        lines = work(console)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def quiet_libraries() -> None:
    """Show what is logged here, and only warnings of others: they tell of every file they read."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("cirlab").setLevel(logging.INFO)
