"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, told in one sentence: the value, where it stands, and what to do.

    The command line prints the sentence without a traceback and exits with status 2.
    Everything else that is raised is a defect of this repository or of a library.
    """
