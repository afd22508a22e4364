"""The command line: `python -m cirlab fit|validate|export|chat -c experiments/collm.yaml`.

LightningCLI with `experiments/_base.yaml` always read first, named runs that can be resumed,
and one sentence instead of a traceback where the user can mend what is wrong.
"""

from __future__ import annotations

import errno
import inspect
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry
from rich.console import Console

from cirlab import distributed
from cirlab.command.chat import Chat, QuestionerName
from cirlab.command.checkpoint_choice import (
    best_checkpoint,
    choose_checkpoint,
    experiments_around,
)
from cirlab.command.checkpoint_config import CONFIG, check_config, read_metadata
from cirlab.command.configuration import (
    SUBCOMMANDS,
    config_files,
    experiment_name,
    experiment_names,
    require_experiment,
    with_base,
)
from cirlab.command.cpu import affordable_precision, tune_for_cpu
from cirlab.command.devices import check_devices, check_name, runs_on_cpu
from cirlab.command.explain import explain
from cirlab.command.export import Export
from cirlab.command.references import RawConfig, check_references, read_config
from cirlab.command.strategies import check_strategy
from cirlab.errors import UserError
from cirlab.reporting.results import show_run
from cirlab.reporting.run import RUNS, UNTRAINED, Run, newest_with_last

log = logging.getLogger(__name__)

#: Callbacks that `_base.yaml` names, so that an experiment can change one of their arguments.
NAMED_CALLBACKS = ("retrieval", "contact_sheet", "last_checkpoint", "best_checkpoint")
#: What is done with a checkpoint, by subcommand, where no evaluation is.
DOING = {"export": "exporting", "predict": "predicting with", "chat": "chatting with"}
#: Trainer arguments of what one process does alone.
ONE_DEVICE: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
#: No abbreviations: `--trainer.bar` would set `barebones`.
PARSER: dict[str, Any] = {"parser_mode": "omegaconf", "allow_abbrev": False}
#: Arguments of the subcommands' methods that no option sets.
ARGUMENTS = ("self", "model", "origin", "talk", "ckpt_path")
#: What the packages of this repository say is for the user; libraries speak when it matters.
PACKAGES = ("cirlab", "lightning_modules", "datamodules", "callbacks")


class ParserError(UserError):
    """The parser's own report, in many lines."""


