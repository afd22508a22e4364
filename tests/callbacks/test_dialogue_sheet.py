from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from callbacks import DialogueSheet, RetrievalEvaluation
from cirlab.benchmarks import WorldDialogue, WorldTextToImage
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Query
from cirlab.reporting.sheet import GAP, THUMB
from datamodules import WorldDialogueData
from lightning_modules import CLIP
from tests.callbacks.lookup import quiet_trainer
from tests.tiny import write_tiny_clip

RED = DecodedImage("red", PIL.Image.new("RGB", (64, 64), (250, 0, 0)))


class Drawing(CLIP):
    def as_asked(self, queries: Sequence[Query]) -> list[Query]:
        return [dataclasses.replace(query, image=RED) for query in queries]


def sheets(module: type[CLIP], folder: Path, **options: int) -> dict[str, PIL.Image.Image]:
    benchmarks = [
        WorldDialogue(families=2, dialogues=9, rounds=3),
        WorldTextToImage(scenes=8),
    ]
    data = WorldDialogueData(4, 4, 16, benchmarks=benchmarks)
    callbacks = [RetrievalEvaluation(), DialogueSheet(**options)]
    trainer = quiet_trainer(callbacks=callbacks, default_root_dir=str(folder))
    clip = f"local-dir:{write_tiny_clip(folder / 'clip')}"
    trainer.validate(module(clip), datamodule=data, verbose=False)
    drawn = folder / "contact_sheets"
    # Captions are no dialogues.
    assert [path.name for path in drawn.iterdir()] == ["world_dialogue"]
    return {path.name: PIL.Image.open(path) for path in (drawn / "world_dialogue").iterdir()}


def test_a_sheet_for_each_dialogue_and_a_row_for_each_round(tmp_path: Path) -> None:
    drawn = sheets(CLIP, tmp_path, dialogues=4, found=3)
    assert len(drawn) == 4
    heights = {image.height for image in drawn.values()}
    assert len(heights) == 1
    rows = 4
    assert rows * (THUMB + GAP) < heights.pop() < (rows + 1) * (THUMB + GAP)


def test_what_the_method_has_drawn_is_shown(tmp_path: Path) -> None:
    plain, drawn = sheets(CLIP, tmp_path / "a"), sheets(Drawing, tmp_path / "b")
    assert plain.keys() == drawn.keys()

    def red(image: PIL.Image.Image) -> int:
        pixels = np.asarray(image.convert("RGB"))
        return int((pixels == (250, 0, 0)).all(axis=2).sum())

    for name in drawn:
        assert red(plain[name]) < 100
        assert red(drawn[name]) > 4 * 60 * 60


@pytest.mark.parametrize("options", [{"dialogues": 0}, {"found": 0}])
def test_nothing_to_draw_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="set both to 1 or more"):
        DialogueSheet(**options)


def test_without_rankings_there_is_nothing_to_draw(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[DialogueSheet()])
    module = CLIP(f"local-dir:{write_tiny_clip(tmp_path / 'clip')}")
    data = WorldDialogueData(4, 4, 16, benchmarks=[WorldDialogue(families=2, dialogues=2)])
    with pytest.raises(UserError, match="no callback makes any"):
        trainer.validate(module, datamodule=data, verbose=False)
