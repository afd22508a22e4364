"""The official protocols on the world, from the overlay to the results of a run."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import yaml

import cirlab.benchmarks
from cirlab.cli import main
from cirlab.command.configuration import EXPERIMENTS
from tests.benchmarks.kept_rankings import KEEP, assert_scored_as_ranked
from tests.tiny_run import tiny_experiment

OVERLAY = EXPERIMENTS / "overlays" / "world.yaml"
#: What makes them small.
SMALL = {
    "scenes": 40,
    "families": 14,
    "queries_per_family": 2,
    "sets_per_family": 1,
    "queries_per_category": 10,
    "queries": 20,
    "queries_per_task": 5,
    "queries_per_facet": 3,
    "negatives": 30,
    "dialogues": 8,
}


def named(overlay: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Class names and arguments of the overlay's benchmarks."""
    found = overlay["data"]["init_args"]["benchmarks"]
    return [(entry["class_path"].rpartition(".")[2], entry["init_args"]) for entry in found]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an untrained CLIP reaches on small ones."""
    folder = tmp_path_factory.mktemp("world")
    overlay = yaml.safe_load(OVERLAY.read_text(encoding="utf-8"))
    for _, arguments in named(overlay):
        arguments |= {key: SMALL[key] for key in arguments.keys() & SMALL.keys()}
    path = folder / "world.yaml"
    path.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    experiment = tiny_experiment(folder, trainer=KEEP)
    options = ["-c", str(experiment), "-c", str(path), "--ckpt_path", "untrained"]
    assert main(["validate", *options]) == 0
    (file,) = folder.rglob("results.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_the_overlay_names_every_argument_with_its_default() -> None:
    benchmarks = named(yaml.safe_load(OVERLAY.read_text(encoding="utf-8")))
    worlds = {name for name in cirlab.benchmarks.__all__ if name.startswith("World")}
    assert {name for name, _ in benchmarks} == worlds
    for name, arguments in benchmarks:
        parameters = inspect.signature(getattr(cirlab.benchmarks, name)).parameters
        assert set(arguments) == set(parameters)
        for key, value in arguments.items():
            chosen = name == "WorldFashionIQ" and key in ("pool", "name")
            assert chosen or value == parameters[key].default, (name, key)


def test_every_protocol_runs_to_its_end(results: dict[str, Any]) -> None:
    overlay = yaml.safe_load(OVERLAY.read_text(encoding="utf-8"))
    assert list(results) == [arguments["name"] for _, arguments in named(overlay)]
    queries = {name: result["protocol"]["queries"] for name, result in results.items()}
    assert queries["world_fashioniq_union"] == 30 and queries["world_genecis"] == 20
    assert queries["world_facet"] == 30 and queries["world_dialogue"] == 8 * 11


def test_rules_are_those_of_the_official_benchmarks(results: dict[str, Any]) -> None:
    exclusions = {name: result["protocol"]["exclusion"] for name, result in results.items()}
    assert exclusions.pop("world_cirr") == exclusions.pop("world_composed") == "the reference image"
    assert set(exclusions.values()) == {"none"}
    candidates = {name: result["protocol"]["candidates"] for name, result in results.items()}
    assert candidates["world_cirr"] == candidates["world_circo"] == "the whole gallery"
    assert candidates["world_genecis"] == "own, 10, 15" and candidates["world_facet"] == "own, 31"


def test_metrics_are_those_of_the_rankings(results: dict[str, Any]) -> None:
    assert_scored_as_ranked(results)
    headlines = {
        "world_cirr": "mean_of_recall_at_5_and_subset_recall_at_1",
        "world_fashioniq_original": "macro_recall_at_50",
        "world_circo": "map_at_5",
        "world_genecis": "macro_recall_at_1",
        "world_facet": "macro_recall_at_5",
        "world_dialogue": "cumulative_hits_at_10",
    }
    assert {name for name, metric in headlines.items() if metric in results[name]["metrics"]} == {
        *headlines
    }


def test_composed_queries_stand_beside_their_parts(results: dict[str, Any]) -> None:
    for name in ("world_cirr", "world_fashioniq_union", "world_circo", "world_genecis"):
        assert {"image_only", "text_only", "sum"} <= set(results[name]["baselines"])


def test_hits_are_told_by_round_and_never_fall(results: dict[str, Any]) -> None:
    rounds = results["world_dialogue"]["breakdown"]["round"]
    assert list(rounds) == [str(number) for number in range(11)]
    hits = [values["cumulative_hits_at_10"] for values in rounds.values()]
    assert hits == sorted(hits)
