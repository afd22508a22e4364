"""The words that models made from scratch know."""

from __future__ import annotations

from pathlib import Path

from cirlab.composition import MODIFICATION_TEMPLATES
from cirlab.encoders.scratch import read_word_vectors
from cirlab.world.vocabulary import vocabulary

#: What method prompts say around captions, as words.
PROMPT_WORDS = (
    "instruct",
    ":",
    "find",
    "the",
    "image",
    "that",
    "matches",
    "query",
    ".",
    ",",
    "text",
)

WORLD = "world"


def vocabulary_words(name: str) -> list[str]:
    """The vocabulary by its YAML name: "world", or a folder of word vectors.

    Template and prompt words are always included.
    """
    words = list(vocabulary()) if name == WORLD else read_word_vectors(Path(name))[0]
    templates = [
        word
        for template in MODIFICATION_TEMPLATES
        for word in template.replace("{target}", "").replace("{neighbour}", "").split()
    ]
    known = [word.lower() for word in words if not word.isspace() and word]
    return list(dict.fromkeys([*PROMPT_WORDS, *(w.strip(",") for w in templates), *known]))
