"""Triplets of MTCIR's size in four loader workers, against parsing the whole file into a list.

The usual way (as training scripts of composed retrieval do it) reads all annotations into Python
objects before the first batch.

Memory is the proportional set size (PSS) summed over the process and its workers: a page that n
processes share counts as 1/n in each of them, so that the sum is what all of them hold together.
Where the system tells no PSS (it is Linux's), it is the unique set size, without shared pages.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import psutil
import rich.console

from bench.__main__ import table
from bench.measure import Row, in_own_process, in_turns
from cirlab.errors import UserError
from cirlab.reading.jsonl import Row as Line
from cirlab.records import Triplet
from datamodules.mtcir import FolderStore, MtcirData, MtcirKeys, MtcirTriplets

#: Pairs of MTCIR and the paper's batch (CoLLM, arXiv 2503.19910, sections 4 and 5).
ROWS, BATCH = 3_400_000, 1024
WORKERS, BATCHES, IMAGES, REPEATS = 4, 48, 64, 1
#: What a parsed line takes as Python objects, and what is left to everybody else.
_BYTES_PER_PARSED_ROW, _SPARE_BYTES = 3_000, 4 << 30
_CHANGES = (
    ("attribute change", "make the jacket dark blue with white buttons instead of brown"),
    ("added object", "put a small dog on a red leash beside the person on the left"),
    ("removed object", "take the bicycle away from the wall"),
    ("relationship change", "have the cup stand on top of the two books rather than next to them"),
    ("viewpoint change", "look at the street from above"),
)


@dataclass(frozen=True)
class Outcome:
    """One start of training in a process of its own.

    Attributes:
        time: seconds until the first batch, importing aside.
        memory: MiB of the process and its workers together at the peak, everything included.
        first: the first text of every triplet of the first batch.
    """

    time: float
    memory: float
    first: tuple[str, ...]


def run(rows: int = ROWS) -> list[Row]:
    """Seconds to the first batch and memory, of a file with so many rows."""
    rows = min(rows, affordable_rows())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder)
        path = write_annotations(folder / "mtcir.jsonl", rows)
        ours, usual = in_turns(
            lambda: in_own_process(by_offsets, path),
            lambda: in_own_process(by_parsing, path),
            REPEATS,
        )
        again = [in_own_process(by_offsets, path) for _ in range(REPEATS)]
    for one, other, third in zip(ours, usual, again, strict=True):
        check_equal(one, other)
        check_equal(third, other)
    title = f"{rows:,} triplets, {WORKERS} workers"
    reference = "parsed into a list"
    times, memory = [u.time for u in usual], [u.memory for u in usual]
    unit = f"MiB {memory_kind()}"
    return [
        Row(f"{title}: first batch", [o.time for o in ours], times, "s", reference),
        Row(f"{title}: first batch, index kept", [a.time for a in again], times, "s", reference),
        Row(f"{title}: memory of all", [o.memory for o in ours], memory, unit, reference),
    ]


def affordable_rows() -> int:
    """As many rows as the usual way has memory for."""
    free = psutil.virtual_memory().available - _SPARE_BYTES
    return max(2 * BATCH, free // _BYTES_PER_PARSED_ROW)


def check_equal(ours: Outcome, usual: Outcome) -> None:
    """Both ways must give the same first batch.

    Raises:
        AssertionError: they do not.
    """
    if ours.first != usual.first:
        raise AssertionError("the first batches differ")


def by_offsets(path: Path) -> Outcome:
    """This project's way; the second start finds the index of the first."""
    return _start(lambda: _data(MtcirData, path))


def by_parsing(path: Path) -> Outcome:
    """The usual way, with everything else the same."""
    return _start(lambda: _data(ParsedData, path))


class ParsedData(MtcirData):
    """The same triplets from a list of parsed lines."""

    def train_dataset(self) -> MtcirTriplets:
        if self._dataset is None:
            rows: Any = ParsedLines(Path(self.annotations[0]))
            self._dataset = MtcirTriplets(rows, FolderStore(str(self.images)), MtcirKeys())
        return self._dataset


