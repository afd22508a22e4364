"""YAML files of a few keys, e.g. prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cirlab.errors import UserError
from cirlab.reading.files import read_text
from cirlab.reading.jsonl import Row

#: Of the key << that takes over another mapping's.
_MERGE = "tag:yaml.org,2002:merge"


class _TwiceError(Exception):
    """A mapping gives a key a second time; YAML itself would take the last."""


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                name = self.construct_object(key)
                if name in seen:
                    line = key.start_mark.line + 1
                    raise _TwiceError(f"gives {name!r} a second time in line {line}")
                seen.add(name)
        return super().construct_mapping(node, deep)


def read_mapping(
    path: Path, what: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Row:
    """A file that holds one mapping with these keys and no others, no key twice at any depth.

    Args:
        path: the file, which is there.
        what: it holds, for errors, e.g. "prompt".
        required: keys that must be there.
        optional: keys that may be there.

    Raises:
        UserError: it holds something else.
    """
    try:
        fields = yaml.load(read_text(path), _StrictLoader)
    except _TwiceError as error:
        raise UserError(f"the {what} {path} {error}; keep one of them") from error
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
