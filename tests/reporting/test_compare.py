from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.benchmarks.base import Protocol
from cirlab.errors import UserError
from cirlab.reporting.compare import by_protocol, main, select_runs, show_comparison
from cirlab.reporting.run import write_json


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
    assert "b, not comparable with its first table: other pool_size" in text
    assert "25.00" in text
    assert "12.5" in text


OTHER = {
    "benchmark": "c",
    "pool_size": 99,
    "queries": 49,
    "exclusion": "none",
    "query_template": "a photo that {text}",
    "annotations": "abd",
    "tie_rule": "optimistic",
    "score_dtype": "bfloat16",
    "index": "IVF256,Flat",
    "candidates": "own, 15",
    "wordings": 2,
    "rerank_depth": 16,
    "views": "8 prompts, 0123456789abcdef",
}


def test_every_part_of_a_protocol_is_tried_below() -> None:
    assert OTHER.keys() == result(0.1)["protocol"].keys()


@pytest.mark.parametrize("name", [*OTHER, "index_recall_at_10", "skipped_images"])
def test_results_that_differ_in_anything_are_not_shown_in_one_table(
    tmp_path: Path, name: str
) -> None:
    first, other = result(0.1), result(0.2)
    if name == "skipped_images":
        other[name] = 3
    else:
        other["protocol"][name] = OTHER.get(name, 0.9)
    write_json(tmp_path / "x/version_0/results.json", {"b": first})
    write_json(tmp_path / "y/version_0/results.json", {"b": other})
    runs = select_runs([], tmp_path, every=False)
    assert [[run for run, _ in rows] for _, rows in by_protocol(runs)["b"]] == [["x #0"], ["y #0"]]
    titles = [line for line in shown(runs).splitlines() if line.startswith("b")]
    assert titles[0] == "b"
    assert titles[1].startswith(f"b, not comparable with its first table: other {name}")


def test_equal_numbers_of_unreadable_images_are_said() -> None:
    """Which ones they were, nobody knows."""

    class Both:
        results: Any = {"b": result(0.1) | {"skipped_images": 3}}  # noqa: RUF012

    text = shown({"x #0": Both(), "y #0": Both()})
    assert "b (3 images could not be read)" in text
    assert "not comparable" not in text


@pytest.mark.parametrize("name", OTHER)
def test_what_a_result_does_not_tell_is_not_taken_as_equal(tmp_path: Path, name: str) -> None:
    silent = result(0.1)
    del silent["protocol"][name]
    for experiment in "xy":
        write_json(tmp_path / f"{experiment}/version_0/results.json", {"b": silent})
    runs = select_runs([], tmp_path, every=False)
    assert len(by_protocol(runs)["b"]) == 2
    assert f"not comparable with its first table: other {name}" in shown(runs)


def test_benchmarks_of_other_names_have_their_own_tables(tmp_path: Path) -> None:
    write_json(tmp_path / "x/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "y/version_0/results.json", {"c": result(0.1)})
    runs = select_runs([], tmp_path, every=False)
    assert sorted(by_protocol(runs)) == ["b", "c"]


def test_a_run_without_numbers_hides_no_earlier_one(tmp_path: Path) -> None:
    """Such as a test split whose answers a server keeps."""
    held_back = result(0.1) | {"metrics": {}, "baselines": {}}
    write_json(tmp_path / "x/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "x/version_1/results.json", {"t": held_back})
    write_json(tmp_path / "y/version_0/results.json", {"t": held_back})
    assert list(select_runs([], tmp_path, every=False)) == ["x #0"]
    assert list(select_runs(["x"], tmp_path, every=True)) == ["x #0"]
    with pytest.raises(UserError, match="experiment y has no results"):
        select_runs(["y"], tmp_path, every=False)
    write_json(tmp_path / "x/version_2/results.json", {"b": result(0.3), "t": held_back})
    runs = select_runs(["x"], tmp_path, every=False)
    assert list(runs) == ["x #2"]
    assert list(by_protocol(runs)) == ["b"]


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


def test_weights_of_evaluations_are_named_and_untrained_ones_come_last(tmp_path: Path) -> None:
    """An evaluation before training does not take the place of what was trained."""
    trained, best = "trained here", "runs/x/version_0/checkpoints/best.ckpt"
    for number, weights in enumerate((trained, best, "untrained")):
        write_json(tmp_path / f"x/version_{number}/results.json", {"b": result(0.1)})
        write_json(tmp_path / f"x/version_{number}/run.json", {"weights": weights})
    write_json(tmp_path / "y/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "y/version_0/run.json", {"weights": "untrained"})
    newest = select_runs([], tmp_path, every=False)
    assert list(newest) == ["x #1 (version_0/best.ckpt)", "y #0 (untrained)"]
    every = select_runs(["x"], tmp_path, every=True)
    assert list(every) == ["x #1 (version_0/best.ckpt)", "x #0", "x #2 (untrained)"]
