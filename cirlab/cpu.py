"""Two settings without which training on a CPU is several times slower."""

from __future__ import annotations

import ctypes
import sys

import torch

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Larger blocks still go back to the system: keeping them all would cost gigabytes.
_KEPT_BLOCK, _KEPT_HEAP = 32 << 20, 256 << 20


def tune_for_cpu() -> None:
    """Call once before training; does nothing where there is a GPU.

    glibc hands large blocks back to the system when they are freed, and every training step
    then faults its activations in again (measured on 2 cores with a tiny CLIP in float32: 77
    samples/s against 262). PyTorch's fused attention on the CPU has a slow backward pass in
    bfloat16 (137 against 385); the plain formulation replaces it.
    """
    if torch.cuda.is_available():
        return
    torch.backends.cuda.enable_flash_sdp(False)  # the switch of the CPU's kernel as well
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)
