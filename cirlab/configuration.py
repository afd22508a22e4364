"""Where experiments lie and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from cirlab.errors import UserError

BASE = "_base.yaml"
#: The experiments of this repository, for configurations that lie elsewhere.
EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def config_files(args: Sequence[str]) -> list[Path]:
    """The files given by `-c`, `--config` or `--config=` in a command line, in order."""
    files = []
    for position, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name in ("-c", "--config"):
            value = value or "".join(args[position + 1 : position + 2])
            files.append(Path(value))
    return files


def experiments_folder(file: Path) -> Path:
    """The folder with `_base.yaml` that a configuration lies below, or this repository's."""
    for folder in file.resolve().parents:
        if (folder / BASE).is_file():
            return folder
    return EXPERIMENTS


def experiment_name(files: Sequence[Path]) -> str:
    """`paper/collm_pretrain` for `experiments/paper/collm_pretrain.yaml`, the last file."""
    named = [file for file in files if file.name != BASE]
    if not named:
        return "unnamed"
    file = named[-1].resolve()
    folder = experiments_folder(file)
    if folder in file.parents:
        return file.relative_to(folder).with_suffix("").as_posix()
    return file.stem


def experiment_names(folder: Path = EXPERIMENTS) -> list[str]:
    """Every experiment that exists, overlays and the base aside."""
    files = (file.relative_to(folder) for file in folder.rglob("*.yaml"))
    return sorted(
        file.with_suffix("").as_posix()
        for file in files
        if not file.name.startswith("_") and "overlays" not in file.parts
    )


def require_files(files: Sequence[Path]) -> None:
    """Raise a `UserError` that names the closest experiment for the first missing file."""
    for file in files:
        if file.is_file():
            continue
        names = experiment_names()
        close = get_close_matches(
            file.with_suffix("").as_posix().removeprefix("experiments/"), names
        )
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        raise UserError(f"there is no configuration file {file}; {hint}")
