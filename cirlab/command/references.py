"""References within configuration files: `${oc.env:DATA_ROOT}` and `${data.init_args.seed}`.

The parser resolves them file by file. A reference would therefore keep its old value when
another file or an option changes what it refers to; this module finds that and refuses it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cirlab.errors import UserError

_ENVIRONMENT = re.compile(r"\$\{oc\.env:(\w+)\}")
_REFERENCE = re.compile(r"\$\{([\w.\[\]]+)\}")
#: What `look_up` finds where there is nothing; it equals nothing else.
MISSING = object()


@dataclass(frozen=True)
class RawConfig:
    """One configuration file as it is written.

    Attributes:
        path: of the file.
        content: with its references unresolved.
        resolved: with its references resolved, as the parser sees it.
    """

    path: Path
    content: Mapping[str, Any]
    resolved: Mapping[str, Any]


def read_config(path: Path) -> RawConfig:
    """Read a YAML file and resolve its references.

    Raises:
        UserError: it is no YAML, an environment variable is not set, or a reference leads
            nowhere.
    """
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    content = _mapping(path, config, resolve=False)
    _require_environment(path, content)
    try:
        return RawConfig(path, content, _mapping(path, config, resolve=True))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: {key} cannot be resolved ({reason})") from error


def check_references(files: Sequence[RawConfig], final: Mapping[str, Any]) -> None:
    """Refuse a reference whose source another file or an option has changed.

    Args:
        files: all configuration files, in the order they were read.
        final: the merged configuration.

    Raises:
        UserError: the first stale reference; it names both values.
    """
    for file in files:
        for key, text in leaves(file.content):
            for source in _REFERENCE.findall(text) if isinstance(text, str) else ():
                meant, found = look_up(file.resolved, source), look_up(final, source)
                stale = look_up(final, key) == look_up(file.resolved, key)
                if stale and found is not MISSING and found != meant:
                    raise UserError(
                        f"{file.path}: {key} refers to {source}, which is {meant!r} in that file "
                        f"but {found!r} in {_origin(source, files, after=file)}; set {key} there "
                        "as well, since references hold only within one file"
                    )


def leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is neither a mapping nor a list."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list):
        for position, value in enumerate(content):
            yield from leaves(value, f"{prefix}[{position}]")
    else:
        yield prefix, content


def look_up(content: Any, key: str) -> Any:
    """The value under a dotted key with list positions, or `MISSING`."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(content, Mapping) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            return MISSING
    return content


def _mapping(path: Path, config: Any, *, resolve: bool) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=resolve)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys; a configuration is a YAML mapping")
    return {str(key): value for key, value in content.items()}


def _require_environment(path: Path, content: Mapping[str, Any]) -> None:
    for key, text in leaves(content):
        for name in _ENVIRONMENT.findall(text) if isinstance(text, str) else ():
            if not os.environ.get(name):
                raise UserError(
                    f"{path}: {key} needs the environment variable {name}, which is not set; "
                    f"call with {name}=<folder of the data>"
                )


def _origin(key: str, files: Sequence[RawConfig], after: RawConfig) -> str:
    """Where a key was last set: a file, or the command line."""
    later = files[files.index(after) + 1 :]
    setting = [file.path for file in later if look_up(file.resolved, key) is not MISSING]
    return str(setting[-1]) if setting else "the command line"
