"""The overlays of CIRR and Fashion-IQ evaluate any experiment on the official layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cirlab.__main__ import main
from cirlab.command.configuration import EXPERIMENTS
from tests.benchmarks.composed_files import write_cirr, write_fashioniq
from tests.benchmarks.kept_rankings import KEEP, assert_scored_as_ranked
from tests.tiny_run import tiny_experiment


def results(folder: Path, name: str) -> dict[str, Any]:
    """What an untrained model reaches by the overlay as it is, but for the published sizes."""
    overlay = yaml.safe_load((EXPERIMENTS / "overlays" / f"{name}.yaml").read_text())
    for benchmark in overlay["data"]["init_args"]["benchmarks"]:
        assert benchmark["init_args"]["root"] == f"${{oc.env:DATA_ROOT}}/{name}"
        assert benchmark["init_args"]["official"]
        benchmark["init_args"]["official"] = False
    path = folder / "overlays" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(overlay))
    options = [
        "-c",
        str(tiny_experiment(folder, trainer=KEEP)),
        "-c",
        str(path),
        "--ckpt_path",
        "untrained",
    ]
    assert main(["validate", *options]) == 0
    (file,) = folder.rglob("results.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_cirr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    write_cirr(tmp_path / "cirr")
    found = results(tmp_path, "cirr")
    assert list(found) == ["cirr_val"]
    assert found["cirr_val"]["protocol"]["pool_size"] == 9
    assert_scored_as_ranked(found)
    assert found["cirr_val"]["metrics"]["recall_at_10"] == 1, "the pool holds nine images"
    assert {"image_only", "text_only", "sum"} <= set(found["cirr_val"]["baselines"])


def test_fashioniq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    write_fashioniq(tmp_path / "fashioniq")
    found = results(tmp_path, "fashioniq")
    assert list(found) == ["fashioniq_original", "fashioniq_union"]
    assert_scored_as_ranked(found)
    pools = [found[name]["protocol"]["candidates"] for name in found]
    assert pools == ["own, 3, 14", "own, 2, 3"]
    for result in found.values():
        assert result["protocol"]["pool_size"] == 19
        assert set(result["breakdown"]["category"]) == {"dress", "shirt", "toptee"}
        assert result["metrics"]["macro_recall_at_50"] == 1
