"""InstructCIR's exports: transformers and peft alone compute the same vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Query
from lightning_modules import InstructCIR
from tests import tiny_mllm
from tests.tiny_export import export, learned, run_card
from tests.tiny_mllm import LAYOUTS, write_tiny_mllm

PICTURE = PIL.Image.new("RGB", (60, 45), "red")
TEXT = "make it blue"
LORA = Lora(rank=2, alpha=3, dropout=0.1)
#: Every way in which it is trained.
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA},
    "lora and connector": {"lora": LORA, "tune_connector": True},
    "head": {"lora": LORA, "projection": 8, "pooling": "mean"},
    "all weights": {},
    "connector alone": {"frozen": True, "tune_connector": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {layout: write_tiny_mllm(root / layout, layout) for layout in LAYOUTS}


def instructcir(folder: Path, **options: Any) -> InstructCIR:
    return InstructCIR(MLLMSettings(str(folder), max_length=128, **options))


def compare(trained: InstructCIR, card: dict[str, Any], words: str = TEXT) -> None:
    """Gallery images and every kind of query."""
    image = DecodedImage("red", PICTURE)
    with torch.no_grad():
        gallery = trained.encode_images(trained.image_collator()([image]))
        assert (card["embed"](PICTURE) - gallery).abs().max() < 1e-5
        for picture, text in ((image, words), (None, words), (image, "")):
            query = Query("q", text, targets=("red",), image=picture)
            vector = trained.encode_queries(trained.query_collator()([query]))
            found = card["embed"](PICTURE if picture else None, text)
            assert found.shape == vector.shape
            assert (found - vector).abs().max() < 1e-5


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_training(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    merged: bool,
) -> None:
    if merged and "lora" not in WAYS[name]:
        with pytest.raises(UserError, match="no adapters to merge"):
            instructcir(folders["llava-llama"], **WAYS[name]).check_export(merged)
        return
    trained = instructcir(folders["llava-llama"], **WAYS[name])
    path = learned(trained, tmp_path / "best.ckpt")
    again = instructcir(folders["llava-llama"], **WAYS[name])
    folder = export(again, path, tmp_path / "out", merged)
    compare(trained, run_card(folder, monkeypatch))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_words_that_look_like_tokens(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Like a picture's, like the template's, and like the end of a message."""
    trained = instructcir(folders[layout], frozen=True, tune_connector=True)
    path = learned(trained, tmp_path / "best.ckpt")
    assert trained.llm is not None
    special = sorted(trained.llm.processor.tokenizer.all_special_tokens)
    again = instructcir(folders[layout], frozen=True, tune_connector=True)
    card = run_card(export(again, path, tmp_path / "out", False), monkeypatch)
    assert {"<image>", "<|image_pad|>"} & set(special)
    compare(trained, card, f"a {' '.join(special)} of {TEXT}")


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    merged: bool,
) -> None:
    trained = instructcir(folders[layout], lora=LORA)
    path = learned(trained, tmp_path / "best.ckpt")
    folder = export(instructcir(folders[layout], lora=LORA), path, tmp_path / "out", merged)
    compare(trained, run_card(folder, monkeypatch))


@pytest.mark.parametrize("words", [f"{TEXT} " * 90, "\u2603" * 90, f"<image> {TEXT} " * 40])
def test_words_too_many_are_cut_as_in_training(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    trained = instructcir(folders["llava-llama"], lora=LORA, long_text="cut")
    path = learned(trained, tmp_path / "best.ckpt")
    again = instructcir(folders["llava-llama"], lora=LORA, long_text="cut")
    card = run_card(export(again, path, tmp_path / "out", False), monkeypatch)
    compare(trained, card, words)
    assert card["read"](None, words)["input_ids"].shape[1] <= 128


def test_what_the_card_refuses(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = instructcir(folders["llava-llama"], lora=LORA)
    path = learned(trained, tmp_path / "best.ckpt")
    again = instructcir(folders["llava-llama"], lora=LORA)
    card = run_card(export(again, path, tmp_path / "out", False), monkeypatch)
    for arguments in ((), (None, "")):
        with pytest.raises(ValueError, match=r"^embed takes an image, a text, or both$"):
            card["embed"](*arguments)
    for picture in (PICTURE, None):
        with pytest.raises(ValueError, match=r"^\d+ tokens above 128, picture included: 'make it"):
            card["embed"](picture, f"{TEXT} " * 90)


def test_what_lies_there(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["llava-llama"]
    path = learned(instructcir(base, lora=LORA), tmp_path / "best.ckpt")
    folder = export(instructcir(base, lora=LORA), path, tmp_path / "out", merged=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert not (folder / "model.safetensors").exists()
    assert AutoProcessor.from_pretrained(folder).chat_template
    merged = export(instructcir(base, lora=LORA), path, tmp_path / "merged", merged=True)
    assert not (merged / "adapter_config.json").exists()
    assert AutoProcessor.from_pretrained(merged).chat_template
    AutoModelForImageTextToText.from_pretrained(merged)


def test_adapters_over_four_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real bitsandbytes, on the CPU."""
    # Blocks of 64 values share a constant.
    for name in ("hidden_size", "intermediate_size"):
        monkeypatch.setitem(tiny_mllm.TEXT, name, 64)
        monkeypatch.setitem(tiny_mllm.VISION, name, 64)
    base = tiny_mllm.write_tiny_mllm(tmp_path / "base")
    way = {"lora": LORA, "four_bit": FourBit(compute_dtype="float32")}
    trained = instructcir(base, **way)
    path = learned(trained, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"4 bits.*; leave merged out"):
        instructcir(base, **way).check_export(True)
    again = instructcir(base, **way)
    compare(trained, run_card(export(again, path, tmp_path / "out", False), monkeypatch))
