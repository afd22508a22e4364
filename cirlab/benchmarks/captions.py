"""Captioned images as what galleries and queries are made of, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from cirlab.reading.jsonl import Row
from cirlab.records import Caption, Pair, Query


def captions_of(pair: Pair) -> Iterator[Caption]:
    """The captions of an image, each with an id of its own: "<image>#<number from 0>"."""
    for number, text in enumerate(pair.captions):
        yield Caption(id=f"{pair.image.id}#{number}", text=text)


def image_query(pair: Pair) -> Query:
    """The image itself, which looks for its captions."""
    targets = tuple(caption.id for caption in captions_of(pair))
    return Query(id=pair.image.id, text="", image=pair.image, targets=targets)


def captions_in(row: Row) -> tuple[str, ...]:
    """The captions of a record in BLIP's files: one text in those of train, else a list of texts.

    Raises:
        UserError: it is something else.
    """
    if isinstance(row.get("caption"), list):
        return row.texts("caption")
    return (row.text("caption"),)
