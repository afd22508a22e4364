"""What a command shows: its own sentences, and of libraries only warnings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import logging
from cirlab.command.terminal import tell
from cirlab.errors import UserError

def work(console):
    console.print("working")
    logging.getLogger("open_clip").info("reads a file")
    logging.getLogger("open_clip").warning("guesses")
    logging.getLogger("cirlab.zoo").info("of its own")
    {last}

raise SystemExit(tell(work))
"""


@pytest.mark.parametrize(
    ("last", "status", "out", "last_error"),
    [
        ("return ['3 [made]', 'x' * 200]", 0, ["3 [made]", "x" * 200], []),
        ("raise UserError('a is 1; set it to 2')", 2, [], ["error: a is 1; set it to 2"]),
    ],
)
def test_own_sentences_are_shown_and_of_libraries_only_warnings(
    last: str, status: int, out: list[str], last_error: list[str]
) -> None:
    """In a process of its own, since pytest sets up the logging of this one."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(last=last)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert done.stdout.splitlines() == ["working", *out]
    assert done.stderr.splitlines() == ["guesses", "of its own", *last_error]
