"""Where experiments lie and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from cirlab.errors import UserError

BASE = "_base.yaml"
#: Files in a folder of this name change parts of the experiment that they are given after.
OVERLAYS = "overlays"
SUBCOMMANDS = ("fit", "validate", "test", "predict", "export", "chat")
#: The experiments of this repository, for configurations that lie elsewhere.
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def config_files(args: Sequence[str]) -> list[Path]:
    """The files given by `-c`, `--config` or `--config=` in a command line, in order."""
    files = []
    for position, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name in ("-c", "--config"):
            value = value or "".join(args[position + 1 : position + 2])
            files.append(Path(value))
    return files


def base_files(file: Path) -> list[Path]:
    """What is read before an experiment: `_base.yaml` of every folder it lies in, outermost first.

    So `experiments/ablations/_base.yaml` is the experiment that the ablations vary. A file that
    lies below no such folder gets this repository's `experiments/_base.yaml`.
    """
    bases = [folder / BASE for folder in file.resolve().parents if (folder / BASE).is_file()]
    return bases[::-1] or [EXPERIMENTS / BASE]


def experiment_name(files: Sequence[Path]) -> str:
    """`paper/collm` for `experiments/paper/collm.yaml`, the first file that is no overlay.

    What is given after it, wherever that lies, changes settings of that experiment.
    """
    named = [file for file in files if file.name != BASE]
    if not named:
        return "unnamed"
    file = without_overlays(named)[0].resolve()
    folder = base_files(file)[0].parent
    if folder in file.parents:
        return file.relative_to(folder).with_suffix("").as_posix()
    return file.stem


def without_overlays(files: Sequence[Path]) -> list[Path]:
    """The files that are no overlays, or all if there are no others."""
    return [file for file in files if file.resolve().parent.name != OVERLAYS] or list(files)


def experiment_names(folder: Path = EXPERIMENTS) -> list[str]:
    """Every experiment that exists, overlays and the base aside."""
    files = (file.relative_to(folder) for file in folder.rglob("*.yaml"))
    return sorted(
        file.with_suffix("").as_posix()
        for file in files
        if not file.name.startswith("_") and OVERLAYS not in file.parts
    )


def with_base(args: Sequence[str]) -> list[str]:
    """The command line with the experiment's bases read before everything else."""
    files = config_files(args)
    if not args or args[0] not in SUBCOMMANDS or any(file.name == BASE for file in files):
        return list(args)
    bases = base_files(without_overlays(files)[0]) if files else [EXPERIMENTS / BASE]
    options = [option for base in bases for option in ("-c", str(base))]
    return [args[0], *options, *args[1:]]


def require_experiment(args: Sequence[str]) -> None:
    """Refuse a command line without an experiment, or with one that does not exist.

    Raises:
        UserError: it names the closest experiment, or all.
    """
    if not args or args[0] not in SUBCOMMANDS or any(map(_asks_for_help, args)):
        return
    files = config_files(args)
    names = experiment_names()
    there = f"there are: {', '.join(names)}"
    if not files:
        raise UserError(
            f"no experiment is given; name one with -c experiments/<name>.yaml, {there}"
        )
    for file in files:
        if not file.is_file():
            name = file.with_suffix("").as_posix().removeprefix("experiments/")
            close = get_close_matches(name, names, n=1)
            # A path from elsewhere is no misspelt experiment.
            hint = (
                there if len(file.parts) < 2 or "experiments" in file.parts else "correct the path"
            )
            hint = f"did you mean {close[0]}?" if close else hint
            raise UserError(f"there is no configuration file {file}; {hint}")


def _asks_for_help(arg: str) -> bool:
    """`-h`, `--help`, or `--data.help` and its like about one class."""
    return arg in ("-h", "--help") or (arg.startswith("--") and arg.split("=")[0].endswith(".help"))
