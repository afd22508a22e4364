"""Files of dialogues in the format of ChatIR (levymsn/ChatIR, `dialogues/*.json`).

A list of {"img": path, "dialog": [what it began with, a text for each round, ...]}. DAR's rewritten
dialogues and PlugIR's have the same format.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

from cirlab.errors import UserError
from cirlab.reading.json_files import JsonArray
from cirlab.reading.jsonl import Row

#: ChatIR's dialogues about the same images, by who asks and who answers (section 5 of the paper).
CHATIR_DIALOGUES = (
    "VisDial_v1.0_queries_val",
    "Human_BLIP2",
    "ChatGPT_BLIP2",
    "Unanswered_ChatGPT_BLIP2",
    "FLAN_ALPACA_XXL_BLIP2",
)


def dialogue_path(root: Path, dialogues: str) -> Path:
    """The file of some dialogues: by name in `root`/dialogues, or by its path below root.

    Raises:
        UserError: there is no such file.
    """
    by_name = root / "dialogues" / f"{dialogues}.json"
    path = root / dialogues if dialogues.endswith(".json") else by_name
    if not path.is_file():
        raise UserError(
            f"there are no dialogues {dialogues!r}: there is no file {path}; put it there, give "
            f"the path of a .json file below root, or choose one of: {', '.join(CHATIR_DIALOGUES)}"
        )
    return path


def read_dialogues(path: Path) -> JsonArray:
    """The records of a file, each to be parsed by `dialogue_of`.

    Raises:
        UserError: the file is missing or empty, or not a whole JSON list.
    """
    rows = JsonArray(path)
    if not len(rows):
        raise UserError(f"{path} holds no dialogue; give a file with at least one")
    return rows


def dialogue_of(row: Row) -> tuple[str, tuple[str, ...]]:
    """The image of a record, and the texts of its dialogue, at least one.

    Raises:
        UserError: a field is missing or of the wrong type.
    """
    return row.text("img"), row.texts("dialog")


def holds_captions(dialogues: Iterable[Sequence[str]]) -> bool:
    """Whether the rounds are rewritten captions, and no questions with answers.

    Fewer than half of the rounds hold a question mark: in ChatIR's five files 0.98 to 1.00 do, in
    DAR's one of 20,640.

    Args:
        dialogues: of each what it began with, and a text for each round.
    """
    asked = [("?" in text) for texts in dialogues for text in texts[1:]]
    return 2 * sum(asked) < len(asked)


def dialogues_about(path: Path, pool: Container[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Image and texts of each dialogue of a file, e.g. of one that `cirlab.dialogue` has played.

    Args:
        path: the file.
        pool: ids of the gallery.

    Raises:
        UserError: as `read_dialogues` and `dialogue_of`, or an image is not in the gallery.
    """
    for row in read_dialogues(path):
        image, texts = dialogue_of(row)
        if image not in pool:
            raise row.error(
                f"the image {image!r} is not in the gallery; give dialogues that were played over "
                "the same one"
            )
        yield image, texts
