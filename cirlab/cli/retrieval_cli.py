"""LightningCLI for this repository: named callbacks, and named runs that can be resumed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from rich.console import Console

from cirlab.cli.parser import PARSER, ArgumentParser, ParserError, own_sentence, plain_config
from cirlab.cli.runs import name_runs, runs_root
from cirlab.cli.save_config import SaveConfig
from cirlab.cli.start import Start, start_from_trained, start_training
from cirlab.cli.trainer import OWN, Trainer, alone
from cirlab.command.chat import Chat
from cirlab.command.checkpoint_config import CONFIG, check_config, read_metadata
from cirlab.command.configuration import SUBCOMMANDS, experiment_name
from cirlab.command.cpu import affordable_precision, tune_for_cpu
from cirlab.command.devices import check_devices, check_name, runs_on_cpu
from cirlab.command.explain import explain
from cirlab.command.export import Export
from cirlab.command.references import RawConfig, check_references
from cirlab.command.strategies import check_strategy
from cirlab.errors import UserError
from cirlab.reporting.results import show_run
from cirlab.reporting.run import RUNS, Run

#: Callbacks that `_base.yaml` names, so that an experiment can change one of their arguments.
NAMED_CALLBACKS = ("retrieval", "contact_sheet", "last_checkpoint", "best_checkpoint")
#: Arguments of the subcommands' methods that no option sets.
ARGUMENTS = ("self", "model", "origin", "talk", "ckpt_path")


class RetrievalCLI(LightningCLI):
    """LightningCLI in subclass mode, with named callbacks and named, resumable runs.

    Args:
        args: the command line, base configuration included.
        files: the configuration files it names.
    """

    def __init__(self, args: Sequence[str], files: Sequence[RawConfig]) -> None:
        self.files = files
        self.experiment = experiment_name([file.path for file in files])
        self.resumed: Run | None = None
        self.checkpoint: Path | None = None
        self.runs = RUNS
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=ArgumentParser,
            parser_kwargs=PARSER | {name: dict(PARSER) for name in SUBCOMMANDS},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args),
        )

    # ---- reading the configuration --------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {"export": {"model", "origin"}, "chat": {"model", "talk"}}
        return LightningCLI.subcommands() | own

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in NAMED_CALLBACKS:
            parser.add_subclass_arguments(L.Callback, name, required=False)
            parser.callback_keys.append(name)
        parser.add_argument(
            "--resume",
            type=bool,
            default=False,
            help="Continue the newest run of this experiment from its last checkpoint (fit).",
        )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            # Lightning's own list of all metrics, names cut off; `show_run` prints tables.
            parser.set_defaults(verbose=False)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ParserError as error:
            if (own := own_sentence(error)) is not None:
                raise own from error
            raise UserError(explain(str(error), self.files, args, _sections())) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: the YAML is the truth, see `cirlab.command.checkpoint_config`."""

    def before_instantiate_classes(self) -> None:
        config, parser = self.config[self.subcommand], self._parser(self.subcommand)
        plain = plain_config(parser, config)
        check_references(self.files, plain)
        own = self.subcommand in OWN
        if own:
            _set(config.trainer, alone(str(self.subcommand), config.trainer.precision))
        self._suit_machine(config.trainer, plain)
        parser.callback_keys = [key for key in NAMED_CALLBACKS if config.get(key) is not None]
        self.experiment = name_runs(config, self.experiment)
        start = self._choose_start(config)
        self.checkpoint, self.resumed = start.checkpoint, start.resumed
        if own:
            parser.callback_keys = []
            self.runs = runs_root(config)
            _set(config.trainer, {"logger": False, "callbacks": None})
        if self.checkpoint is not None:
            saved = read_metadata(self.checkpoint).get(CONFIG)
            if saved is not None:
                check_config(self.checkpoint, saved, plain, fit=self.subcommand == "fit")

    def _suit_machine(self, trainer: Any, plain: dict[str, Any]) -> None:
        """Refuse devices that there are not; take a precision that the processor affords."""
        check_name("accelerator", trainer.accelerator, AcceleratorRegistry.available_accelerators())
        check_name("strategy", trainer.strategy, StrategyRegistry.available_strategies())
        check_devices(trainer.accelerator, trainer.devices)
        if self.subcommand == "export":
            return
        check_strategy(plain)
        if runs_on_cpu(trainer.accelerator):
            trainer.precision = affordable_precision(str(trainer.precision))
            tune_for_cpu(trainer.precision)

    def _choose_start(self, config: Any) -> Start:
        root = runs_root(config)
        given, config["ckpt_path"] = config.get("ckpt_path"), None
        if self.subcommand == "fit":
            return start_training(self.experiment, root, given=given, resume=config.resume)
        return start_from_trained(
            self.experiment,
            root,
            given=given,
            subcommand=str(self.subcommand),
            method=config.model.class_path,
        )

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if (own := own_sentence(error)) is not None:
                raise own from error
            raise

    # ---- running -------------------------------------------------------------------------

    def after_instantiate_classes(self) -> None:
        if self.checkpoint is not None and hasattr(self.model, "will_load"):
            self.model.will_load(read_metadata(self.checkpoint))
        if self.resumed is None:
            return
        run_id = self.resumed.record.get("mlflow_run")
        for logger in self.trainer.loggers:
            if hasattr(logger, "continue_folder"):
                logger.continue_folder(self.resumed.folder)
            elif hasattr(logger, "continue_run") and run_id is not None:
                logger.continue_run(run_id)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in OWN:
            plain = plain_config(self._parser(subcommand), self.config[subcommand])
            del kwargs["datamodule"]
            if subcommand == "export":
                return kwargs | {"origin": Export(self.checkpoint, self.experiment, plain)}
            return kwargs | {"talk": Chat(self.checkpoint, self.experiment, plain, self.runs)}
        checkpoint = str(self.checkpoint) if self.checkpoint else None
        return kwargs | {"ckpt_path": checkpoint, "weights_only": True}

    def after_fit(self) -> None:
        self._show()

    def after_validate(self) -> None:
        self._show()

    def after_test(self) -> None:
        self._show()

    def _show(self) -> None:
        folder = self.trainer.log_dir
        trial = self.config[self.subcommand].trainer.fast_dev_run
        if folder is not None and self.trainer.is_global_zero and not trial:
            show_run(Run(Path(folder)), Console())


def _set(section: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        section[key] = value


def _sections() -> dict[str, list[str]]:
    """Valid keys of what is no class: the top level and the trainer."""
    top = ["seed_everything", "trainer", "model", "data", "ckpt_path", "resume", *NAMED_CALLBACKS]
    for own in (Trainer.export, Trainer.chat):
        top += [name for name in inspect.signature(own).parameters if name not in ARGUMENTS]
    return {"": top, "trainer": list(inspect.signature(L.Trainer).parameters)}
