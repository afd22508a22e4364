from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cirlab.benchmarks.base import Protocol
from cirlab.errors import UserError
from cirlab.reporting.compare import (
    by_protocol,
    main,
    select_results,
    select_runs,
    show_comparison,
    tags_of,
)
from cirlab.reporting.run import Run, write_json


def result(recall: float, pool: int = 100, **baselines: float) -> dict[str, Any]:
    protocol = Protocol("b", pool, 50, "reference", "{text}", "abc").as_dict()
    return {
        "protocol": protocol,
        "metrics": {"recall_at_10": recall, "mean_rank": 12.5},
        "baselines": {name: {"recall_at_10": value} for name, value in baselines.items()},
    }


def by_facet(found: dict[str, Any], **facets: float) -> dict[str, Any]:
    """The result with a breakdown."""
    breakdown = {"facet": {name: {"recall_at_10": value} for name, value in facets.items()}}
    return found | {"breakdown": breakdown}


def shown(runs: dict[str, Run], tag: str | None = None, **wanted: Any) -> str:
    out = io.StringIO()
    results = select_results(runs, tag=tag, **wanted)
    show_comparison(results, Console(file=out, width=200), tag=tag)
    return out.getvalue()


def tables(runs: dict[str, Run], benchmark: str) -> list[list[str]]:
    """The labels of each table."""
    return [list(found) for _, found in by_protocol(select_results(runs))[benchmark]]


def test_one_table_for_each_protocol(tmp_path: Path) -> None:
    write_json(tmp_path / "x/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "x/version_1/results.json", {"b": result(0.25, sum=0.2)})
    write_json(tmp_path / "y/version_0/results.json", {"b": result(0.5, pool=90)})
    write_json(tmp_path / "z/version_0/results.json", {"b": result(0.75)})
    runs = select_runs([], tmp_path, every=False)
    assert list(runs) == ["x #1", "y #0", "z #0"]
    assert tables(runs, "b") == [["x #1", "z #0"], ["y #0"]]
    text = shown(runs)
    labels = [
        line.split("  ")[0].strip() or line.split()[0]
        for line in text.splitlines()
        if ".00" in line
    ]
    assert labels == ["x #1", "sum", "z #0", "y #0"]
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
}


def test_every_part_of_a_protocol_but_what_the_method_chooses_is_tried_below() -> None:
    assert OTHER.keys() | {"views"} == result(0.1)["protocol"].keys()


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
    assert tables(runs, "b") == [["x #0"], ["y #0"]]
    titles = [line for line in shown(runs).splitlines() if line.startswith("b")]
    assert titles[0] == "b"
    assert titles[1].startswith(f"b, not comparable with its first table: other {name}")


def test_equal_numbers_of_unreadable_images_are_said(tmp_path: Path) -> None:
    """Which ones they were, nobody knows."""
    for experiment in "xy":
        found = result(0.1) | {"skipped_images": 3}
        write_json(tmp_path / f"{experiment}/version_0/results.json", {"b": found})
    text = shown(select_runs([], tmp_path, every=False))
    assert "b (3 images could not be read)" in text
    assert "not comparable" not in text


@pytest.mark.parametrize("name", OTHER)
def test_what_a_result_does_not_tell_is_not_taken_as_equal(tmp_path: Path, name: str) -> None:
    silent = result(0.1)
    del silent["protocol"][name]
    for experiment in "xy":
        write_json(tmp_path / f"{experiment}/version_0/results.json", {"b": silent})
    runs = select_runs([], tmp_path, every=False)
    assert tables(runs, "b") == [["x #0"], ["y #0"]]
    assert f"not comparable with its first table: other {name}" in shown(runs)


VIEWS = ["none", "8 prompts, 0123456789abcdef", "least_squares from 20 images", None]


def test_how_a_method_looks_at_images_is_told_and_splits_no_table(tmp_path: Path) -> None:
    """Methods choose it, as they choose their weights."""
    for name, views in zip("wxyz", VIEWS, strict=True):
        found = result(0.1)
        found["protocol"]["views"] = views
        if views is None:
            del found["protocol"]["views"]
        write_json(tmp_path / f"{name}/version_0/results.json", {"b": found})
    runs = select_runs([], tmp_path, every=False)
    assert tables(runs, "b") == [["w #0", "x #0", "y #0", "z #0"]]
    text = shown(runs)
    told = [line.strip() for line in text.splitlines() if "views" in line]
    assert told == [f"views: {views or 'unknown'}" for views in VIEWS]
    del runs["x #0"], runs["y #0"], runs["z #0"]
    assert "views" not in shown(runs)


