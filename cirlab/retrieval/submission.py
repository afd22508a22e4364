"""Files for the evaluation servers of CIRR and CIRCO, written and checked offline.

A server tells little of what is wrong with a file, if it answers at all. The checks here read a
file back as the server does and name every violation.

Formats: CIRR, https://github.com/Cuberick-Orion/CIRR/blob/main/Test-split_server.md; CIRCO,
https://github.com/miccunifi/CIRCO#submission-format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.servers import CIRR_VERSION, LIST_SIZE
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.records import Query
from cirlab.retrieval.evaluation import Ranking

#: Members of its subset that CIRR's server wants of each query, by metric.
CIRR_LIST_SIZES = {"recall": LIST_SIZE, "recall_subset": 3}
#: Megabytes, as CIRR's server gives its limit.
CIRR_MAX_BYTES = 5_000_000

Lists = Mapping[str, Sequence[Any]]


def write_cirr(benchmark: Benchmark, ranking: Ranking, folder: Path) -> list[Path]:
    """Write `<benchmark>_recall.json` and `<benchmark>_recall_subset.json`.

    Queries that were not ranked are missing in the files and rankings may be too short, which
    `check_cirr` then tells.

    Args:
        benchmark: its queries' ids are CIRR's pair ids.
        ranking: `images` holds the best 50 or more, `subset` the best 3 or more.
        folder: of the files; it is made.

    Raises:
        UserError: the ranking has no subsets.
    """
    if ranking.subset is None:
        raise UserError(
            f"benchmark {benchmark.name!r} has no subsets, but CIRR's server asks for a ranking "
            "within each query's subset; give its queries the members of their img_set"
        )
    found = {"recall": ranking.images, "recall_subset": ranking.subset}
    paths = []
    for metric, size in CIRR_LIST_SIZES.items():
        lists = _lists(benchmark, ranking, found[metric], size)
        names = {query: [cirr_name(item) for item in items] for query, items in lists.items()}
        path = folder / f"{_file_name(benchmark)}_{metric}.json"
        paths.append(_write(path, {"version": CIRR_VERSION, "metric": metric, **names}))
    return paths


def write_circo(benchmark: Benchmark, ranking: Ranking, folder: Path) -> list[Path]:
    """Write `<benchmark>.json`.

    Queries that were not ranked are missing in the file and rankings may be too short, which
    `check_circo` then tells.

    Args:
        benchmark: its gallery's ids are COCO's image ids or file names.
        ranking: `images` holds the best 50 or more.
        folder: of the file; it is made.

    Raises:
        UserError: an id of the gallery holds no number.
    """
    lists = _lists(benchmark, ranking, ranking.images, LIST_SIZE)
    numbers = {query: [coco_number(item) for item in items] for query, items in lists.items()}
    return [_write(folder / f"{_file_name(benchmark)}.json", numbers)]


def check_cirr(path: Path, benchmark: Benchmark) -> list[str]:
    """Every violation of the rules of CIRR's server, one sentence each; none if all is well.

    Args:
        path: either of the two files; its "metric" says which.
        benchmark: the split that is submitted, set up.

    Raises:
        UserError: there is no such file.
    """
    content, found = _read(path)
    if content is None:
        return found
    if path.stat().st_size > CIRR_MAX_BYTES:
        size = path.stat().st_size
        found.append(f"the file has {size:,} bytes, the server takes {CIRR_MAX_BYTES:,} at most")
    version, metric = content.pop("version", None), content.pop("metric", None)
    if version != CIRR_VERSION:
        found.append(f"version is {version!r}, must be {CIRR_VERSION!r}")
    size_of = CIRR_LIST_SIZES.get(metric) if isinstance(metric, str) else None
    if size_of is None:
        found.append(f"metric is {metric!r}, must be {' or '.join(map(repr, CIRR_LIST_SIZES))}")
    known = {cirr_name(item.id) for item in benchmark.gallery}
    found += _check_queries(content, benchmark)
    for query in benchmark.queries:
        names = content.get(query.id)
        if names is None:
            continue
        within = None
        if metric == "recall_subset" and query.subset is not None:
            within = {cirr_name(item) for item in query.subset}
        found += _check_list(query, names, size_of, known, within, kind=str)
        if query.image is not None and _holds(names, cirr_name(query.image.id)):
            found.append(f"query {query.id} names its reference {cirr_name(query.image.id)}")
    return found


def check_circo(path: Path, benchmark: Benchmark) -> list[str]:
    """Every violation of the rules of CIRCO's server, one sentence each; none if all is well.

    Args:
        path: the file.
        benchmark: the split that is submitted, set up.

    Raises:
        UserError: there is no such file, or an id of the gallery holds no number.
    """
    content, found = _read(path)
    if content is None:
        return found
    known = {coco_number(item.id) for item in benchmark.gallery}
    found += _check_queries(content, benchmark)
    for query in benchmark.queries:
        if query.id in content:
            found += _check_list(query, content[query.id], LIST_SIZE, known, None, kind=int)
    return found


def cirr_name(item: str) -> str:
    """CIRR's name of an image: "dev-244-0-img0" of "./dev/dev-244-0-img0.png"."""
    return PurePosixPath(item).name.removesuffix(".png")


