"""A contrastive training step of 2B and 7B multimodal LLMs on this machine's GPU.

Adapters are trained over bfloat16 and over 4-bit weights, with and without computing parts again,
at growing batches until memory does not suffice. Weights are random and inputs noise: neither
changes what is computed, and nothing is downloaded. The table goes to docs/benchmarks.md after each
row, so that a run that is ended has not been for nothing. Not part of `make bench` unless it is
named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bench.measure import Row
from bench.multimodal.architectures import LLAVA_7B, QWEN2_VL_2B, Architecture
from bench.multimodal.model import LORA, Embedder
from bench.multimodal.page import Card, Entry, section, write_section
from bench.multimodal.step import Variant, matmul_peak, measure, release
from cirlab.encoders.adapters import FourBit
from cirlab.errors import UserError

ARCHITECTURES = (QWEN2_VL_2B, LLAVA_7B)
WEIGHTS = {"bfloat16": None, "4-bit NF4": FourBit()}
VARIANTS = (
    Variant("everything"),
    Variant("layers' inputs (gradient checkpointing)", recompute_layers=True),
    Variant("vectors (chunks of 8)", chunk_size=8),
)
BATCHES = (8, 32, 128)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
GIB = 2**30


def run() -> list[Row]:
    """Measure and write the page; there is no reference to compare with, and so no rows.

    Raises:
        UserError: this machine has no CUDA device.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "bench gpu measures a CUDA device, but torch finds none on this machine; run "
            "make bench ARGS=gpu on one that has a GPU"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    memory = torch.cuda.get_device_properties(device).total_memory / GIB
    card = Card(torch.cuda.get_device_name(device), memory, matmul_peak(device))
    entries: list[Entry] = []
    for architecture in ARCHITECTURES:
        for weights in WEIGHTS:
            measure_model(architecture, weights, card, device, entries)
    return []


def measure_model(
    architecture: Architecture,
    weights: str,
    card: Card,
    device: torch.device,
    entries: list[Entry],
    batches: Sequence[int] = BATCHES,
    page: Path = PAGE,
) -> None:
    """Add the rows of one model to `entries`, and write the page after each."""
    console = Console()
    model = build(architecture, weights, device)
    for variant in VARIANTS:
        for batch in batches:
            found = measure(model, architecture, batch, variant, device) if model else None
            entries.append(Entry(architecture, weights, variant, batch, found))
            text = section(entries, card, LORA.rank)
            write_section(page, text)
            console.print(text.splitlines()[-1], soft_wrap=True, highlight=False, markup=False)
            if found is None:
                break


def build(architecture: Architecture, weights: str, device: torch.device) -> Embedder | None:
    """The model, or None where memory does not suffice even for its weights."""
    release(device)
    try:
        return Embedder(architecture, WEIGHTS[weights], device)
    except torch.OutOfMemoryError:
        return None
