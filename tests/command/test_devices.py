from __future__ import annotations

import os

import pytest
import torch

from cirlab.command.devices import check_devices
from cirlab.errors import UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("devices", [1, 4, "auto", "4", -1, "-1"])
def test_processes_that_the_cores_can_run(devices: int | str) -> None:
    check_devices("cpu", devices)
    check_devices("auto", devices)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("devices", [0, 5, "5", -3])
def test_more_processes_than_cores(devices: int | str) -> None:
    with pytest.raises(UserError, match=f"devices is {devices}, .* 4 CPU cores"):
        check_devices("auto", devices)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
def test_no_gpu(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"accelerator is {accelerator}"):
        check_devices(accelerator, 1)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.parametrize(
    ("devices", "fits"),
    [(2, True), (3, False), ([0, 1], True), ([2], False), ("0,1", True), ("1,2", False)],
)
def test_numbers_and_positions_of_gpus(devices: int | str | list[int], fits: bool) -> None:
    if fits:
        check_devices("auto", devices)
    else:
        with pytest.raises(UserError, match="2 CUDA devices"):
            check_devices("cuda", devices)
