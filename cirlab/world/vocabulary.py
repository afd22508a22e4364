"""What exists in the built-in world, and every word that is ever said about it.

The vocabulary is closed, so that a tokenizer can be built from it and a test can hold the
language to it.
"""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")

PLACES = ("field", "beach", "sea", "snow")
TIMES = ("day", "dusk", "night")
WEATHERS = ("clear", "rain", "snowfall", "fog")
VIEWS = ("above", "level", "below")

#: What can be said of an object, with its values. Shape is always said.
LOOK_VALUES: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
}
#: What can be said of a setting, with its values.
SETTING_VALUES: dict[str, tuple[str, ...]] = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "view": VIEWS,
}

#: Names of the cells of the 3x3 grid, row by row from the top left.
POSITIONS = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the centre",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)

COUNTS = ("a", "two", "three")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

#: How each value of the setting is spoken of, the plainest phrase first.
SETTING_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "place": {
        "field": ("in a field", "on grass", "on a green field"),
        "beach": ("on a beach", "on the sand", "on a sandy beach"),
        "sea": ("on the sea", "at sea", "on the water"),
        "snow": ("on snowy ground", "on white ground", "on icy ground"),
    },
    "time": {
        "day": ("by day", "during the day", "in daylight"),
        "dusk": ("at dusk", "in the evening", "at sunset"),
        "night": ("at night", "by night", "in the dark"),
    },
    "weather": {
        "clear": ("in clear weather", "under a clear sky", "under an open sky"),
        "rain": ("in the rain", "in rainy weather", "in rainfall"),
        "snowfall": ("in falling snow", "in snowy weather", "in snowfall"),
        "fog": ("in the fog", "in thick fog", "in foggy weather"),
    },
    "view": {
        "above": ("seen from above", "from above", "looking down"),
        "level": ("seen at eye level", "at eye level", "looking straight ahead"),
        "below": ("seen from below", "from below", "looking up"),
    },
}

#: Words of the phrasings in `language` and `phrasing`, beside those above.
_FUNCTION_WORDS = (
    "add added also and are as away be but change draw enlarge everything exchange exchanged "
    "get go gone has have here image instead into is it larger leave let make missing more "
    "move no not now of one only out photo picture places put rather remove rid same scene "
    "see set shift should show shows shrink smaller swap swapped switch take than then there "
    "this time to too trade traded turn view we well with without you"
)

#: Words that only the questions of dialogues hold. They are no part of `vocabulary`, so that
#: models of captions and changes stay as they are; answers do without them.
_QUESTION_WORDS = (
    "? all any colour colours do does how like look many or place shapes size sizes texture "
    "textures things was what when where which"
)


def vocabulary() -> tuple[str, ...]:
    """All words of captions, changes and answers, sorted; the comma is one of them."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *TEXTURES, *POSITIONS, *COUNTS, *PLURALS.values()]
    for values in SETTING_PHRASES.values():
        phrases += [phrase for options in values.values() for phrase in options]
    words = {word for phrase in phrases for word in phrase.split()}
    return tuple(sorted(words | set(_FUNCTION_WORDS.split()) | {","}))


def dialogue_vocabulary() -> tuple[str, ...]:
    """The words of whole dialogues, sorted: `vocabulary`, and what questions need besides."""
    return tuple(sorted({*vocabulary(), *_QUESTION_WORDS.split()}))


def words_of(text: str) -> list[str]:
    """Split a sentence of this world into its words; comma and question mark count as one."""
    return text.replace(",", " , ").replace("?", " ? ").split()
