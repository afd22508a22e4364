from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cirlab.reporting.breakdown import headings, show_breakdown

#: As long as the longest of COCO-Facet and of the built-in world.
FACETS = ("gesture", "material", "position", "weather")
ARMS = "answers clip general linear_20 linear_100 linear_500 prefix stored whole".split()


def result(number: float, facets: tuple[str, ...] = FACETS) -> dict[str, Any]:
    scores = {name: {"recall_at_1": number, "mean_rank": 99.5} for name in facets}
    whole = {"recall_at_1": number + 0.01, "recall_at_10": 1.0}
    return {"metrics": whole, "breakdown": {"facet": scores}}


def shown(results: dict[str, Any], width: int = 80) -> list[str]:
    out = io.StringIO()
    show_breakdown(Console(file=out, width=width), "b", "facet", results)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_all_arms_of_an_experiment_fit_a_terminal() -> None:
    labels = [f"promptable/{arm} #0 (promptable/version_0/best.ckpt)" for arm in ARMS]
    lines = shown(dict.fromkeys(labels, result(1.0)))
    assert max(map(len, lines)) <= 80
    (head,) = (line.split() for line in lines if "answers" in line)
    assert head == [arm.partition("_")[2] or arm for arm in ARMS]
    rows = [line.split() for line in lines if line.strip().startswith("gesture")]
    assert rows == [["gesture", *["100.00"] * 9], ["gesture", *["99.5"] * 9]]


def test_runs_that_do_not_fit_stand_in_further_tables() -> None:
    lines = shown({f"run{at} #0": result(at / 100) for at in range(30)}, width=60)
    assert max(map(len, lines)) <= 60
    heads = [line.split() for line in lines if line.strip().startswith("run")]
    assert [name for head in heads for name in head] == [f"run{at}" for at in range(30)]
    assert len(heads) == len([line for line in lines if line.strip() == "recall @1"]) > 1
    assert not any("…" in line for line in lines)


def test_the_mean_over_the_values_and_over_the_queries_are_told() -> None:
    lines = shown({"x #0": result(0.25), "y #0": result(0.5, FACETS[:2])})
    recall, rank = "\n".join(lines).split(" mean rank\n")
    rows = {line.split()[0]: line.split()[1:] for line in recall.splitlines() if "." in line}
    assert list(rows) == [*FACETS, "macro", "all"]
    assert rows["gesture"] == ["25.00", "50.00"]
    assert rows["weather"] == rows["macro"] == ["25.00", "-"], "a mean needs all values"
    assert rows["all"] == ["26.00", "51.00"]
    assert rank.split()[-3:] == ["all", "-", "-"]
    assert "@10" not in recall, "it has no breakdown"


def test_nothing_is_shown_of_what_is_not_broken_down() -> None:
    assert shown({"x #0": {"metrics": {"recall_at_1": 0.5}}}) == []
    assert shown({"x #0": {"metrics": {"recall_at_1": 0.5}, "breakdown": {"round": {}}}}) == []


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["p/linear_20 #0 (p/version_0/best.ckpt)", "clip #3 (untrained)"], ["linear\n20", "clip"]),
        (["a/clip #0", "b/clip #0"], ["a\nclip", "b\nclip"]),
        (["p/x #1", "p/x #0 (untrained)"], ["p\nx\n#1", "p\nx\n#0"]),
    ],
)
def test_headings_are_as_short_as_they_differ(labels: list[str], expected: list[str]) -> None:
    assert headings(labels) == expected
