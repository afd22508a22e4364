"""What of the GPU's measurement runs on a CPU: models, counts, steps, the page."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from bench import __main__ as command
from bench import gpu
from bench.multimodal import operations, step
from bench.multimodal.architectures import (
    LLAVA_7B,
    QWEN2_VL_2B,
    Architecture,
    Decoder,
    Tower,
)
from bench.multimodal.model import Embedder, random_weights
from bench.multimodal.page import BEGIN, END, Card, Entry, section, write_section
from bench.multimodal.step import Measured, Variant
from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.errors import UserError

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=4, dropout=0.0)
DECODER = Decoder(layers=2, width=128, hidden=192, heads=4, key_value_heads=2, vocabulary=320)
LLAVA = Architecture(
    "tiny llava", "llava", Tower(2, 64, 128, 2, 4, 3 * 8 * 8, class_token=True), DECODER
)
QWEN = Architecture(
    "tiny qwen", "qwen2_vl", Tower(2, 64, 128, 2, 4, 6 * 8 * 8, class_token=False), DECODER, 2
)
BOTH = pytest.mark.parametrize("model", [LLAVA, QWEN], ids=lambda model: model.layout)


@pytest.mark.parametrize(("model", "billions"), [(QWEN2_VL_2B, 2.21), (LLAVA_7B, 7.06)])
def test_sizes_are_those_of_the_published_weights(model: Architecture, billions: float) -> None:
    built = random_weights(model, torch.device("meta"))
    # As the Hub counts Qwen/Qwen2-VL-2B-Instruct and llava-hf/llava-1.5-7b-hf.
    assert round(sum(p.numel() for p in built.parameters()) / 1e9, 2) == billions
    assert model.sides == ((160, 32) if model is QWEN2_VL_2B else (592, 32))


def test_operations_counted_by_hand() -> None:
    """LLaVA's tower reads 17 tokens, its decoder 32 and 32."""
    tower = 2 * 16 * 192 * 64 + 2 * (17 * 2 * (4 * 64 * 64 + 2 * 64 * 128) + 4 * 17 * 17 * 64)
    assert operations.tower_forward(LLAVA.tower) == tower
    connector = 2 * 16 * (64 * 128 + 128 * 128)
    assert operations.connector_forward(LLAVA) == connector
    weights = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 192
    matrices, attended = 2 * 2 * 32 * weights, 2 * 4 * 32 * 32 * 128
    assert operations.decoder_forward(DECODER, 32) == (matrices, attended)
    adapters = 4 * (4 * 128 + 2 * (128 + 64) + 3 * (128 + 192))
    assert adapters == 4 * (2 * 256 + 2 * 192 + 3 * 320)
    once = 2 * 2 * 32 * adapters
    assert operations.adapters_forward(DECODER, 32, 4) == once
    total = tower + connector + 2 * (2 * matrices + 3 * attended + 3 * once)
    assert LLAVA.sides == (32, 32)
    assert operations.step(LLAVA, 4) == total


@BOTH
def test_operations_agree_with_those_that_torch_counts(model: Architecture) -> None:
    config = model.config()
    built = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    inputs = model.images(1, CPU)
    if "image_grid_thw" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].flatten(0, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built.base_model(**inputs)
    ours = operations.tower_forward(model.tower) + operations.connector_forward(model)
    ours += sum(operations.decoder_forward(model.decoder, model.sides[0]))
    # Positions are multiplied with frequencies, which is not counted here.
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)


