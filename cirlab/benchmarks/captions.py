"""Captioned images as what galleries and queries are made of, in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from cirlab.reading.jsonl import Row
from cirlab.records import Caption, Pair, Query

CaptionTemplate = Literal["as_is", "blip"]
#: Words that BLIP keeps of a caption.
_BLIP_WORDS = 30


class Template(NamedTuple):
    """What a model reads of a caption, and what the protocol says of it."""

    text: Callable[[str], str]
    pattern: str


def blip_text(caption: str) -> str:
    """What BLIP reads of a caption (`pre_caption` of salesforce/BLIP, with its 30 words).

    Lower case, without .!"()*#:;~, and at most 30 words.
    """
    words = re.sub(r"""[.!"()*#:;~]""", " ", caption.lower()).split()
    return " ".join(words[:_BLIP_WORDS])


#: Of captions, by name; BLIP's published numbers, and those of models tuned from it, need "blip".
TEMPLATES: Mapping[CaptionTemplate, Template] = {
    "as_is": Template(str, "{text}"),
    "blip": Template(blip_text, "blip: {text}, lower case, no punctuation, at most 30 words"),
}


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
