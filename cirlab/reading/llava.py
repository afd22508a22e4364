"""LLaVA's list of images and captions (LLaVA-558k): one JSON file, captions written by BLIP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cirlab.errors import UserError
from cirlab.reading.jsonl import Row


def llava_captions(path: Path) -> Iterator[tuple[str, str]]:
    """The image's path and the caption of each entry, in order.

    The caption is the first turn of "gpt"; the human's request is not used.

    Args:
        path: the file, [{"id", "image", "conversations": [{"from", "value"}, ..]}, ..].

    Raises:
        UserError: the file is missing, no JSON list, empty, or an entry is malformed.
    """
    for number, fields in enumerate(tqdm(_entries(path), desc=path.name, delay=2, disable=None)):
        row = _row(fields, f"{path}, entry {number}")
        yield row.text("image"), _caption(row)


def _entries(path: Path) -> list[Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; create it or correct the path")
    try:
        entries = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a JSON list of one or more entries")
    return entries


def _row(fields: Any, where: str) -> Row:
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return Row(fields, where)


def _caption(row: Row) -> str:
    turns = row.objects("conversations")
    for turn in turns:
        if turn.get("from") == "gpt":
            return turn.text("value").strip()
    raise row.error("no turn in 'conversations' is from \"gpt\"; that is where the caption stands")