@BOTH
def test_a_whole_step_agrees_with_what_torch_counts(model: Architecture) -> None:
    deeper = dataclasses.replace(model, decoder=dataclasses.replace(DECODER, layers=4))
    embedder = Embedder(deeper, None, CPU, LORA).float()
    embedder.speaker.set_attn_implementation("eager")
    sides = [embedder.grouped(side(1, CPU), None) for side in (deeper.images, deeper.captions)]
    with FlopCounterMode(display=False) as counter:
        sum(embedder(side).sum() for side in sides).backward()
    # The first layer's inputs need no gradient: three of its matrices run no backward pass.
    decoder, tokens = deeper.decoder, sum(deeper.sides)
    first = [(128, 128), (128, 64), (128, 64)]
    unneeded = sum(
        operations.linear(tokens, i, o) + operations.linear(tokens, i, 4) for i, o in first
    )
    expected = operations.step(deeper, 4) - unneeded
    assert decoder.layers == 4
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@BOTH
@pytest.mark.parametrize("four_bit", [None, FourBit()], ids=["bfloat16", "4-bit"])
def test_it_trains_adapters_alone(model: Architecture, four_bit: FourBit | None) -> None:
    torch.manual_seed(0)
    embedder = Embedder(model, four_bit, CPU, LORA)
    trained = {name for name, p in embedder.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in n and ".language_model." in n for n in trained)
    quantised = [m for m in embedder.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(quantised) == (7 * DECODER.layers if four_bit else 0)
    assert type(embedder).forward is EmbeddingMLLM.forward
    train = step.training_step(embedder, model, 4, Variant("all"), CPU)
    losses = [train() for _ in range(15)]
    assert losses[-1] < losses[0]


@BOTH
@pytest.mark.parametrize("variant", gpu.VARIANTS[1:], ids=lambda variant: variant.name)
def test_what_is_computed_again_is_the_same(model: Architecture, variant: Variant) -> None:
    torch.manual_seed(0)
    embedder = Embedder(model, None, CPU, LORA).float()
    inputs = model.images(12, CPU)

    def gradients(chunk_size: int | None, again: bool) -> list[torch.Tensor]:
        embedder.keep(chunk_size, again)
        embedder.zero_grad()
        vectors = embedder(embedder.grouped(inputs, chunk_size))
        (vectors @ vectors.T).exp().sum().backward()
        return [p.grad for p in embedder.parameters() if p.grad is not None]

    plain = gradients(None, False)
    again = gradients(variant.chunk_size, variant.recompute_layers)
    assert len(plain) == len(again) > 0
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_a_measurement_has_time_and_too_large_a_batch_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedder = Embedder(LLAVA, None, CPU, LORA)
    found = step.measure(embedder, LLAVA, 2, Variant("all"), CPU)
    assert found is not None and found.seconds > 0 and found.peak_mib == 0
    assert all(p.grad is None for p in embedder.parameters())

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "timed", full)
    assert step.measure(embedder, LLAVA, 2, Variant("all"), CPU) is None

    def broken(*_: object) -> None:
        raise RuntimeError("another matter")

    monkeypatch.setattr(step, "timed", broken)
    with pytest.raises(RuntimeError, match="another matter"):
        step.measure(embedder, LLAVA, 2, Variant("all"), CPU)


def test_long_steps_are_measured_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(LLAVA, None, CPU, LORA)
    for seconds, count in ((1.0, step.MOST_STEPS), (4.0, step.LEAST_STEPS)):
        calls: list[float] = []
        monkeypatch.setattr(step, "timed", lambda *_, s=seconds, c=calls: c.append(s) or s)
        found = step.measure(embedder, LLAVA, 1, Variant("all"), CPU)
        assert found is not None and found.seconds == seconds
        assert len(calls) == count


def test_the_peak_is_that_of_a_product() -> None:
    assert step.matmul_peak(CPU, size=64, repeats=2) > 1e6


def test_rows_say_what_was_measured() -> None:
    card = Card("NVIDIA Test", memory_gib=80, peak=1e12)
    variant = Variant("everything")
    seconds = 8 * operations.step(LLAVA, 4) / 0.25e12
    entries = [
        Entry(LLAVA, "bfloat16", variant, 8, Measured(seconds, 3 * 1024)),
        Entry(LLAVA, "bfloat16", variant, 32, None),
    ]
    text = section(entries, card, rank=4)
    one, other = text.splitlines()[-2:]
    rate = 8 / seconds
    assert one == (
        f"| tiny llava | bfloat16 | everything | 8 | {64 * rate:,.0f} | {rate:,.1f} | "
        f"{seconds:.3g} | 3.0 | 25% |"
    )
    assert other == "| tiny llava | bfloat16 | everything | 32 | out of memory | - | - | - | - |"
    assert re.search(r"NVIDIA Test, 80 GiB, torch 2\.\S+, transformers 5.* 1 TFLOP/s", text)


def test_the_page_is_replaced_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n\nold\n\n{END}\nafter\n")
    for text in ("first", "second"):
        write_section(page, text)
        assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(UserError, match=r"page\.md has no lines"):
        write_section(page, "x")


def test_a_model_is_measured_until_memory_does_not_suffice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(
        gpu, "measure", lambda m, a, batch, v, d: Measured(1.0, 1.0) if batch < 4 else None
    )
    entries: list[Entry] = []
    card = Card("CPU", 1, 1e12)
    gpu.measure_model(LLAVA, "bfloat16", card, CPU, entries, batches=(2, 4, 8), page=page)
    assert [(e.batch, e.measured is None) for e in entries] == [(2, False), (4, True)] * 3
    assert page.read_text().count("out of memory") == 3
    assert capsys.readouterr().out.count("tiny llava") == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    before = gpu.PAGE.read_text(encoding="utf-8")
    assert command.main(["gpu"]) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"error: bench gpu measures a CUDA device, .*torch finds none.*\n", message)
    assert gpu.PAGE.read_text(encoding="utf-8") == before
    assert BEGIN in before and END in before


def test_it_runs_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(command, "run", lambda wanted, console: asked.extend(wanted) or [])
    assert command.main([]) == 0
    assert "gpu" in command.names() and "gpu" not in asked and "world" in asked
    assert "multimodal" not in command.names()