def coco_number(item: str) -> int:
    """COCO's id of an image: 243611 of "unlabeled2017/000000243611.jpg", or of its digits.

    Raises:
        UserError: the name does not end in digits.
    """
    digits = re.search(r"\d+$", PurePosixPath(item).stem)
    if digits is None:
        raise UserError(
            f"the gallery image {item!r} has no COCO id at the end of its name; CIRCO's server "
            "knows images by these, so use COCO's file names as ids"
        )
    return int(digits.group())


def _lists(
    benchmark: Benchmark, ranking: Ranking, images: Tensor, size: int
) -> dict[str, list[str]]:
    """The gallery ids of each ranked query's best images. Shape of `images` (Q, k)."""
    # -1 stands where there are fewer images than k.
    return {
        benchmark.queries[row].id: [benchmark.gallery[place].id for place in places if place >= 0]
        for row, places in zip(ranking.queries, images[:, :size].tolist(), strict=True)
    }


def _file_name(benchmark: Benchmark) -> str:
    return benchmark.name.replace("/", "_")


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    """Replace a file as a whole; without spaces, which CIRR's limit leaves little room for."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """A file's content, None if it is no JSON object, and what is wrong with it as one."""
    if not path.is_file():
        raise UserError(f"there is no submission file {path}; correct the path")
    twice: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Of equal keys a parser takes the last without a word.
        counts = Counter(key for key, _ in pairs)
        twice.extend(f"{key!r} stands {n} times" for key, n in counts.items() if n > 1)
        return dict(pairs)

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=mapping)
    except ValueError as error:
        return None, [f"the file is not valid JSON ({error})"]
    if not isinstance(content, dict):
        return None, [f"the file holds a {type(content).__name__}, must be one object"]
    return content, twice


def _check_queries(content: Lists, benchmark: Benchmark) -> list[str]:
    queries = {query.id for query in benchmark.queries}
    missing = [f"query {q.id} is missing" for q in benchmark.queries if q.id not in content]
    unknown = [f"{key!r} is no query of {benchmark.name}" for key in content if key not in queries]
    return missing + unknown


def _check_list(
    query: Query,
    names: Any,
    size: int | None,
    known: set[Any],
    within: set[str] | None,
    kind: type,
) -> list[str]:
    """What is wrong with one query's list: its length, types, repetitions, names."""
    if not isinstance(names, list):
        return [f"query {query.id} has {names!r}, must have a list"]
    found = []
    if size is not None and len(names) != size:
        found.append(f"query {query.id} has {len(names)} images, must have {size}")
    # bool is an int to Python, and 1.0 equals 1, but neither is an id.
    wrong = [name for name in names if type(name) is not kind]
    found += [f"query {query.id} names {name!r}, which is no {kind.__name__}" for name in wrong]
    for name, times in Counter(name for name in names if type(name) is kind).items():
        if times > 1:
            found.append(f"query {query.id} names {name} {times} times")
        if name not in known:
            found.append(f"query {query.id} names {name}, which is not in the gallery")
        elif within is not None and name not in within:
            found.append(f"query {query.id} names {name}, which is not in its subset")
    return found


def _holds(names: Any, name: str) -> bool:
    return isinstance(names, list) and name in names
