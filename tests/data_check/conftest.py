"""Folders that several tests of the data check look into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.composed_files import write_fashioniq
from tests.datamodules.toys import write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", split="val")
    return tmp_path / "data"


@pytest.fixture
def garments(tmp_path: Path) -> Path:
    """Fashion-IQ as a mirror has it, both splits."""
    for split in ("train", "val"):
        write_fashioniq(tmp_path / "fashioniq", split=split, suffix="jpg")
    return tmp_path / "fashioniq"
