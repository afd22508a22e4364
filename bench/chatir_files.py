"""ChatIR's five released dialogue files from file to hits by round, against sorting all scores.

A query for each of the 11 rounds of 2,064 dialogues, searched in 50,000 images, five times over:
read with `cirlab.benchmarks.ChatIR`, ranked and scored as an evaluation does it. The usual way
reads the same files, multiplies, argsorts every row and looks the target up, in parts that fit the
memory.

`DATA_ROOT=/data python -m bench chatir_files` takes the files from /data/chatir; without them,
files of the same shape are made up. Features are random either way: vectors of images as in
`bench.evaluation`, and of a dialogue its image's with the signs of many numbers turned, of fewer in
each round. Scores are exact, and both ways must agree on every hit and on the mean ranks.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.evaluation import DIM, affordable_queries, exact_vectors, with_ties
from bench.measure import Row
from cirlab.benchmarks.chatir import DIALOGUES, SEARCH_SPACE, TEXTS_OF_A_DIALOGUE, ChatIR
from cirlab.dialogue.files import CHATIR_DIALOGUES
from cirlab.retrieval.evaluation import Encoded, Gallery, evaluate

HITS_AT = 10
#: For all five files on 2 cores.
ALLOWED_S = 60.0
#: Share of signs that are turned in round 0, where an image says nothing, and how much less in each
#: further round.
TURNED, LESS = 0.5, 0.02
#: Queries that the usual way sorts at once, 4.6 GB, unless memory has room for fewer.
AT_ONCE = 5_676


@dataclass(frozen=True)
class Features:
    """What an encoder would make of a file.

    Attributes:
        gallery: of the images, in the order of the search space. Shape (G, D).
        queries: of the rounds of the first dialogue, of the second, and so on. Shape (Q, D).
    """

    gallery: torch.Tensor
    queries: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What one way made of a file.

    Attributes:
        time: seconds, from reading the file on.
        cpu: seconds of all cores together, which other work on the machine lengthens little.
        hits: cumulative, by round.
        mean_ranks: by round.
    """

    time: float
    cpu: float
    hits: tuple[float, ...]
    mean_ranks: tuple[float, ...]


def run() -> list[Row]:
    """Both ways, file by file in turns."""
    ours, usual = [], []
    with files() as (folder, whose):
        gallery = exact_vectors(np.random.default_rng(0), SEARCH_SPACE)
        for number, name in enumerate(CHATIR_DIALOGUES):
            features = drawn(folder, name, gallery, seed=number)
            ours.append(by_counting(folder, name, features))
            usual.append(by_sorting(folder, name, features))
            check_equal(ours[-1], usual[-1])
    name = f"a {whose} file, {DIALOGUES:,} x {TEXTS_OF_A_DIALOGUE} x {SEARCH_SPACE:,} x {DIM}"
    way = "score matrix, argsort"
    times = [one.time for one in ours]
    return [
        Row(f"{name}: time", times, [other.time for other in usual], "s", way),
        Row(f"{name}: CPU", [one.cpu for one in ours], [o.cpu for o in usual], "CPU s", way),
        Row(f"all {len(ours)} {whose} files: time", [sum(times)], [ALLOWED_S], "s", "allowed"),
    ]


@contextmanager
def files() -> Iterator[tuple[Path, str]]:
    """A folder of ChatIR's files, and whose they are."""
    folder = Path(os.environ.get("DATA_ROOT", ""), "chatir")
    if os.environ.get("DATA_ROOT") and folder.is_dir():
        yield folder, "released"
        return
    sys.stderr.write(
        "DATA_ROOT holds no folder chatir with the released dialogues; files of the same shape are "
        "made up in their place\n"
    )
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name))
        yield Path(name), "made-up"


