from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cirlab.benchmarks.base import Protocol
from cirlab.reporting.rounds import PANEL, by_round, comparisons_of, main, round_figure


def result(*hits: float, at: int = 10, pool: int = 50, **others: Any) -> dict[str, Any]:
    """By round; recall is half of the hits."""
    rounds = {
        str(number): {f"cumulative_hits_at_{at}": hit, f"recall_at_{at}": hit / 2, "mean_rank": 3.0}
        for number, hit in enumerate(hits)
    }
    known = {field.name: "same" for field in fields(Protocol)} | {"pool_size": pool}
    metrics = {"recall_at_10": 0.5}
    return {"metrics": metrics, "protocol": known, "breakdown": {"round": rounds}, **others}


def lines(panel: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in panel.get_lines()
    }


def test_rounds_stand_in_the_order_of_their_numbers() -> None:
    told = result(*(0.01 * number for number in range(12)))
    shuffled = dict(sorted(told["breakdown"]["round"].items()))
    assert list(shuffled)[2] == "10"
    found = by_round({"breakdown": {"round": shuffled}})
    assert list(found) == list(range(12)) and found[10]["cumulative_hits_at_10"] == 0.1
    assert by_round({"metrics": {}}) == {} == by_round({"breakdown": {"facet": {"a": {}}}})


def test_a_line_for_each_run_in_a_panel_for_each_metric() -> None:
    runs = {"a #0": {"talk": result(0.25, 0.5)}, "b #1": {"talk": result(0.5, 0.75, 1.0)}}
    (row,) = comparisons_of(runs)
    figure = round_figure([row])
    hits, recall = figure.axes
    assert (
        hits.get_ylabel() == "cumulative hits @10 (%)" and recall.get_ylabel() == "recall @10 (%)"
    )
    assert lines(hits) == {"a #0": ([0, 1], [25, 50]), "b #1": ([0, 1, 2], [50, 75, 100])}
    assert lines(recall)["b #1"] == ([0, 1, 2], [25, 37.5, 50])
    assert {axes.get_ylim() for axes in figure.axes} == {(0, 100)}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a #0", "b #1"]
    colours = {line.get_color() for line in hits.get_lines()}
    assert len(colours) == 2 and colours == {line.get_color() for line in recall.get_lines()}


def test_benchmarks_and_protocols_have_rows_of_their_own() -> None:
    runs = {
        "a #0": {"talk": result(0.1), "other": result(0.1, at=5), "text": {"metrics": {"x": 1.0}}},
        "b #0": {"talk": result(0.2, pool=60)},
    }
    rows = comparisons_of(runs)
    titles = {row.title: list(row.results) for row in rows}
    assert titles == {"talk": ["a #0"], "talk, another protocol": ["b #0"], "other": ["a #0"]}
    assert [row.metrics for row in rows][2] == ["cumulative_hits_at_5", "recall_at_5"]
    figure = round_figure(rows)
    assert [axes.get_title() for axes in figure.axes[::2]] == list(titles)
    assert figure.get_figheight() > 3 * PANEL[1]


def test_one_run_alone_needs_no_legend() -> None:
    figure = round_figure(comparisons_of({"a": {"talk": result(0.1)}}))
    assert not figure.legends and figure.get_figheight() == PANEL[1]


def write(root: Path, name: str, version: int, content: dict[str, Any]) -> None:
    folder = root / name / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))


def test_the_command_draws_the_newest_run_that_has_rounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "x", 0, {"old": result(0.1)})
    write(tmp_path, "x", 1, {"new": result(0.2)})
    write(tmp_path, "x", 2, {"text": {"metrics": {"recall_at_1": 0.5}, "protocol": {}}})
    plot = tmp_path / "made" / "plot.png"
    given = ["--runs", str(tmp_path), "-o", str(plot)]
    caplog.set_level("INFO")
    assert main(["x", *given]) == 0
    assert caplog.messages[-1] == f"{plot}: new"
    image = PIL.Image.open(plot)
    assert image.format == "PNG" and image.convert("L").getextrema() == (0, 255)
    assert main(["x", "--all", *given]) == 0
    assert PIL.Image.open(plot).height > 1.9 * image.height
    assert [path.name for path in plot.parent.iterdir()] == ["plot.png"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["text"], "no result of text is by round; evaluate a benchmark of dialogues"),
        (["tex"], "did you mean text?"),
        (["text", "--benchmark", "none"], "has the benchmark 'none'"),
        (["text", "-o", "plot.jpg"], "plot.jpg would be a PNG file; let its name end in .png"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_sentence(
    tmp_path: Path, options: list[str], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "text", 0, {"text": {"metrics": {"recall_at_1": 0.5}, "protocol": {}}})
    assert main([*options, "--runs", str(tmp_path)]) == 2
    assert problem in caplog.messages[-1] and "\n" not in caplog.messages[-1]
    assert not list(tmp_path.rglob("*.png"))
