"""A contrastive training step, measured: time, memory, or that memory did not suffice."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.multimodal.architectures import Architecture
from bench.multimodal.model import Embedder
from cirlab.losses import ContrastiveLoss

#: Steps before the measured ones, and how many are measured: fewer where they take long.
WARM_UP, LEAST_STEPS, MOST_STEPS, ENOUGH_S = 2, 3, 5, 10.0
MIB = 2**20


@dataclass(frozen=True)
class Variant:
    """What is kept for the backward pass.

    Attributes:
        name: shown in the table.
        chunk_size: pairs encoded at once (`cirlab.chunking`); None: the whole batch.
        recompute_layers: gradient checkpointing.
    """

    name: str
    chunk_size: int | None = None
    recompute_layers: bool = False


@dataclass(frozen=True)
class Measured:
    """One training step of a batch.

    Attributes:
        seconds: median over the steps.
        peak_mib: the most that torch held, weights included; 0 on a CPU.
    """

    seconds: float
    peak_mib: float


def measure(
    model: Embedder,
    architecture: Architecture,
    batch: int,
    variant: Variant,
    device: torch.device,
) -> Measured | None:
    """Median of some training steps after warm-up; None where memory does not suffice."""
    release(device)
    try:
        return _measure(model, architecture, batch, variant, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler: the error holds the frames, and they hold the tensors.
    model.zero_grad(set_to_none=True)
    release(device)
    return None


def _measure(
    model: Embedder,
    architecture: Architecture,
    batch: int,
    variant: Variant,
    device: torch.device,
) -> Measured:
    step = training_step(model, architecture, batch, variant, device)
    for _ in range(WARM_UP):
        step()
    times: list[float] = []
    while len(times) < LEAST_STEPS or (len(times) < MOST_STEPS and sum(times) < ENOUGH_S):
        times.append(timed(step, device))
    model.zero_grad(set_to_none=True)
    return Measured(statistics.median(times), _peak_mib(device))


def training_step(
    model: Embedder,
    architecture: Architecture,
    batch: int,
    variant: Variant,
    device: torch.device,
) -> Callable[[], float]:
    """A function that trains on one batch and returns its loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    loss = ContrastiveLoss(temperature=0.05, symmetric=False)
    model.keep(variant.chunk_size, variant.recompute_layers)
    images, captions = (
        model.grouped(side(batch, device), variant.chunk_size)
        for side in (architecture.images, architecture.captions)
    )
    ids = torch.arange(batch, device=device)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(model(images), model(captions), ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return step


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has done all of it."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def matmul_peak(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """Operations a second of one large product of square bfloat16 matrices, the median."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = [timed(lambda: one @ other, device) for _ in range(WARM_UP + repeats)][WARM_UP:]
    return 2 * size**3 / statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or a library beneath it, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def release(device: torch.device) -> None:
    """Give back what is held for nothing, and begin to watch the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else 0.0