class ArgumentParser(LightningArgumentParser):
    """Raises where the parent prints its usage and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ParserError(message) from ex


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration once something has run, and into every checkpoint."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing yet: data or weights may still be refused."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CONFIG] = plain_config(self.parser, self.config)
        # Lightning would take these for the truth, and they may hold classes that a
        # weights-only load refuses.
        checkpoint.pop(pl_module.CHECKPOINT_HYPER_PARAMS_KEY, None)

    def _write(self, trainer: L.Trainer) -> None:
        if self.already_saved or trainer.sanity_checking:
            return
        self.already_saved = True
        # A collective: every process has to ask, and equally often.
        log_dir = trainer.log_dir
        if trainer.is_global_zero and log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / self.config_filename, skip_unset=False, overwrite=True
            )


class Trainer(L.Trainer):
    """Lightning's, whose methods are the subcommands, with two more."""

    def export(
        self,
        model: Any,
        origin: Export,
        output: str | None = None,
        merged: bool = False,
        overwrite: bool = False,
        ckpt_path: str | None = None,
    ) -> None:
        """Write what a checkpoint learned as a folder that peft, transformers and open_clip load.

        Args:
            model: the method.
            origin: checkpoint and experiment.
            output: the folder to write; null puts it into the run's.
            merged: add adapters to the weights they adapt, instead of writing them alone.
            overwrite: replace a folder that is there.
            ckpt_path: the checkpoint; null takes the best one of the experiment's newest run.
        """
        folder = Path(output) if output else None
        wanted = replace(origin, output=folder, merged=merged, overwrite=overwrite)
        wanted.run(model, convert=self.precision_plugin.convert_module)

    def chat(
        self,
        model: Any,
        talk: Chat,
        root: str | None = None,
        target: str | None = None,
        top: int = 10,
        questioner: QuestionerName = "information_gain",
        answerer: str = "zoo:tiny_mllm",
        llm: str | None = None,
        registry: str | None = None,
        sheet: str | None = None,
        batch_size: int = 32,
        ckpt_path: str | None = None,
    ) -> None:
        """Find an image of a folder by talking at the terminal.

        Args:
            model: the method.
            talk: checkpoint and experiment.
            root: folder of images; null takes pictures of the built-in world.
            target: path of an image whose rank is told after each round.
            top: images that are shown, and that the questioner tells apart.
            questioner: who asks; information_gain asks what tells the images apart that are ranked
                first, list asks one question after the other, llm is the instruction LLM.
            answerer: multimodal LLM or BLIP (hub name, local folder, zoo:name) by whose answers
                information_gain tells images apart.
            llm: instruction LLM (hub name, local folder, zoo:name), the questioner of llm; proposes
                questions to information_gain.
            registry: questions that can be asked: world, photographs, or a YAML file; null takes
                those of the folder's kind.
            sheet: the contact sheet, .png; null: runs/chat/<experiment>.png.
            batch_size: images encoded at once.
            ckpt_path: the checkpoint; null takes the best one of the experiment's newest run.
        """
        wanted = replace(
            talk,
            root=root,
            target=target,
            top=top,
            questioner=questioner,
            answerer=answerer,
            llm=llm,
            registry=registry,
            sheet=Path(sheet) if sheet else None,
            batch_size=batch_size,
        )
        precision = self.precision_plugin
        wanted.run(
            model,
            self.strategy.root_device,
            Console(),
            convert=precision.convert_module,
            arithmetic=precision.forward_context,
        )


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
            if (own := _own_sentence(error)) is not None:
                raise own from error
            raise UserError(explain(str(error), self.files, args, _sections())) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: the YAML is the truth, see `cirlab.command.checkpoint_config`."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        plain = plain_config(self._parser(self.subcommand), config)
        check_references(self.files, plain)
        exporting = self.subcommand == "export"
        if exporting:
            _set(config.trainer, _on_one_cpu(config.trainer.precision))
        elif self.subcommand == "chat":
            _set(config.trainer, ONE_DEVICE)
        trainer = config.trainer
        check_name("accelerator", trainer.accelerator, AcceleratorRegistry.available_accelerators())
        check_name("strategy", trainer.strategy, StrategyRegistry.available_strategies())
        check_devices(trainer.accelerator, trainer.devices)
        if not exporting:
            check_strategy(plain)
        if runs_on_cpu(config.trainer.accelerator) and not exporting:
            config.trainer.precision = affordable_precision(str(config.trainer.precision))
            tune_for_cpu(config.trainer.precision)
        parser = self._parser(self.subcommand)
        parser.callback_keys = [key for key in NAMED_CALLBACKS if config.get(key) is not None]
        self._name_runs(config)
        self.checkpoint = self._choose_checkpoint(config)
        if exporting or self.subcommand == "chat":
            parser.callback_keys = []
            self.runs = _runs_root(config)
            _set(trainer, {"logger": False, "callbacks": None})
        if self.checkpoint is not None:
            saved = read_metadata(self.checkpoint).get(CONFIG)
            if saved is not None:
                check_config(self.checkpoint, saved, plain, fit=self.subcommand == "fit")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if (own := _own_sentence(error)) is not None:
                raise own from error
            raise

    def _name_runs(self, config: Any) -> None:
        """Call runs by their experiment where the logger has no name of its own."""
        for entry in _loggers(config):
            for key in ("name", "experiment_name"):
                if key in entry.init_args and entry.init_args[key] is None:
                    entry.init_args[key] = self.experiment
                elif key == "name" and entry.init_args.get(key):
                    self.experiment = entry.init_args[key]

    def _choose_checkpoint(self, config: Any) -> Path | None:
        """The checkpoint to start from, None for none.

        Raises:
            UserError: an evaluation of a method that learns, without any checkpoint.
        """
        root = _runs_root(config)
        given, config["ckpt_path"] = config.get("ckpt_path"), None
        if self.subcommand == "fit":
            # What an experiment that is evaluated as it is says in its YAML.
            start = None if given == UNTRAINED else given
            return self._choose_resumed(root, resume=config.resume, given=start)
        if given is not None:
            return None if given == UNTRAINED else Path(given)
        found = choose_checkpoint(self.experiment, config.model.class_path, root)
        if found is not None:
            log.info("%s %s", DOING.get(str(self.subcommand), "evaluating"), found)
        elif _learns(config.model.class_path):
            raise UserError(self._no_checkpoint(root))
        return found

    def _no_checkpoint(self, root: Path) -> str:
        # What those around it have trained is another method, or it would have been chosen.
        around = [
            name
            for name in experiments_around(self.experiment)
            if name in experiment_names() and best_checkpoint(name, root) is None
        ]
        train = " or ".join(["it", *around])
        before = f", {UNTRAINED} for what it is before training"
        or_that = before if self.subcommand != "export" else ""
        return (
            f"experiment {self.experiment} has no checkpoint below {root} yet; train {train}, or "
            f"give --ckpt_path (make: CKPT=){or_that}"
        )

    def _choose_resumed(self, root: Path, *, resume: bool, given: str | None) -> Path | None:
        if not resume:
            return Path(given) if given else None
        self.resumed = newest_with_last(self.experiment, root)
        if self.resumed is None:
            log.info("no run of %s has a checkpoint yet: starting afresh", self.experiment)
            return None
        log.info("resuming %s", self.resumed.folder)
        return self.resumed.last

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
        if subcommand in ("export", "chat"):
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


