"""Views of a gallery: its images looked at for what a query asks about.

A method that can look at an image with a prompt gives it one vector for each prompt (Promptable
embeddings, arXiv 2505.15877). Which prompt is a query's is the method's choice; from all choices
follows which images have to be looked at for what, and in which vectors each query is ranked.
Queries that are about nothing in particular, and all queries of other methods, have the view
`None`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cirlab.benchmarks.base import NO_VIEWS, Benchmark, SharedPools
from cirlab.records import Caption, Query

#: What the gallery's images are looked at for, query by query.
PromptsFor = Callable[[Sequence[Query]], Sequence[str | None]]


@dataclass(frozen=True)
class Approximation:
    """What stands in for looking at images with a prompt.

    Attributes:
        name: the method, and the sample that it is told from: another sample ranks otherwise.
        prompts_for: the prompts that it stands in for, which need not be looked at.
    """

    name: str
    prompts_for: PromptsFor


@dataclass(frozen=True)
class Views:
    """The prompts that one gallery of N items is looked at for, V in all.

    Attributes:
        prompts: distinct; None, for nothing in particular, is the first if it is among them, the
            others stand in the order of the queries.
        needed: whether a query of the view can have the item ranked: it is a candidate, in the
            subset, or the query ranks the whole gallery. Shape (V, N), bool.
        view: by benchmark, each query's place in `prompts`. Shape (Q,), int64.
        approximated: by benchmark, what stands in for looking at images with which prompts; none
            where nothing does.
    """

    prompts: tuple[str | None, ...]
    needed: Tensor
    view: Mapping[str, Tensor]
    approximated: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompted(self) -> bool:
        """Whether an image is looked at for anything in particular."""
        return any(prompt is not None for prompt in self.prompts)

    def protocol(self, benchmark: str) -> str:
        """How the images of a benchmark are looked at, to be told from other ways."""
        told = _told([self.prompts[view] for view in self.view[benchmark].tolist()])
        return told or self.approximated.get(benchmark, NO_VIEWS)


def view_name(place: int) -> str:
    """Under which name the vectors of a view stand beside those of others."""
    return f"view_{place}" if place else "gallery"


def plan_views(
    benchmarks: Sequence[Benchmark],
    prompts_for: PromptsFor,
    approximation: Approximation | None = None,
) -> dict[str, Views]:
    """What every gallery is looked at for.

    Args:
        benchmarks: set up; those with the same gallery id share its views.
        prompts_for: a prompt or None for each of some queries. It isn't asked where the gallery
            holds captions, which are read and not looked at.
        approximation: of the method; its prompts are asked for as well.

    Returns:
        By gallery id.

    Raises:
        UserError: a query has no prompt, but needs one.
    """
    sharing: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        sharing.setdefault(benchmark.gallery_id, []).append(benchmark)
    return {
        gallery: _views(group, prompts_for, approximation) for gallery, group in sharing.items()
    }


def _views(
    benchmarks: Sequence[Benchmark],
    prompts_for: PromptsFor,
    approximation: Approximation | None,
) -> Views:
    chosen = {benchmark.name: _prompts(benchmark, prompts_for) for benchmark in benchmarks}
    found = dict.fromkeys(prompt for prompts in chosen.values() for prompt in prompts)
    # Sorting is stable: all but None stay in their order.
    prompts = tuple(sorted(found, key=lambda prompt: prompt is not None))
    place = {prompt: number for number, prompt in enumerate(prompts)}
    view = {name: torch.tensor([place[p] for p in own]) for name, own in chosen.items()}
    gallery = benchmarks[0].gallery
    position = {item.id: row for row, item in enumerate(gallery)}
    needed = torch.zeros(len(prompts), len(gallery), dtype=torch.bool)
    for benchmark in benchmarks:
        _mark(needed, view[benchmark.name], benchmark.queries, position)
    return Views(prompts, needed, view, _approximated(benchmarks, approximation))


def _approximated(
    benchmarks: Sequence[Benchmark], approximation: Approximation | None
) -> dict[str, str]:
    """By benchmark, where there are prompts that are stood in for."""
    if approximation is None:
        return {}
    told = {b.name: _told(_prompts(b, approximation.prompts_for)) for b in benchmarks}
    return {name: f"{approximation.name}, {asked}" for name, asked in told.items() if asked}


def _told(chosen: Sequence[str | None]) -> str:
    """How many prompts the queries have, and a checksum of which has which; "": they have none."""
    count = len(set(chosen) - {None})
    if not count:
        return ""
    plain = " and none" if None in chosen else ""
    digest = hashlib.sha256(repr(list(chosen)).encode()).hexdigest()[:16]
    return f"{count} prompt{'s' if count > 1 else ''}{plain}, {digest}"


def _prompts(benchmark: Benchmark, prompts_for: PromptsFor) -> list[str | None]:
    queries = benchmark.queries
    if isinstance(benchmark.gallery[0], Caption):
        return [None] * len(queries)
    prompts = list(prompts_for(queries))
    if len(prompts) != len(queries):
        raise RuntimeError(
            f"prompts_for gave {len(prompts)} prompts for the {len(queries)} queries of "
            f"{benchmark.name}; it must give one, or None, for each"
        )
    return prompts


def _mark(
    needed: Tensor, view: Tensor, queries: Sequence[Query], position: Mapping[str, int]
) -> None:
    """Note what some queries can have ranked, in place.

    Args:
        needed: becomes True there. Shape (V, N), bool.
        view: of each query. Shape (Q,), int64.
        queries: Q of them.
        position: of each item in the gallery.
    """
    rows = SharedPools(lambda pool: torch.tensor([position[item] for item in pool]))
    marked: set[tuple[int, int]] = set()
    for place, query in zip(view.tolist(), queries, strict=True):
        if not query.candidates:
            needed[place] = True
            continue
        for pool in (query.candidates, query.subset or ()):
            # Queries of a category share thousands of candidates.
            if pool and (place, id(pool)) not in marked:
                marked.add((place, id(pool)))
                needed[place, rows(pool)] = True
