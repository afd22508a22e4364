"""What training on a CPU needs so as not to be many times slower."""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Larger blocks still go back to the system: keeping them all would cost gigabytes.
_KEPT_BLOCK, _KEPT_HEAP = 32 << 20, 256 << 20


def tune_for_cpu(precision: str) -> None:
    """Call once before training on a CPU.

    glibc hands large blocks back to the system when they are freed, and every training step
    then faults its activations in again (measured on 2 cores with a tiny CLIP in float32: 77
    samples/s against 262). PyTorch's fused attention has a slow backward pass in bfloat16 (137
    samples/s against 385 by the plain formulation), not in float32 (CoLLM: 2.6 s a step
    against 3.0).

    Args:
        precision: of the trainer.
    """
    # The switch of the CPU's kernel as well.
    torch.backends.cuda.enable_flash_sdp(not precision.startswith("bf16"))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)


def affordable_precision(precision: str) -> str:
    """The precision that this CPU computes in where `precision` is asked for.

    Without units for bfloat16, products of it are emulated: 25 to 50 times slower than in
    float32 (measured on an AVX2 processor). Mixed precision is there for speed alone, so that
    float32 takes its place, and the run's record says so; `bf16-true`, which also halves the
    memory, stays.
    """
    if precision != "bf16-mixed" or bfloat16_pays():
        return precision
    log.info("bfloat16 is slower on this CPU: trainer.precision is 32-true, not %s", precision)
    return "32-true"


def bfloat16_pays() -> bool:
    """Whether the CPU trains faster in bfloat16 than in float32.

    Units for matrices are needed, or AVX-512's instructions for bfloat16 on a processor that has
    them at full width. On Intel's without AMX they are not enough (CoLLM on the world: 0.59 steps/s
    by them and 0.90 in float32); on AMD's they multiply matrices five times as fast (the tiny
    multimodal LLM: 147 samples/s against 96). A matter of the model of the processor, not measured
    at the start: all processes of a run have to agree.
    """
    there = torch.cpu.get_capabilities()
    if any(there.get(name, False) for name in ("amx_bf16", "bf16")):
        return True
    return bool(there.get("avx512_bf16", False)) and vendor() == "AuthenticAMD"


def vendor() -> str:
    """Who made the processor, as Linux tells it; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    found = re.search(r"^vendor_id\s*:\s*(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else ""
