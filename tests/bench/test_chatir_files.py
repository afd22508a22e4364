from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import chatir_files
from bench.evaluation import exact_vectors
from cirlab.benchmarks import chatir
from cirlab.dialogue.files import CHATIR_DIALOGUES

IMAGES, DIALOGUES = 300, 12
REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """ChatIR in small, so that its files are refused if they have another size than this."""
    for module in (chatir_files, chatir):
        monkeypatch.setattr(module, "SEARCH_SPACE", IMAGES)
        monkeypatch.setattr(module, "DIALOGUES", DIALOGUES)
    # Dialogues are cut by the parts of the usual way.
    monkeypatch.setattr(chatir_files, "AT_ONCE", 25)


@pytest.mark.usefixtures("small")
def test_made_up_files_are_read_and_both_ways_give_the_same(tmp_path: Path) -> None:
    chatir_files.write_files(tmp_path)
    gallery = exact_vectors(np.random.default_rng(0), IMAGES)
    features = chatir_files.drawn(tmp_path, CHATIR_DIALOGUES[1], gallery, seed=1)
    scores = (features.queries[:, None] @ gallery.T)[:, 0]
    assert torch.equal(scores.double(), features.queries.double() @ gallery.double().T)
    ours = chatir_files.by_counting(tmp_path, CHATIR_DIALOGUES[1], features)
    usual = chatir_files.by_sorting(tmp_path, CHATIR_DIALOGUES[1], features)
    chatir_files.check_equal(ours, usual)
    # There is something to be told apart.
    assert ours.hits[0] < 0.5 < ours.hits[-1] and len(ours.hits) == 11
    assert ours.mean_ranks[0] > 50 and ours.mean_ranks[-1] < 10
    with pytest.raises(AssertionError, match="hits by round are"):
        chatir_files.check_equal(ours, dataclasses.replace(usual, hits=usual.hits[::-1]))
    with pytest.raises(AssertionError, match="mean ranks differ"):
        other = dataclasses.replace(usual, mean_ranks=usual.mean_ranks[::-1])
        chatir_files.check_equal(ours, other)


@pytest.mark.usefixtures("small")
def test_without_the_released_files_others_are_made_up_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    one, cpu, five = chatir_files.run()
    assert len(one.ours) == len(cpu.ours) == 5 and five.ours == [sum(one.ours)]
    assert one.name == "a made-up file, 12 x 11 x 300 x 256: time"
    assert min(one.ours) > 0 and min(cpu.ours) > 0
    assert capsys.readouterr().err.startswith("DATA_ROOT holds no folder chatir with the released")
    (tmp_path / "chatir").mkdir()
    chatir_files.write_files(tmp_path / "chatir")
    with chatir_files.files() as (folder, whose):
        assert (folder, whose) == (tmp_path / "chatir", "released")
    assert not capsys.readouterr().err


@pytest.mark.skipif(not (REAL / "chatir").is_dir(), reason="DATA_ROOT has no benchmarks/chatir")
@pytest.mark.parametrize("name", CHATIR_DIALOGUES)
def test_released_files_have_the_shape_of_those_made_up(name: str) -> None:
    targets = chatir_files.targets_of(REAL / "chatir", name)
    assert targets.shape == (2064 * 11,) and len(set(targets.tolist())) == 2064
