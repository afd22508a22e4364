"""Refusals before any work: what method, data and benchmarks must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cirlab.benchmarks.base import Benchmark
from cirlab.errors import UserError
from cirlab.reading.files import missing_files
from cirlab.records import FileImage


def check_numbers(values: Mapping[str, int], least: int) -> None:
    """Arguments of a data module must not be too small.

    Raises:
        UserError: it names the first that is.
    """
    for name, value in values.items():
        if value < least:
            raise UserError(f"data.init_args.{name} is {value}; set it to {least} or more")


def check_within(name: str, value: float, low: float, high: float | None) -> None:
    """An argument of a data module must lie between two limits; None is no limit.

    Raises:
        UserError: it does not.
    """
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"data.init_args.{name} is {value}; choose a value {limits}")


def check_record(module: Any, data: Any) -> None:
    """The training records must be those the method learns from.

    Raises:
        UserError: they differ, or the method learns from none.
    """
    method, wanted = type(module).__name__, module.train_record
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    if not kinds:
        raise UserError(
            f"{method} is training-free, so fit has nothing to do; run validate instead (make "
            "validate EXP=name, or python -m cirlab validate -c file)"
        )
    if data.train_record not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"{method} learns from {names} records, but {type(data).__name__} gives "
            f"{data.train_record.__name__} records; choose another class under data or model"
        )


def check_names(benchmarks: Sequence[Benchmark]) -> None:
    """Results are filed under benchmark names, so names must differ.

    Raises:
        UserError: two are equal.
    """
    names = [benchmark.name for benchmark in benchmarks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two benchmarks are called {name!r}; give each its own name in "
                "data.init_args.benchmarks"
            )


def check_kind(module: Any, benchmark: Benchmark) -> None:
    """The method must answer the benchmark's kind of query.

    Raises:
        UserError: it does not.
    """
    kinds: frozenset[str] = getattr(module, "query_kinds", frozenset())
    if benchmark.kind in kinds:
        return
    method = type(module).__name__
    asked = f"benchmark {benchmark.name!r} asks {benchmark.kind} queries, but {method} answers"
    if not kinds:
        raise UserError(
            f"{asked} no queries at all; name the kinds that it answers in its class's "
            "query_kinds, or remove the benchmark from data.init_args.benchmarks"
        )
    *others, last = sorted(kinds)
    answered = f"{', '.join(others)} and {last}" if others else last
    raise UserError(
        f"{asked} only {answered} queries; remove it from data.init_args.benchmarks or choose "
        "another model"
    )


def check_filled(benchmark: Benchmark) -> None:
    """A benchmark that was set up must have a gallery and queries.

    Raises:
        UserError: one of them is empty.
    """
    if not len(benchmark.gallery):
        raise UserError(
            f"the gallery of benchmark {benchmark.name!r} is empty; give it at least one image"
        )
    if not len(benchmark.queries):
        raise UserError(
            f"benchmark {benchmark.name!r} has no queries; give it at least one, or remove it "
            "from data.init_args.benchmarks"
        )
    if benchmark.answered and not any(query.targets for query in benchmark.queries):
        raise UserError(
            f"no query of benchmark {benchmark.name!r} has a target; evaluate a split whose "
            "answers are public"
        )


def check_files(images: Sequence[FileImage]) -> None:
    """All image files must be there.

    Raises:
        UserError: it counts the missing ones and names the first.
    """
    if missing := missing_files(images):
        raise UserError(
            f"{len(missing):,} of {len(images):,} images are missing, the first is "
            f"{missing[0].path}; add them, or set on_error: skip to leave them out"
        )


def image_files(benchmark: Benchmark) -> Iterator[FileImage]:
    """The files a benchmark's gallery and queries name, where its images are files, each once."""
    seen: set[Path] = set()
    for image in (*benchmark.gallery, *(query.image for query in benchmark.queries)):
        if isinstance(image, FileImage) and image.path not in seen:
            seen.add(image.path)
            yield image
