"""The command line: `python -m cirlab fit|validate|test|predict -c experiments/collm.yaml`.

LightningCLI with `experiments/_base.yaml` always read first, and with one sentence instead of
a traceback where the user can mend what is wrong.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from cirlab.configuration import (
    BASE,
    config_files,
    experiment_name,
    experiments_folder,
    require_files,
)
from cirlab.errors import UserError

logger = logging.getLogger(__name__)

SUBCOMMANDS = ("fit", "validate", "test", "predict")
#: Callbacks that `_base.yaml` names, so that an experiment can change one of their arguments.
NAMED_CALLBACKS = ("retrieval", "contact_sheet", "last_checkpoint", "best_checkpoint")


class ArgumentParser(LightningArgumentParser):
    """Raises where the parent prints its usage and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(message) from ex


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration once something has run, never before."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing yet: data or weights may still be refused."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if self.already_saved or trainer.sanity_checking or trainer.log_dir is None:
            return
        self.already_saved = True
        if trainer.is_global_zero:
            folder = Path(trainer.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / self.config_filename, skip_none=False, overwrite=True
            )


class RetrievalCLI(LightningCLI):
    """LightningCLI in subclass mode, with named callbacks and named runs."""

    def __init__(self, args: Sequence[str]) -> None:
        self.experiment = experiment_name(config_files(args))
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=ArgumentParser,
            parser_kwargs={name: {"parser_mode": "omegaconf"} for name in SUBCOMMANDS},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in NAMED_CALLBACKS:
            parser.add_subclass_arguments(L.Callback, name, required=False)
            parser.callback_keys.append(name)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        parser = self._parser(self.subcommand)
        parser.callback_keys = [key for key in NAMED_CALLBACKS if config.get(key) is not None]
        for entry in config.trainer.logger or []:
            for key in ("name", "experiment_name"):
                if key in entry.init_args and entry.init_args[key] is None:
                    entry.init_args[key] = self.experiment


def with_base(args: Sequence[str]) -> list[str]:
    """The command line with `experiments/_base.yaml` read before everything else."""
    files = config_files(args)
    if not args or args[0] not in SUBCOMMANDS or any(file.name == BASE for file in files):
        return list(args)
    folder = experiments_folder(files[-1] if files else Path())
    return [args[0], "-c", str(folder / BASE), *args[1:]]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 2 for what the user can mend."""
    args = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        require_files(config_files(args))
        RetrievalCLI(with_base(args))
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    return 0
