"""What a run ran on: code, packages, device, memory."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "open_clip_torch",
    "timm",
    "faiss-gpu-cu12",
    "faiss-cpu",
    "numpy",
)
MIB = 2**20
#: A look at the process tree costs some ten milliseconds.
SECONDS_BETWEEN_LOOKS = 5.0


def code_revision(folder: Path | None = None) -> dict[str, str | bool]:
    """The git commit of the code, and whether files differ from it.

    Args:
        folder: inside the repository; None: where this package lies.

    Returns:
        {"revision": "unknown", "dirty": False} outside a repository or without git.
    """
    folder = folder or Path(__file__).resolve().parent
    revision = _git("rev-parse", "HEAD", folder=folder)
    if revision is None:
        return {"revision": "unknown", "dirty": False}
    return {"revision": revision, "dirty": bool(_git("status", "--porcelain", folder=folder))}


def package_versions() -> dict[str, str]:
    """Versions of python and of the packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {psutil.cpu_count()} cores"


class PeakMemory:
    """The most memory seen at the moments it was asked to look.

    Attributes:
        host_mib: resident memory of the process and what its loader workers have beside it.
    """

    def __init__(self) -> None:
        self.host_mib = 0.0
        self._looked = 0.0

    def look(self, *, now: bool = False) -> None:
        """Measure, unless that was done less than five seconds ago and `now` is not set."""
        if not now and time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        process = psutil.Process()
        total = process.memory_info().rss
        for child in process.children(recursive=True):
            try:
                total += child.memory_full_info().uss
            except psutil.Error:  # it has ended meanwhile
                continue
        self.host_mib = max(self.host_mib, total / MIB)

    @property
    def device_mib(self) -> float:
        """The most that torch held on the current CUDA device, 0 without one."""
        return torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else 0.0


def _processor() -> str:
    """The processor's model, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
