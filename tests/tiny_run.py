"""A whole experiment that trains and evaluates in seconds, on the real classes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import yaml

BENCHMARK = "world_text_to_image"
#: Batches of one epoch.
STEPS = 8


def tiny_experiment(folder: Path, **overrides: Any) -> Path:
    """Write `tiny.yaml`: a CLIP of 16 dimensions on 8 batches of world scenes, no MLflow.

    Overrides are merged into it, nested as YAML is.
    """
    config = {
        "model": {
            "class_path": "lightning_modules.CLIP",
            "init_args": {
                "from_scratch": {
                    "vocabulary": "world",
                    "embed_dim": 16,
                    "vision": {
                        "image_size": 64,
                        "patch_size": 32,
                        "width": 16,
                        "layers": 1,
                        "head_width": 16,
                    },
                    "text": {"context_length": 80, "width": 16, "heads": 1, "layers": 1},
                },
                "export_to": str(folder / "exported"),
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "datamodules.WorldData",
            "init_args": {
                "samples": 16 * STEPS,
                "batch_size": 16,
                "eval_batch_size": 32,
                "num_workers": 0,
                "benchmarks": [
                    {
                        "class_path": "cirlab.benchmarks.WorldTextToImage",
                        "init_args": {"scenes": 40},
                    }
                ],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": [
                {"class_path": "callbacks.CsvLog", "init_args": {"save_dir": str(folder / "runs")}}
            ],
        },
        "contact_sheet": None,
        "last_checkpoint": {"init_args": {"every_n_train_steps": 3}},
        "best_checkpoint": {"init_args": {"monitor": f"val/{BENCHMARK}/recall_at_10"}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(_merged(config, overrides)), encoding="utf-8")
    return path


def _merged(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = _merged(config[key], value) if nested else value
    return config


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


class KillAt(L.Callback):
    """Ends the run where the variable KILL_AT says, if it is set.

    "13": after optimiser step 13. "validation": when a validation begins. "evaluation": when its
    first batch is encoded. With KILL_BY=SIGKILL the whole process ends, otherwise `Killed` is
    raised.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if os.environ.get("KILL_AT") == str(trainer.global_step):
            self._kill()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if os.environ.get("KILL_AT") == "validation":
            self._kill()

    def on_validation_batch_end(self, *_: Any) -> None:
        if os.environ.get("KILL_AT") == "evaluation":
            self._kill()

    def _kill(self) -> None:
        if os.environ.get("KILL_BY") == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed
