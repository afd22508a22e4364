"""A large contrastive batch in chunks (GradCache): its memory, its time, its gradient.

InstructCIR's first stage on the zoo's multimodal LLM, in float32, one whole step: loss, backward,
optimiser.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from bench.measure import PeakMemory, Row, in_own_process, in_turns, seconds
from cirlab.command.cpu import tune_for_cpu
from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.records import SampleKey
from datamodules import WorldData
from lightning_modules import InstructCIR

SMALL, LARGE, CHUNK, TIMED, REPEATS = 64, 1024, 32, 128, 5


def run() -> Iterator[Row]:
    """Peak memory, seconds, and how far the gradients are apart."""
    large = [in_own_process(peak_mib, LARGE, CHUNK) for _ in range(3)]
    small = [in_own_process(peak_mib, SMALL, CHUNK) for _ in range(3)]
    yield Row(
        name=f"peak memory, batch {LARGE} in chunks of {CHUNK}",
        ours=large,
        reference=small,
        unit="MiB",
        reference_name=f"batch {SMALL} in chunks of {CHUNK}",
    )
    yield Row(
        name=f"peak memory, batch {LARGE // 2} in chunks of {CHUNK}",
        ours=[in_own_process(peak_mib, LARGE // 2, CHUNK)],
        reference=[in_own_process(peak_mib, LARGE // 2, None)],
        unit="MiB",
        reference_name=f"batch {LARGE // 2} at once",
    )
    tune_for_cpu("32-true")
    chunked, plain = method(CHUNK), method(None)
    in_chunks, whole = collated(chunked, TIMED), collated(plain, TIMED)
    ours, reference = in_turns(
        lambda: seconds(lambda: step(chunked, in_chunks)),
        lambda: seconds(lambda: step(plain, whole)),
        REPEATS,
    )
    yield Row(
        name=f"step of {TIMED} in chunks of {CHUNK}",
        ours=ours,
        reference=reference,
        unit="s",
        reference_name="the same at once",
    )
    yield Row(
        name=f"gradient of {TIMED} in chunks: difference",
        ours=[difference(method(CHUNK), method(None))],
        reference=[1e-4],
        unit="of its norm",
        reference_name="what is allowed",
    )


def peak_mib(batch_size: int, chunk_size: int | None) -> float:
    """Largest resident memory of a process that makes two steps, in MiB."""
    tune_for_cpu("32-true")
    module = method(chunk_size)
    batch = collated(module, batch_size)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
    before = psutil.Process(os.getpid()).memory_info().rss / (1 << 20)
    with PeakMemory() as peak:
        for _ in range(2):
            step(module, batch)
            optimizer.step()
    return before + peak.grown_mib


def difference(chunked: InstructCIR, plain: InstructCIR, size: int = TIMED) -> float:
    """How far two methods' gradients of one batch are apart, relative to the second's norm."""
    gradients = []
    for module in (chunked, plain):
        step(module, collated(module, size))
        found = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    ours, whole = gradients
    return float((ours - whole).norm() / whole.norm())


def method(chunk_size: int | None) -> InstructCIR:
    """With adapters that are not zero, so that every weight has a gradient."""
    torch.manual_seed(0)
    lora = Lora(rank=32, alpha=64, dropout=0.0)
    # Without chunks, prompts of one kind are one group.
    llm = MLLMSettings("zoo:tiny_mllm", lora=lora, max_length=512, group_size=LARGE)
    module = InstructCIR(llm, chunk_size=chunk_size)
    module.configure_model()
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return module.train()


def collated(module: InstructCIR, size: int) -> dict[str, Any]:
    """A batch of the world's pairs, grouped as chunks are."""
    data = WorldData(samples=size, batch_size=size, eval_batch_size=1, records="pairs")
    records = data.train_dataset()
    collate = module.train_collator()
    return dict(collate([records[SampleKey(0, number)] for number in range(size)]))


def step(module: InstructCIR, batch: dict[str, Any]) -> None:
    """Loss and backward pass."""
    module.zero_grad()
    torch.stack(list(module.losses(batch).values())).sum().backward()
