"""`python -m cirlab.zoo.manifest`: write down how each model of the zoo was made."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cirlab.encoders.names import ZOO
from cirlab.reporting.run import Run, runs_of, write_json
from cirlab.zoo import rewriting, speech

log = logging.getLogger(__name__)

#: Model folder of the zoo, by the experiment that makes it.
MADE_BY = {
    "zoo/clip": "tiny_clip",
    "zoo/llm": "tiny_llm",
    "zoo/mllm": "tiny_mllm",
    "zoo/rewriter": "tiny_rewriter",
    "zoo/blip": "tiny_blip",
}
#: Experiments that a model's last one starts from, in order.
BEFORE = {
    "zoo/mllm": ("zoo/tower",),
    "zoo/blip": ("zoo/blip_tower", "zoo/blip_contrast"),
}
#: Models that speak, and what marks what they say.
SPEAKING: dict[str, Callable[[str], dict[str, Any]]] = {
    "tiny_mllm": speech.measure,
    "tiny_rewriter": rewriting.measure,
}
MANIFEST = "manifest.json"


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model, the manifest aside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def manifest(run: Run, experiment: str, folder: Path) -> dict[str, Any]:
    """What made a model and what it reaches: metrics of its benchmarks, and its last losses."""
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    results = run.results or {}
    steps = (*BEFORE.get(experiment, ()), experiment)
    commands = [f"python -m cirlab fit -c experiments/{name}.yaml" for name in steps]
    return {
        "command": " && ".join(commands),
        "seed": {"run": config["seed_everything"], "data": config["data"]["init_args"]["seed"]},
        "samples": config["data"]["init_args"]["samples"],
        "sha256": checksums(folder),
        "reached": {
            name: {"metrics": result["metrics"], "protocol": result["protocol"]}
            for name, result in results.items()
        },
        "says": SPEAKING[folder.name](f"zoo:{folder.name}") if folder.name in SPEAKING else {},
        "last_losses": _last_losses(run.folder / "metrics.csv"),
        "made_with": {
            name: run.record[name]
            for name in ("code_revision", "device", "epoch_seconds", "global_batch", "packages")
        },
    }


def _last_losses(path: Path) -> dict[str, float]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses: dict[str, float] = {}
    for row in rows:
        losses |= {k: float(v) for k, v in row.items() if k.startswith("train/") and v}
    return losses


def main() -> None:
    """Write the manifest of every model whose experiment has run here."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for experiment, name in MADE_BY.items():
        runs = runs_of(experiment)
        if not runs:
            log.info("%s has not run here; its manifest stays as it is", experiment)
            continue
        path = ZOO / name / MANIFEST
        write_json(path, manifest(runs[0], experiment, path.parent))
        log.info("wrote %s", path)


if __name__ == "__main__":
    main()