def write_files(root: Path) -> None:
    """Dialogues in ChatIR's layout and of its size, each file about the same images."""
    images = [f"unlabeled2017/{number:012d}.jpg" for number in range(SEARCH_SPACE)]
    corpus = root / "ChatIR_Protocol" / "Search_Space_val_50k.json"
    corpus.parent.mkdir()
    corpus.write_text(json.dumps(images), encoding="utf-8")
    (root / "dialogues").mkdir()
    meant = np.random.default_rng(0).permutation(SEARCH_SPACE)[:DIALOGUES]
    for name in CHATIR_DIALOGUES:
        rows = [
            {"img": images[image], "dialog": ["a photo of something", *made_up_rounds(image)]}
            for image in meant.tolist()
        ]
        (root / "dialogues" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


def made_up_rounds(image: int) -> list[str]:
    """Questions and answers."""
    rounds = range(1, TEXTS_OF_A_DIALOGUE)
    return [f"is it more than {number} of these things? {image % number}" for number in rounds]


def drawn(folder: Path, name: str, gallery: torch.Tensor, seed: int) -> Features:
    """Vectors of a file's queries, which are nearer to their image in each round."""
    targets = torch.from_numpy(targets_of(folder, name))
    turned = TURNED - LESS * torch.arange(TEXTS_OF_A_DIALOGUE)
    chances = turned.repeat(len(targets) // TEXTS_OF_A_DIALOGUE)[:, None]
    generator = torch.Generator().manual_seed(seed)
    turn = torch.rand(len(targets), gallery.shape[1], generator=generator) < chances
    # With other signs a vector is as long as before, and scores stay exact.
    return Features(gallery, torch.where(turn, -1, 1) * gallery[targets])


def targets_of(folder: Path, name: str) -> np.ndarray:
    """Where in the search space each query's image is, as a script would read it. Shape (Q,)."""
    corpus = json.loads((folder / "ChatIR_Protocol" / "Search_Space_val_50k.json").read_bytes())
    place = {image: number for number, image in enumerate(corpus)}
    rows = json.loads((folder / "dialogues" / f"{name}.json").read_bytes())
    return np.array([place[row["img"]] for row in rows for _ in row["dialog"]])


class Stopwatch:
    """Adds up the time of its blocks: `with watch:`.

    Attributes:
        time: seconds.
        cpu: seconds of all cores together.
    """

    def __init__(self) -> None:
        self.time = self.cpu = 0.0

    def __enter__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.time += time.perf_counter() - self._begun[0]
        self.cpu += time.process_time() - self._begun[1]


def by_counting(folder: Path, name: str, features: Features) -> Outcome:
    """This project's way."""
    watch = Stopwatch()
    with watch:
        benchmark = ChatIR(str(folder), name, hits_at=HITS_AT)
        benchmark.setup()
        gallery = Gallery(benchmark.gallery, encoded("gallery", features.gallery))
        found = evaluate(benchmark, gallery, encoded("query", features.queries))
    rounds = found.results["breakdown"]["round"].values()
    return Outcome(
        watch.time,
        watch.cpu,
        tuple(each[f"cumulative_hits_at_{HITS_AT}"] for each in rounds),
        tuple(each["mean_rank"] for each in rounds),
    )


def encoded(name: str, vectors: torch.Tensor) -> Encoded:
    """All of them readable."""
    return Encoded({name: vectors}, torch.ones(len(vectors), dtype=torch.bool))


def by_sorting(folder: Path, name: str, features: Features) -> Outcome:
    """The usual way; ties are decided by the same rule afterwards, outside the measurement."""
    watch = Stopwatch()
    with watch:
        targets = torch.from_numpy(targets_of(folder, name))
    ranks = []
    at_once = min(AT_ONCE, affordable_queries())
    for queries, meant in zip(features.queries.split(at_once), targets.split(at_once), strict=True):
        with watch:
            scores = queries @ features.gallery.T
            order = scores.argsort(dim=1, descending=True)
            places = (order == meant[:, None]).nonzero()[:, 1]
        ranks.append(with_ties(scores, order, places, meant))
    table = torch.cat(ranks).reshape(-1, TEXTS_OF_A_DIALOGUE)
    done = (table <= HITS_AT).cummax(dim=1).values
    return Outcome(
        watch.time,
        watch.cpu,
        tuple(done.double().mean(dim=0).tolist()),
        tuple(table.double().mean(dim=0).tolist()),
    )


def check_equal(ours: Outcome, usual: Outcome) -> None:
    """Both ways must give the same hits and the same mean ranks.

    Raises:
        AssertionError: they do not.
    """
    if ours.hits != usual.hits:
        raise AssertionError(f"hits by round are {ours.hits}, by sorting {usual.hits}")
    if ours.mean_ranks != usual.mean_ranks:
        raise AssertionError("the mean ranks differ")
