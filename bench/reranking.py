"""The second stage's memory for a gallery of 50,000 images, against one of 2,000.

BLIP's image-text matching reads each query's best images again (`Blip.rerank`), block by block, as
an evaluation does it: Lightning's validation with the retrieval callback. Pictures exist while they
are looked at only. The gallery's vectors, of which the second stage needs none, grow with it by
nature; here they are drawn at random, so that every query finds other images.

Memory is the peak above what the process held when the second stage began, in a process of its own
each time, where freed blocks of 64 KiB or more go back to the system at once. Kept for the next,
as they are otherwise, they add 30 to 130 MiB to either, another number in each run. Time, taken in
further processes without that, is the CPU's with one thread, so that other work on the machine
matters little.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import PIL.Image
import torch

from bench.measure import PeakMemory, Row, in_own_process, in_turns
from callbacks import RetrievalEvaluation
from cirlab.benchmarks.base import Benchmark, TargetRanks
from cirlab.metrics import recalls
from cirlab.records import Image, Query
from cirlab.world.language import caption
from cirlab.world.scene import draw_scene, generator
from datamodules import WorldData
from lightning_modules import Blip, BlipFromScratch

# A parameter of glibc's mallopt(3).
_M_MMAP_THRESHOLD = -3
SMALL, LARGE = 2_000, 50_000
#: Best images of a query that are read again. Together the queries find nearly all of the gallery,
#: each image about four times, so that a block has as many pairs as are ever scored at once.
DEPTH, QUERIES = 100, 2_000
DIM, BATCH, REPEATS = 256, 500, 3
SIZE = 64
VISION = {
    "image_size": SIZE,
    "patch_size": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Outcome:
    """One evaluation in a process of its own.

    Attributes:
        memory: MiB at the peak of the second stage, beyond what the process held when it began.
        time: CPU milliseconds of the second stage, for each query.
        pairs: that it scored.
        images: that it read.
    """

    memory: float
    time: float
    pairs: int
    images: int


def run() -> Iterator[Row]:
    """Memory and time of both galleries, in turns."""
    large, small = measured(handing_back)
    name = f"second stage, best {DEPTH} of {LARGE:,} images, {QUERIES:,} queries"
    beside = f"beside the vectors ({vectors_mib(LARGE):.0f} MiB, here {vectors_mib(SMALL):.0f})"
    reference = f"of {SMALL:,} images"
    memory = [one.memory for one in large]
    other = [one.memory for one in small]
    yield Row(f"{name}: memory {beside}", memory, other, "MiB", reference)
    pixels = [pixels_mib(one.images) for one in large]
    yield Row(f"{name}: memory", memory, pixels, "MiB", "pixels of all images read")
    large, small = measured(with_one_thread)
    read = f"{large[0].images:,} images read, here {small[0].images:,}"
    times = [one.time for one in large], [one.time for one in small]
    yield Row(f"{name}: time ({read})", *times, unit="CPU ms/query", reference_name=reference)


def measured(how: Callable[[int], Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Evaluations with both galleries in turns, each in a process of its own."""
    large, small = in_turns(
        lambda: in_own_process(how, LARGE), lambda: in_own_process(how, SMALL), REPEATS
    )
    for one, other in zip(large, small, strict=True):
        check_alike(one, other)
    return large, small


def vectors_mib(images: int) -> float:
    """What the vectors of so many images take, in float32."""
    return images * DIM * 4 / (1 << 20)


def pixels_mib(images: int) -> float:
    """What so many images take that are ready for the image tower, in float32."""
    return images * 3 * SIZE**2 * 4 / (1 << 20)


def check_alike(large: Outcome, small: Outcome) -> None:
    """Both must have had the same work.

    Raises:
        AssertionError: they had not.
    """
    if large.pairs != small.pairs:
        raise AssertionError(f"{large.pairs:,} pairs were scored, and {small.pairs:,}")


def with_one_thread(images: int) -> Outcome:
    """`evaluation` in a process of its own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return evaluation(images)


def handing_back(images: int) -> Outcome:
    """The same, in which glibc keeps no larger block that was freed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, 64 << 10)
    return with_one_thread(images)


