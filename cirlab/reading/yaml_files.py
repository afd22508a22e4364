"""YAML files of a few keys, e.g. prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from cirlab.errors import UserError
from cirlab.reading.files import read_text
from cirlab.reading.jsonl import Row


def read_mapping(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Row:
    """A file that holds one mapping with these keys and no others.

    Args:
        path: the file, which is there.
        what: it holds, for errors, e.g. "prompt".
        required: keys that must be there.
        optional: keys that may be there.

    Raises:
        UserError: it holds something else.
    """
    try:
        fields = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the {what} {path} is not valid YAML ({reason}); correct it") from error
    known = {*required, *optional}
    if not isinstance(fields, dict) or not set(required) <= set(fields) <= known:
        found = ", ".join(map(str, fields)) if isinstance(fields, dict) else type(fields).__name__
        keys = f"{'keys' if len(known) > 1 else 'key'} {', '.join(required)}"
        more = f" and, if you like, {', '.join(optional)}" if optional else ""
        raise UserError(f"the {what} {path} holds {found or 'nothing'}; give the {keys}{more}")
    return Row(fields, str(path))
