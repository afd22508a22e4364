"""A small data set of the format of own folders, described as published ones are."""

from __future__ import annotations

from dataclasses import replace

from cirlab.data_check.descriptions import DATA_SETS, ROOT, DataSet, Part

#: A folder's composed queries, whose published sizes are those of `write_folder`.
PART = Part(
    name="val",
    class_path="cirlab.benchmarks.FolderComposed",
    arguments={"root": ROOT, "split": "val", "name": "toy"},
    needs=("val/composed.jsonl", "val/gallery.txt"),
    queries=9,
    pool=12,
)
TOY = DataSet(
    title="Toy (arXiv 0000.00000)",
    annotations="https://example.org/toy; MIT",
    images="https://example.org/images; on request",
    source="its README",
    layout=(("val/*.jsonl", "queries"), ("images", "all"), ("masks", "none")),
    parts=(PART, replace(PART, name="test", needs=("test/composed.jsonl",))),
)


def find(data: str, name: str) -> Part:
    """A part of a described data set, by their names."""
    return next(part for part in DATA_SETS[data].parts if part.name == name)