def plain_config(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """A parsed configuration as strings, numbers, lists and mappings."""
    return yaml.safe_load(parser.dump(config, skip_link_targets=False, skip_unset=False))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 2 for what the user can mend."""
    args = list(sys.argv[1:] if args is None else args)
    _quiet_libraries()
    try:
        require_experiment(args)
        args = with_base(args)
        RetrievalCLI(args, [read_config(file) for file in config_files(args)])
    except UserError as error:
        return _refuse(error)
    except MisconfigurationException as error:
        return _refuse(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return _refuse(UserError(f"{error}; free space on that disk and resume"))
    finally:
        distributed.leave()
    return 0


def _refuse(error: Exception) -> int:
    text = str(error)
    # torch repeats the traceback of a loader's worker in the message; the last line is ours.
    sentence = text.strip().splitlines()[-1] if "Original Traceback" in text else text
    sentence = sentence.rpartition("UserError: ")[2]
    log.error("error: %s", " ".join(sentence.split()))
    return 2


def _own_sentence(error: Exception) -> UserError | None:
    """What a class of ours said of its arguments, beneath the parser's report of it."""
    found: UserError | None = None
    beneath = error.__cause__ or error.__context__
    while beneath is not None:
        if isinstance(beneath, UserError) and not isinstance(beneath, ParserError):
            found = beneath
        beneath = beneath.__cause__ or beneath.__context__
    return found


def _quiet_libraries() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning about its own insides, the folder of a resumed run, frozen towers, which are in eval
    # mode because their running statistics must not move, and short trials.
    messages = (
        ".*LeafSpec.*",
        # peft asks transformers by an old name.
        ".*is_gradient_checkpointing.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from .*",
        ".*module\\(s\\) in eval mode at the start of training.*",
        ".*is smaller than the logging interval.*",
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)


def _loggers(config: Any) -> list[Any]:
    loggers = config.trainer.logger
    return [entry for entry in loggers if "init_args" in entry] if isinstance(loggers, list) else []


def _runs_root(config: Any) -> Path:
    """The folder of all runs."""
    folders = (e.init_args.save_dir for e in _loggers(config) if "save_dir" in e.init_args)
    return Path(next(folders, RUNS))


def _on_one_cpu(precision: str | int) -> dict[str, Any]:
    """Trainer arguments for writing files, whatever devices the training needed.

    Weights stay in the precision that they were trained in; none is computed with.
    """
    kept = precision if str(precision).endswith("-true") else "32-true"
    return ONE_DEVICE | {"accelerator": "cpu", "precision": kept, "plugins": None}


def _set(section: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        section[key] = value


def _learns(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    return bool(getattr(getattr(import_module(module), name), "train_record", True))


def _sections() -> dict[str, list[str]]:
    """Valid keys of what is no class: the top level and the trainer."""
    top = ["seed_everything", "trainer", "model", "data", "ckpt_path", "resume", *NAMED_CALLBACKS]
    for own in (Trainer.export, Trainer.chat):
        top += [name for name in inspect.signature(own).parameters if name not in ARGUMENTS]
    return {"": top, "trainer": list(inspect.signature(L.Trainer).parameters)}
