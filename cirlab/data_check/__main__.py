"""`python -m cirlab.data_check cirr --root DATA [--images PATH] [--decode]`: check a data folder.

Without a root it is told where a user gets annotations and images, and under which terms. With
one: what lies in the folder and what does not, whether queries and pools have the published sizes,
which images are missing, and with `--decode` which do not decode.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cirlab.data_check.checking import Finding, check
from cirlab.data_check.descriptions import DATA_SETS, DataSet, Part, data_set
from cirlab.errors import UserError
from cirlab.reading.folder import Folder
from cirlab.reporting.run import RUNS

log = logging.getLogger(__name__)

#: Missing or broken images that are printed; a file holds all of them.
NAMED = 10


def describe(data: DataSet, root: Path | None, console: Console) -> None:
    """Print where a data set comes from, how its folder is laid out, and what of it is there."""
    _line(console, data.title, style="bold")
    for what in ("annotations", "images", "source"):
        _line(console, f"  {what:<12} {getattr(data, what)}")
    _line(console, f"  below {root or 'the data folder'}")
    width = max(len(path) for path, _ in data.layout)
    for path, holds in data.layout:
        state, which = ("", "") if root is None else _state(data, path, root)
        _line(console, f"    {state}{path:<{width}}  {holds}{which}")


def _state(data: DataSet, path: str, root: Path) -> tuple[str, str]:
    """Whether a path of the layout is there, and of several files which."""
    found = sorted(file.relative_to(root).as_posix() for file in root.glob(path))
    if data.optional:
        which = f" ({', '.join(found)})" if found else ""
        return ("there    " if found else "none     "), which
    expected = data.expected(path)
    absent = [file for file in expected if not (root / file).exists()]
    if not found or (expected and len(absent) == len(expected)):
        return "missing  ", ""
    if not absent:
        return "there    ", ""
    there = len(expected) - len(absent)
    return f"{f'{there} of {len(expected)}':<9}", f" (missing: {', '.join(absent)})"


def tell(name: str, part: Part, finding: Finding, folder: Path, console: Console) -> None:
    """Print what was found of a part, and write the lists of images.

    Args:
        name: of the data set.
        part: what was read.
        finding: what was found.
        folder: of the lists.
        console: where to print.
    """
    _line(console, part.name, style="bold")
    if finding.problem is not None:
        _line(console, f"  cannot be read: {finding.problem}")
    else:
        for size in finding.sizes:
            _line(console, f"  {size}")
        for kind, ids in (("missing", finding.missing), ("broken", finding.broken)):
            if ids is not None:
                path = folder / f"{name}_{part.name}_{kind}.txt".replace("/", "_")
                _line(console, f"  {_list(kind, ids, finding.images, path)}")
        if finding.template is not None and 0 < finding.images == len(finding.missing):
            _line(console, f"  {_hint(finding.template)}")


def _hint(template: str) -> str:
    return (
        f"all of them were looked for at {template} below the folder; if they have other paths or "
        "another suffix, say so by --images"
    )


def _list(kind: str, ids: Sequence[str], images: int, path: Path) -> str:
    """One line about missing or broken images, all of which go to a file."""
    path.unlink(missing_ok=True)
    if not ids:
        return f"none of {images:,} images is {kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{item}\n" for item in ids), encoding="utf-8")
    more = ", ..." if len(ids) > NAMED else ""
    named = ", ".join(ids[:NAMED])
    return f"{len(ids):,} of {images:,} images are {kind}, all listed in {path}: {named}{more}"


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if every part that lies in the folder is complete, 1 if not or if there is none, 2 if
        the name or the folder is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m cirlab.data_check", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help=f"one of: {', '.join(DATA_SETS)}")
    parser.add_argument("--root", help="the data folder; without it the data set is described")
    parser.add_argument(
        "--images",
        metavar="TEMPLATE",
        help="path of an image below the root, as the argument `images` of the benchmark, e.g. "
        "images/{name}.jpg; without it the official one",
    )
    parser.add_argument("--decode", action="store_true", help="read every image, too")
    parser.add_argument(
        "--lists", type=Path, default=RUNS / "data_check", help="folder for lists of images"
    )
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    try:
        data = data_set(options.name)
        root = Folder(options.root).root if options.root is not None else None
    except UserError as error:
        log.error("error: %s", error)
        return 2
    describe(data, root, console)
    if root is None:
        return 0
    findings: list[Finding] = []
    absent: dict[str, None] = {}
    for part in data.parts_in(root):
        finding = check(part, root, images=options.images, decode=options.decode)
        if finding.passed_over is None:
            tell(options.name, part, finding, options.lists, console)
            findings.append(finding)
        else:
            absent[finding.passed_over] = None
    if absent:
        _line(console, f"not there, so not read: {', '.join(absent)}")
    for path, reason in data.unread(root) if data.unread else ():
        _line(console, f"not read: {path} ({reason})")
    return 0 if findings and all(finding.complete for finding in findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
