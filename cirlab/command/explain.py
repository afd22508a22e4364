"""The parser's reports on a wrong configuration, told in one sentence."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from cirlab.command.references import RawConfig, leaves, look_up

_UNKNOWN = re.compile(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'")
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*(.+)")
_REQUIRED = re.compile(r"following arguments are required: (.+)")
_KEY = re.compile(r'Parser key "([^"]+)"')
_EXPECTED = re.compile(r"Expected an? (?:<class '([^']+)'>|(.+?)(?:\. Got|$))", re.MULTILINE)
_LITERAL = re.compile(r"typing\.Literal(\[.+\])$")
#: Further ways to give a value of some types: a file that holds it, the import path of a constant.
_NO_TYPES = ("path but ", "dot import path string")
_VALUE = re.compile(r"(?:Given|Got) value: (.+)")
_SUBTYPE = re.compile(r"Subtypes: \[<class '([\w.]+)'>")
_UNRECOGNISED = re.compile(r"[Uu]nrecognized arguments: (.+)")


def explain(
    message: str,
    files: Sequence[RawConfig],
    args: Sequence[str],
    known: Mapping[str, Sequence[str]],
) -> str:
    """Say which key of which file is wrong, and what it might have meant.

    Args:
        message: what the parser reports, often over many lines.
        files: all configuration files, in the order they were read.
        args: the command line.
        known: valid keys of the sections that are no classes, "" for the top level.
    """
    if found := _UNKNOWN.search(message):
        types = _SUBTYPE.findall(message[: found.start()])
        return _unknown_key(found[1] or found[2], files, args, known, types)
    if found := _UNRECOGNISED.search(message):
        return _unknown_option(found[1].split()[0].partition("=")[0], known)
    if found := _CLASS.search(message):
        return _unknown_class(found[1], found[2].strip(), files, args)
    keys = _KEY.findall(message)
    if found := _REQUIRED.search(message):
        where = keys[-1] if keys else "the configuration"
        return f"{where} lacks {found[1].strip()}; set it in the experiment's YAML"
    if keys and (found := _EXPECTED.search(message)):
        return _wrong_type(keys, message, files, args)
    return " ".join(message.split())


def _unknown_key(
    name: str,
    files: Sequence[RawConfig],
    args: Sequence[str],
    known: Mapping[str, Sequence[str]],
    types: Sequence[str],
) -> str:
    section = name.partition(".")[0]
    misspelt = section != name and section not in known[""]
    where, key = _locate(section if misspelt else name, files, args)
    parent, _, leaf = key.rpartition(".")
    valid = list(known.get(parent, ())) or _class_arguments(parent, files)
    valid = valid or (_parameters(types[-1]) if types else [])
    close = get_close_matches(leaf, valid, n=1, cutoff=0.5)
    if close:
        hint = f"did you mean {close[0]}?"
    elif valid:
        hint = f"there are: {', '.join(sorted(valid))}"
    else:
        hint = "remove it"
    return f"{where}: unknown key {key}; {hint}"


def _unknown_option(option: str, known: Mapping[str, Sequence[str]]) -> str:
    """Of a section that is no class; arguments of classes are reported as keys."""
    key = option.removeprefix("--")
    section, _, rest = key.partition(".")
    if section not in known[""]:
        parent, name, rest = "", section, f".{rest}" if rest else ""
    else:
        (parent, _, name), rest = key.rpartition("."), ""
    close = get_close_matches(name, known.get(parent, ()), n=1, cutoff=0.5)
    if not (option.startswith("--") and close):
        return f"the command line has no option {option}; see --help"
    meant = f"{parent}.{close[0]}" if parent else close[0]
    return f"the command line has no option {option}; did you mean --{meant}{rest}?"


def _unknown_class(path: str, reason: str, files: Sequence[RawConfig], args: Sequence[str]) -> str:
    places = [
        f"{file.path}: {key}"
        for file in files
        for key, value in leaves(file.resolved)
        if value == path
    ]
    where = places[-1] if places else "the command line: class_path"
    module, _, name = path.rpartition(".")
    try:
        names = [n for n, value in vars(import_module(module)).items() if inspect.isclass(value)]
    except (ImportError, ValueError):
        return f"{where} is {path!r}, but {reason}"
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {module}.{close[0]}?" if close else f"{reason}"
    return f"{where} is {path!r}, which does not exist; {hint}"


def _wrong_type(
    keys: Sequence[str], message: str, files: Sequence[RawConfig], args: Sequence[str]
) -> str:
    inner = message[message.rindex(f'Parser key "{keys[-1]}"') :]
    value = _VALUE.search(inner)
    where, key = _locate(keys[-1], files, args, below=keys[0] if len(keys) > 1 else "")
    given = value[1].strip() if value else "of another type"
    return f"{where}: {key} is {given}, but it must be {_wanted(inner, given)}"


def _wanted(report: str, given: str) -> str:
    """The types and values that the parser would take, in words."""
    kinds: dict[str, None] = {}
    choices: dict[str, None] = {}
    for name, words in _EXPECTED.findall(report):
        if literal := _LITERAL.match(words):
            choices |= dict.fromkeys(map(str, ast.literal_eval(literal[1])))
        elif not words.startswith(_NO_TYPES):
            kinds[name.rpartition(".")[2] or words] = None
    # Whether null is taken, too, helps nobody who meant a value.
    wanted = [kind for kind in kinds if kind != "NoneType"]
    hint = ""
    if choices:
        wanted.append(f"one of: {', '.join(choices)}")
        close = get_close_matches(given, choices, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
    return f"{' or '.join(wanted) or 'null'}{hint}"


def _locate(
    name: str, files: Sequence[RawConfig], args: Sequence[str], below: str = ""
) -> tuple[str, str]:
    """(place, dotted key) where a key is set; the command line and the last file win."""
    for arg in args:
        option = arg.partition("=")[0].removeprefix("--")
        if arg.startswith("--") and (option == name or option.endswith(f".{name}")):
            return "the command line", option
    for file in reversed(files):
        for key in _paths(file.content):
            exact = key == name and not below
            if exact or (key.endswith(f".{name}") and key.startswith(below)):
                return str(file.path), key
    return "the configuration", name


def _paths(content: Any, prefix: str = "") -> list[str]:
    """All dotted keys, of mappings too."""
    paths: list[str] = []
    if isinstance(content, Mapping):
        for key, value in content.items():
            path = f"{prefix}.{key}" if prefix else str(key)
            paths += [path, *_paths(value, path)]
    elif isinstance(content, list):
        for position, value in enumerate(content):
            paths += _paths(value, f"{prefix}[{position}]")
    return paths


def _class_arguments(parent: str, files: Sequence[RawConfig]) -> list[str]:
    """Constructor arguments of the class whose `init_args` the parent key is."""
    owner = parent.removesuffix(".init_args")
    paths = (look_up(file.resolved, f"{owner}.class_path") for file in reversed(files))
    return next((_parameters(path) for path in paths if isinstance(path, str)), [])


def _parameters(path: str) -> list[str]:
    """Constructor arguments of a class by its import path, none if it has no such signature."""
    module, _, name = path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError):
        return []
    return [p for p in parameters if p not in ("args", "kwargs")]
