"""`python -m cirlab export`: a checkpoint as a folder that other libraries load by themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from cirlab.command.checkpoint_config import CONFIG
from cirlab.command.loading import Loadable, load_method
from cirlab.encoders.export import Exported
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_folder
from cirlab.reporting.model_card import ModelCard, results_of, run_of
from cirlab.reporting.run import UNTRAINED

log = logging.getLogger(__name__)


class Method(Loadable, Protocol):
    """What is asked of a method; see `lightning_modules.learner.Learner`."""

    def check_export(self, merged: bool) -> None: ...
    def frozen_base(self) -> dict[str, str]: ...
    def frozen_fingerprint(self) -> str: ...
    def export(self, folder: Path, merged: bool) -> Exported: ...


@dataclass(frozen=True)
class Export:
    """What is to be exported, and where to.

    Attributes:
        checkpoint: its path; None where the command line chose none.
        experiment: its name.
        config: of this call, for checkpoints that hold none.
        output: the folder to write; None puts it beside the checkpoint's run.
        merged: add adapters to the weights they adapt.
        overwrite: replace a folder that is there.
    """

    checkpoint: Path | None
    experiment: str
    config: Mapping[str, Any]
    output: Path | None = None
    merged: bool = False
    overwrite: bool = False

    def run(self, method: Method, convert: Callable[[Any], Any] = lambda method: method) -> Path:
        """Load the checkpoint as an evaluation does and write the folder, whole or not at all.

        Args:
            method: as the configuration describes it, without weights.
            convert: brings its weights to the precision that they were trained in.

        Raises:
            UserError: the method or the checkpoint has nothing to export, or the folder is there.
        """
        method.check_export(self.merged)
        if self.checkpoint is None:
            raise UserError(
                f"ckpt_path is {UNTRAINED}, but export writes what was learned; give a checkpoint"
            )
        folder = self._folder(self.checkpoint)
        checkpoint = load_method(method, self.checkpoint, convert)
        base, fingerprint = method.frozen_base(), method.frozen_fingerprint()
        config = checkpoint.get(CONFIG) or dict(self.config)
        with whole_folder(folder) as unfinished:
            exported = method.export(unfinished, self.merged)
            _settle(unfinished, folder)
            _write(unfinished / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            card = ModelCard(
                experiment=self.experiment,
                what=exported.what,
                code=exported.code,
                method=config["model"]["class_path"],
                data=_data(config),
                base=base,
                fingerprint=fingerprint,
                step=checkpoint["global_step"],
                record=run.record if (run := run_of(self.checkpoint)) else {},
                results=results_of(self.checkpoint, checkpoint["global_step"]),
            )
            _write(unfinished / "README.md", card.markdown())
            _let_others_read(unfinished)
        log.info("exported to %s; its README.md says how to load it", folder)
        return folder

    def _folder(self, checkpoint: Path) -> Path:
        folder = self.output
        if folder is None:
            run = run_of(checkpoint)
            if run is None:
                raise UserError(
                    f"{checkpoint} lies in no run's folder, so that there is no place for the "
                    "export; give --output (make: OUT=)"
                )
            folder = run.folder / ("export_merged" if self.merged else "export")
        if folder.exists() and not self.overwrite:
            raise UserError(
                f"{folder} is there already; give another --output (make: OUT=), or --overwrite "
                "true to replace it"
            )
        return folder.resolve()


def _settle(unfinished: Path, folder: Path) -> None:
    """Let configurations that name their own folder name the final one; open_clip's may."""
    for config in unfinished.rglob("open_clip_config.json"):
        _write(config, config.read_text(encoding="utf-8").replace(str(unfinished), str(folder)))


def _let_others_read(folder: Path) -> None:
    """Give every file the permissions that files of this user have; safetensors takes most away."""
    usual = (folder / "README.md").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(usual)


def _data(config: Mapping[str, Any]) -> str:
    data = config.get("data") or {}
    records = (data.get("init_args") or {}).get("records")
    return f"`{data.get('class_path', 'unknown')}`" + (f", {records}" if records else "")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
