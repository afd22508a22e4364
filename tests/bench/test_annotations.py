from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench import __main__ as command
from bench import annotations


def test_the_file_is_what_the_data_module_reads(tmp_path: Path) -> None:
    path = annotations.write_annotations(tmp_path / "x.jsonl", 5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(5))
    assert all(len(row["modifications"]) == 5 for row in rows)
    assert len({row["modifications"][0]["text"] for row in rows}) == 5
    assert 500 < path.stat().st_size / 5 < 1000


def test_both_ways_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "BATCH", 8)
    monkeypatch.setattr(annotations, "WORKERS", 0)
    annotations.write_images(tmp_path)
    path = annotations.write_annotations(tmp_path / "x.jsonl", 40)
    ours, usual = annotations.by_offsets(path), annotations.by_parsing(path)
    annotations.check_equal(ours, usual)
    assert len(set(ours.first)) == 8
    assert ours.time > 0 and ours.memory > 10
    assert len(list((tmp_path / "index").iterdir())) == 1
    other = dataclasses.replace(usual, first=usual.first[::-1])
    with pytest.raises(AssertionError, match="differ"):
        annotations.check_equal(ours, other)


def test_memory_of_children_is_counted() -> None:
    own = annotations.held_mib(psutil.Process())
    take = "import time; block = b'x' * (200 << 20); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", take], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with annotations.TreeMemory(interval_s=0.01) as peak:
            time.sleep(0.1)
        child.kill()
    assert peak.mib == pytest.approx(own + 205, abs=30)


def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
        child.wait()
    assert annotations.held_mib(process) == 0.0


def test_rows_are_as_many_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=(4 << 30) + 3_000 * 10_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert annotations.affordable_rows() == 10_000


def test_it_is_found_by_the_command() -> None:
    assert "annotations" in command.names()
