from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.benchmarks.base import Protocol
from cirlab.compare import by_protocol, main, select_runs, show_comparison
from cirlab.errors import UserError
from cirlab.runs import write_json


def result(recall: float, pool: int = 100, **baselines: float) -> dict[str, Any]:
    protocol = Protocol("b", pool, 50, "reference", "{text}", "abc").as_dict()
    return {
        "protocol": protocol,
        "metrics": {"recall_at_10": recall, "mean_rank": 12.5},
        "baselines": {name: {"recall_at_10": value} for name, value in baselines.items()},
    }


def shown(runs: dict[str, Any]) -> str:
    out = io.StringIO()
    show_comparison(runs, Console(file=out, width=200))
    return out.getvalue()


def test_one_table_for_each_protocol(tmp_path: Path) -> None:
    write_json(tmp_path / "x/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "x/version_1/results.json", {"b": result(0.25, sum=0.2)})
    write_json(tmp_path / "y/version_0/results.json", {"b": result(0.5, pool=90)})
    write_json(tmp_path / "z/version_0/results.json", {"b": result(0.75)})
    runs = select_runs([], tmp_path, every=False)
    assert list(runs) == ["x #1", "y #0", "z #0"]
    tables = by_protocol(runs)["b"]
    assert [[name for name, _ in rows] for _, rows in tables] == [
        ["x #1", "  sum", "z #0"],
        ["y #0"],
    ]
    text = shown(runs)
    assert "not comparable with the table above: other pool_size" in text
    assert "25.00" in text
    assert "12.5" in text


def test_all_versions(tmp_path: Path) -> None:
    for number in (0, 1):
        write_json(tmp_path / f"x/version_{number}/results.json", {"b": result(0.1)})
    assert list(select_runs(["x"], tmp_path, every=True)) == ["x #1", "x #0"]


def test_an_experiment_without_results_names_those_with(tmp_path: Path) -> None:
    write_json(tmp_path / "collm/version_0/results.json", {"b": result(0.1)})
    with pytest.raises(UserError, match="did you mean collm"):
        select_runs(["colm"], tmp_path, every=False)


def test_exit_status_without_any_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--runs", str(tmp_path)]) == 2
    assert "no results" in caplog.text
