"""Lightning's parser: it raises where it would exit, and gives configurations as plain values."""

from __future__ import annotations

from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from cirlab.errors import UserError

#: No abbreviations: `--trainer.bar` would set `barebones`.
PARSER: dict[str, Any] = {"parser_mode": "omegaconf", "allow_abbrev": False}


class ParserError(UserError):
    """The parser's own report, in many lines."""


class ArgumentParser(LightningArgumentParser):
    """Raises where the parent prints its usage and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ParserError(message) from ex


def plain_config(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """A parsed configuration as strings, numbers, lists and mappings."""
    return yaml.safe_load(parser.dump(config, skip_link_targets=False, skip_unset=False))


def own_sentence(error: Exception) -> UserError | None:
    """What a class of ours said of its arguments, beneath the parser's report of it."""
    found: UserError | None = None
    beneath = error.__cause__ or error.__context__
    while beneath is not None:
        if isinstance(beneath, UserError) and not isinstance(beneath, ParserError):
            found = beneath
        beneath = beneath.__cause__ or beneath.__context__
    return found