class ParsedLines(Sequence[Line]):
    """Every line as Python objects.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.fields = [json.loads(line) for line in file]

    def __len__(self) -> int:
        return len(self.fields)

    def __getitem__(self, at: Any) -> Any:
        return Line(self.fields[at], f"line {at + 1}")


class TreeMemory:
    """Watches this process and its children: `with TreeMemory() as peak`.

    Attributes:
        mib: the largest sum seen, see the module.
    """

    def __init__(self, interval_s: float = 0.1) -> None:
        self.interval_s = interval_s
        self.mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def look(self) -> None:
        """Take a sum now."""
        own = psutil.Process()
        self.mib = max(self.mib, sum(map(held_mib, [own, *own.children(recursive=True)])))

    def _watch(self) -> None:
        while not self._done.wait(self.interval_s):
            self.look()


def held_mib(process: psutil.Process) -> float:
    """A process's share of the memory; 0 if it has ended."""
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0.0
    return float(getattr(info, "pss", info.uss)) / (1 << 20)


def memory_kind() -> str:
    """What `held_mib` measures on this system."""
    return "PSS" if hasattr(psutil.Process().memory_full_info(), "pss") else "USS"


def write_images(folder: Path) -> None:
    """A few JPEG files that all triplets name."""
    for number in range(IMAGES):
        PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / image_name(number))


def write_annotations(path: Path, rows: int) -> Path:
    """A file of `rows` triplets with five texts each, about 700 bytes a line."""
    changes = [{"category": kind, "text": text} for kind, text in _CHANGES[1:]]
    rest = json.dumps(changes)[1:]
    kind, text = _CHANGES[0]
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            reference, target = image_name(row % IMAGES), image_name((row + 1) % IMAGES)
            first = f'{{"category": "{kind}", "text": "{text} {row}"}}'
            file.write(
                f'{{"id": {row}, "image": "{reference}", "target_image": "{target}", '
                f'"modifications": [{first}, {rest}}}\n'
            )
    return path


def image_name(number: int) -> str:
    """As long as the paths of LLaVA's images are."""
    return f"llava_pretrain_{number:09d}.jpg"


def first_texts(triplets: Sequence[Triplet]) -> dict[str, Any]:
    """What a method without images would collate."""
    return {"texts": tuple(triplet.texts[0] for triplet in triplets)}


def _data(kind: type[MtcirData], path: Path) -> MtcirData:
    return kind(
        annotations=str(path),
        images=str(path.parent),
        batch_size=BATCH,
        eval_batch_size=1,
        num_workers=WORKERS,
        index_cache=str(path.parent / "index"),
    )


def _start(make: Callable[[], MtcirData]) -> Outcome:
    # A spawned process would spawn its workers, too; a training run starts them as the system does.
    multiprocessing.set_start_method(None, force=True)
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    with TreeMemory() as peak:
        begun = time.perf_counter()
        data = make()
        module = SimpleNamespace(train_collator=lambda: first_texts)
        trainer: Any = SimpleNamespace(lightning_module=module, distributed_sampler_kwargs=None)
        data.trainer = trainer
        batches = iter(data.train_dataloader())
        first = _texts(next(batches))
        elapsed = time.perf_counter() - begun
        for batch in islice(batches, BATCHES):
            _texts(batch)
        # While the workers still live.
        peak.look()
    return Outcome(elapsed, peak.mib, first)


def _texts(batch: Any) -> tuple[str, ...]:
    if isinstance(batch, UserError):
        raise batch
    texts: tuple[str, ...] = batch["texts"]
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m bench.annotations --rows 100000`: the same for another number of rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.annotations", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="lines of the file")
    options = parser.parse_args(arguments)
    rich.console.Console().print(table(run(options.rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
