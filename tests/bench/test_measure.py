from __future__ import annotations

import os
import time
import types
from typing import Any

import pytest
import rich.console

from bench import __main__ as command
from bench.measure import PeakMemory, Row, in_own_process, in_turns


def test_ratios_say_how_many_times_better() -> None:
    cost = Row("a", ours=[1.0, 2.0, 4.0], reference=[10.0, 10.0, 10.0], unit="s", reference_name="")
    assert cost.ratios == [10.0, 5.0, 2.5]
    assert cost.ratio == 5.0
    gain = Row("b", [30.0], [10.0], unit="scenes/s", reference_name="", less_is_better=False)
    assert gain.ratio == 3.0


def test_both_are_measured_in_turns() -> None:
    calls: list[str] = []
    first, second = in_turns(
        lambda: calls.append("ours") or len(calls),
        lambda: calls.append("theirs") or len(calls),
        repeats=2,
    )
    assert calls == ["ours", "theirs"] * 2
    assert (first, second) == ([1, 3], [2, 4])


def test_memory_is_seen_even_after_a_higher_peak() -> None:
    def take(mib: int) -> None:
        block = b"x" * (mib << 20)
        time.sleep(0.05)
        assert len(block) == mib << 20

    take(400)
    with PeakMemory() as peak:
        take(200)
    assert peak.grown_mib == pytest.approx(200, abs=20)
    with PeakMemory() as nothing:
        take(0)
    assert nothing.grown_mib < 20


def test_a_process_of_its_own_brings_its_result_home() -> None:
    assert in_own_process(os.getpid) != os.getpid()
    assert in_own_process(divmod, 17, 5) == (3, 2)


def test_the_table_shows_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("drawing", [1.0, 2.0, 3.0], [12.0, 12.0, 12.0], unit="s", reference_name="by hand")
    fake = types.SimpleNamespace(run=lambda: [row])
    monkeypatch.setattr(command.importlib, "import_module", lambda name: fake)
    console = rich.console.Console(width=80, record=True)
    rows = list(command.run(["evaluation"], console))
    console.print(command.table(rows))
    text = console.export_text()
    for piece in ("drawing", "by hand", "6x", "4, 12"):
        assert piece in text


@pytest.mark.parametrize(
    ("value", "text"), [(0.36472, "0.365"), (5.9212, "5.92"), (106.14, "106"), (17330.4, "17,330")]
)
def test_numbers_are_short_and_whole(value: float, text: str) -> None:
    assert command.number(value) == text


def test_unknown_measurements_are_refused_with_the_known_ones(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["evaluatoin"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "'evaluatoin'" in message and "evaluation" in message


def test_every_module_of_measurements_is_found() -> None:
    assert "evaluation" in command.names()
    assert not {"measure", "__main__"} & set(command.names())