def evaluation(images: int) -> Outcome:
    """Evaluate with a gallery of so many images, and watch the second stage."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    watched, method = WatchedEvaluation(), TinyBlip()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[watched],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = WorldData(1, 1, BATCH, benchmarks=[NoiseSearch(images, QUERIES, DEPTH)])
    trainer.validate(method, data, verbose=False)
    time_of_each = 1000 * watched.seconds / QUERIES
    return Outcome(watched.memory, time_of_each, method.pairs, method.images)


class WatchedEvaluation(RetrievalEvaluation):
    """Measures its second stage.

    Attributes:
        memory: MiB at its peak.
        seconds: of the CPU.
    """

    memory = seconds = 0.0

    def _rerank(self, module: Any, benchmark: Benchmark, *known: Any) -> Any:
        # What a process pays once, to load the libraries' code, is no part of it.
        with torch.inference_mode():
            pair = torch.zeros(1, 2, dtype=torch.long)
            Blip.rerank(module, benchmark.queries[:1], benchmark.gallery[:1], pair, torch.zeros(1))
        hand_back()
        start = time.process_time()
        with PeakMemory() as peak:
            found = super()._rerank(module, benchmark, *known)
        self.seconds, self.memory = time.process_time() - start, peak.grown_mib
        return found


def hand_back() -> None:
    """Give the system what was freed: used again, it would count as none."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


class TinyBlip(Blip):
    """A BLIP of random weights whose first stage is told its vectors.

    Attributes:
        pairs: that were scored by the second stage.
        images: that it read, each of which comes once.
    """

    def __init__(self) -> None:
        super().__init__(from_scratch=BlipFromScratch(VISION, TEXT, embed_dim=DIM), export_to="")
        self.pairs = self.images = 0

    def image_collator(self) -> Callable[[Sequence[Image]], Any]:
        return drawn

    def query_collator(self) -> Callable[[Sequence[Query]], Any]:
        return drawn

    def encode_images(self, inputs: Any, prompt: str | None = None) -> torch.Tensor:
        vectors: torch.Tensor = inputs["vectors"]
        return vectors

    def encode_queries(self, inputs: Any) -> torch.Tensor:
        return self.encode_images(inputs)

    def rerank(self, queries: Any, items: Any, pairs: Any, scores: Any) -> torch.Tensor:
        self.pairs += len(pairs)
        self.images += len(items)
        return super().rerank(queries, items, pairs, scores)


def drawn(records: Sequence[Image] | Sequence[Query]) -> dict[str, torch.Tensor]:
    """Random unit vectors, each a function of the record's id."""
    seeds = ([ord(sign) for sign in record.id] for record in records)
    rows = [np.random.default_rng(seed).standard_normal(DIM, np.float32) for seed in seeds]
    return {"vectors": torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)), dim=1)}


@dataclass(frozen=True)
class Noise(Image):
    """A picture that exists while somebody looks at it only."""

    def load(self) -> PIL.Image.Image:
        rng = np.random.default_rng(int(self.id))
        return PIL.Image.fromarray(rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8))


class NoiseSearch(Benchmark):
    """Captions of the built-in world, which look for pictures of noise.

    Args:
        images: in the gallery.
        queries: of which each means another image.
        depth: best images of each query that the second stage puts in order.
    """

    kind = "text"
    name = "noise"
    gallery: Sequence[Noise]

    def __init__(self, images: int, queries: int, depth: int) -> None:
        self.gallery = [Noise(str(number)) for number in range(images)]
        self.rerank_depth = depth
        self.queries = [
            Query(id=f"query {number}", text=words(number), targets=(str(number % images),))
            for number in range(queries)
        ]

    def setup(self) -> None:
        """Everything is there."""

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        return recalls(ranks.targets, (1, 10))


def words(number: int) -> str:
    """A caption."""
    rng = generator("val", 0, number)
    return caption(draw_scene(rng), rng)
