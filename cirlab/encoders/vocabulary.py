"""The words that models made from scratch know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cirlab.composition import MODIFICATION_TEMPLATES
from cirlab.encoders.scratch import read_word_vectors, words_of
from cirlab.reading.jsonl import JsonLines
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


#: A word of captions joins a vocabulary if it stands in them this often.
LEAST_COUNT = 3


def vocabulary_words(name: str, caption_files: Sequence[str] = ()) -> list[str]:
    """The vocabulary by its YAML name: "world", or a folder of word vectors.

    Template and prompt words are always included.

    Args:
        name: of the vocabulary.
        caption_files: pairs.jsonl files whose frequent words join it. Word vectors of news
            lack what photographs show: of the words of Flickr8k's captions that mean something,
            8,000 frequent ones of news leave out one in ten (skateboard, snowy, purple).

    Raises:
        UserError: a file is missing, or a line has no captions.
    """
    words = list(vocabulary()) if name == WORLD else read_word_vectors(Path(name))[0]
    templates = [
        word
        for template in MODIFICATION_TEMPLATES
        for word in template.replace("{target}", "").replace("{neighbour}", "").split()
    ]
    known = [word.lower() for word in words if not word.isspace() and word]
    known += frequent_words(caption_files)
    return list(dict.fromkeys([*PROMPT_WORDS, *(w.strip(",") for w in templates), *known]))


def frequent_words(caption_files: Sequence[str]) -> list[str]:
    """Words that the captions of these files hold at least `LEAST_COUNT` times, frequent first."""
    counts: Counter[str] = Counter()
    for file in caption_files:
        for row in JsonLines(Path(file)):
            for caption in row.texts("captions"):
                counts.update(words_of(caption))
    return [word for word, count in counts.most_common() if count >= LEAST_COUNT]