def test_the_numbers_of_each_value_of_a_tag_stand_below_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x/version_0/results.json", {"b": by_facet(result(0.3), a=0.2, c=0.6)})
    write_json(tmp_path / "y/version_0/results.json", {"b": by_facet(result(0.5), a=0.5, c=0.7)})
    write_json(tmp_path / "z/version_0/results.json", {"b": by_facet(result(0.7, pool=9), a=0.7)})
    text = shown(select_runs([], tmp_path, every=False), tag="facet")
    of_all, of_facets, of_z, of_zs_facets = text.split("\nb")[1:]
    assert of_facets.startswith(" by facet\n") and "30.00" in of_all and "30.00" in of_facets
    rows = [
        line.split() for line in of_facets.splitlines() if line.startswith("   ") and "0" in line
    ]
    assert rows == [
        ["a", "20.00", "50.00"],
        ["c", "60.00", "70.00"],
        ["macro", "40.00", "60.00"],
        ["all", "30.00", "50.00"],
    ]
    assert "other pool_size" in of_z and "other pool_size by facet" in of_zs_facets


def test_only_some_benchmarks_and_metrics(tmp_path: Path) -> None:
    found = by_facet(result(0.1, sum=0.2), a=0.3)
    found["metrics"] |= {"macro_recall_at_10": 0.3, "recall_at_100": 0.9}
    write_json(tmp_path / "x/version_0/results.json", {"b": found, "c": found})
    runs = select_runs([], tmp_path, every=False)
    results = select_results(runs, benchmarks=["c"], metrics=["recall_at_10"])["x #0"]
    assert list(results) == ["c"]
    assert results["c"]["metrics"] == {"recall_at_10": 0.1, "macro_recall_at_10": 0.3}
    assert results["c"]["baselines"] == {"sum": {"recall_at_10": 0.2}}
    assert results["c"]["protocol"] == found["protocol"]
    averages = select_results(runs, metrics=["macro_recall_at_10"])["x #0"]
    assert averages["b"]["metrics"] == {"macro_recall_at_10": 0.3}
    assert averages["b"]["breakdown"] == {"facet": {"a": {}}}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--by", "colour"], "the tag 'colour'; there are: facet"),
        (["--benchmark", "d"], "the benchmark 'd'; there are: b, c"),
        (["--metric", "recall"], "the metric 'recall'; there are: mean_rank, recall_at_10"),
        (["--benchmark", "c", "--by", "facet"], "the tag 'facet'; there are: none"),
    ],
)
def test_what_no_result_has_is_told_with_what_there_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, option: list[str], says: str
) -> None:
    found = {"b": by_facet(result(0.3), a=0.2), "c": result(0.1)}
    write_json(tmp_path / "x/version_0/results.json", found)
    assert main(["x", "--runs", str(tmp_path), *option]) == 2
    assert caplog.text.endswith(f"no result of these runs has {says}\n")


def test_the_command_breaks_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"b": by_facet(result(0.3), a=0.2), "c": result(0.1)}
    write_json(tmp_path / "x/version_0/results.json", found)
    assert main(["x", "--runs", str(tmp_path), "--by", "facet", "--metric", "recall_at_10"]) == 0
    text = capsys.readouterr().out
    assert "b by facet" in text and "c by facet" not in text and "12.5" not in text
    assert tags_of(select_results(select_runs([], tmp_path, every=False))) == ["facet"]


def test_benchmarks_of_other_names_have_their_own_tables(tmp_path: Path) -> None:
    write_json(tmp_path / "x/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "y/version_0/results.json", {"c": result(0.1)})
    runs = select_runs([], tmp_path, every=False)
    assert sorted(by_protocol(select_results(runs))) == ["b", "c"]


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
    assert list(by_protocol(select_results(runs))) == ["b"]


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


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("runs/x/arm/version_3/checkpoints/best.ckpt", "version_3/best.ckpt"),
        ("runs/x/version_3/checkpoints/last.ckpt", "x/version_3/last.ckpt"),
        ("elsewhere.ckpt", "elsewhere.ckpt"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_told_with_it(
    tmp_path: Path, weights: str, told: str
) -> None:
    write_json(tmp_path / "x/arm/version_0/results.json", {"b": result(0.1)})
    write_json(tmp_path / "x/arm/version_0/run.json", {"weights": weights})
    assert list(select_runs([], tmp_path, every=False)) == [f"x/arm #0 ({told})"]
