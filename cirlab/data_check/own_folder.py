"""What lies in the splits of a user's own folder (`cirlab.reading.folder`) under other names.

`FolderComposed` reads composed queries of any file of a split, so whoever evaluates on
`focus.jsonl` wants it checked, too. What a file holds is told by its first line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from cirlab.errors import UserError
from cirlab.reading.jsonl import JsonLines

#: Names that the folder format knows.
KNOWN = (
    "pairs.jsonl",
    "composed.jsonl",
    "caption_triplets.jsonl",
    "dialogues.jsonl",
    "facets.jsonl",
)
#: The split whose files train; `FolderData` reads those of the known names unless told otherwise.
TRAIN = "train"
#: Of the known files, the one that no evaluation reads.
_CAPTION_TRIPLETS = "caption_triplets.jsonl"
#: What a composed query always has.
_COMPOSED = {"reference", "targets"}


def other_splits(root: Path, but: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Subfolders of other names with files of known ones, and these files."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = frozenset(name for name in KNOWN if (folder / name).is_file())
        if files and folder.name not in but:
            yield folder.name, files


def composed_files(root: Path) -> Iterator[tuple[str, str]]:
    """(split, file) of all further files that look like composed queries, for evaluation."""
    for path in _further(root):
        if path.parent.name != TRAIN and looks_composed(path):
            yield path.parent.name, path.name


def unread_files(root: Path) -> tuple[tuple[str, str], ...]:
    """(path below the root, reason) of each file in a split that no part reads."""
    unread = []
    for path in _further(root):
        if path.parent.name == TRAIN:
            known = _listed(KNOWN)
            unread.append((path, f"training reads {known}, others if data.init_args.file says so"))
        elif not looks_composed(path):
            unread.append((path, "its first line is no composed query"))
    for path in sorted(root.glob(f"*/{_CAPTION_TRIPLETS}")):
        if path.parent.name != TRAIN:
            unread.append((path, "caption triplets are only trained on, from the split train"))
    return tuple((path.relative_to(root).as_posix(), reason) for path, reason in unread)


def looks_composed(path: Path) -> bool:
    """Whether the first line of a file is a composed query, perhaps a faulty one."""
    try:
        rows = JsonLines(path)
        return len(rows) > 0 and set(rows[0]) >= _COMPOSED
    except UserError:
        return False


def _further(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*/*.jsonl")) if path.name not in KNOWN]


def _listed(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"
