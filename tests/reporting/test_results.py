from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cirlab.benchmarks.base import Protocol
from cirlab.reporting.results import metric_text, metric_title, protocol_line, show_run
from cirlab.reporting.run import Run, write_json

METRICS = {
    **{f"recall_at_{k}": k / 100 for k in (1, 5, 10)},
    **{f"subset_recall_at_{k}": k / 10 for k in (1, 2, 3)},
    **{f"map_at_{k}": k / 200 for k in (5, 10)},
    "mean_rank": 1234.5,
}


def test_names_and_units() -> None:
    assert metric_title("subset_recall_at_10") == "subset recall @10"
    assert metric_title("map_at_5") == "mAP @5"
    assert metric_title("mean_rank") == "mean rank"
    assert metric_text("recall_at_1", 1.0) == "100.00"
    assert metric_text("mean_rank", 1.0) == "1.0"
    assert metric_text("bri", 0.76741) == "0.7674"


def test_how_images_are_looked_at_is_told() -> None:
    protocol = Protocol("b", 100, 50, "none", "{text}", "abc")
    assert "views" not in protocol_line(protocol.as_dict())
    prompted = replace(protocol, views="8 prompts, 0123").as_dict()
    assert "ties pessimistic, views: 8 prompts, 0123, " in protocol_line(prompted)


def test_the_method_and_its_baselines_fit_a_terminal(tmp_path: Path) -> None:
    found = {
        "protocol": Protocol("b", 3000, 1500, "the reference image", "{text}", "abc").as_dict(),
        "metrics": METRICS,
        "baselines": {name: METRICS for name in ("sum", "text_only", "image_only")},
    }
    write_json(tmp_path / "results.json", {"b": found})
    write_json(tmp_path / "run.json", {"method": "CoLLM"})
    out = io.StringIO()
    show_run(Run(tmp_path), Console(file=out, width=80))
    text = out.getvalue()
    rows = [line for line in text.splitlines() if " 1234.5" in line]
    assert [row.split("  ")[0].strip() for row in rows] == [
        "CoLLM",
        "image only",
        "text only",
        "sum",
    ]
    assert all("1.00" in row and "30.00" in row for row in rows)
    assert (
        "1500 queries, gallery of 3000, ranked against: the whole gallery, excluded: the " in text
    )
    assert str(tmp_path) in text.replace("\n", "")


def test_dialogues_are_shown_by_round(tmp_path: Path) -> None:
    rounds = {str(n): {"cumulative_hits_at_10": n / 20, "mean_rank": 99.0 - n} for n in range(11)}
    found = {
        "protocol": Protocol("d", 50, 11, "none", "{text}", "abc").as_dict(),
        "metrics": {"cumulative_hits_at_10": 0.5, "bri": 1.25},
        "breakdown": {"round": rounds},
    }
    write_json(tmp_path / "results.json", {"d": found})
    write_json(tmp_path / "run.json", {"method": "CLIP"})
    out = io.StringIO()
    show_run(Run(tmp_path), Console(file=out, width=80))
    text = out.getvalue()
    assert "d by round" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("round ")]
    assert rows[0] == ["round", "0", "0.00", "99.0"] and rows[10] == [
        "round",
        "10",
        "50.00",
        "89.0",
    ]
    assert text.count("annotations abc") == 1
