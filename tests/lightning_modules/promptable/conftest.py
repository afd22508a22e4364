"""The tiny multimodal LLM that all tests of Promptable read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_mllm import write_tiny_mllm


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("promptable") / "mllm"
    write_tiny_mllm(path)
    return path
