"""`python -m cirlab.dialogue.rewrite --benchmark world --model NAME --output FILE.json`.

An instruction LLM turns each dialogue of a benchmark, after each round, into one caption that says
all that is known by then, as DAR does (arXiv 2501.15379). FILE.json has the format of its released
dialogues. A run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.chatir import ChatIR
from cirlab.benchmarks.folder_dialogues import FolderDialogues
from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.benchmarks.world_families import FAMILIES
from cirlab.dialogue.files import holds_captions
from cirlab.dialogue.rewrite_prompt import NAMED
from cirlab.dialogue.rewriting import LLMRewriter, Tally
from cirlab.encoders.adapters import FourBit
from cirlab.encoders.llm import Dtype
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.reading.journal import told

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Talked:
    """One dialogue.

    Attributes:
        image: id of the image that is meant, of several the first.
        texts: what it began with, and a text for each round.
    """

    image: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Files:
    """What a run writes.

    Attributes:
        list: the dialogues, `.json`, once every round is rewritten.
        lines: what was rewritten so far.
        counts: what went wrong.
    """

    list: Path
    lines: Path
    counts: Path

    @classmethod
    def of(cls, path: Path) -> Files:
        """The files beside a list.

        Raises:
            UserError: the path has another suffix, or something else is there.
        """
        if path.suffix != ".json":
            raise UserError(f"the output {path} must end in .json; rename it")
        files = cls(path, path.with_suffix(".rewritten.jsonl"), path.with_suffix(".counts.json"))
        if path.exists() and not files.lines.is_file():
            raise UserError(
                f"{path} is there, but not {files.lines.name}, which it would have been made of; "
                "choose another output"
            )
        return files

    def write(self, talked: Sequence[Talked], texts: Sequence[Sequence[str]], tally: Tally) -> None:
        """Write list and counts."""
        rows = [
            {"img": each.image, "dialog": list(own)}
            for each, own in zip(talked, texts, strict=True)
        ]
        with told(self.list, (self.list, self.counts)):
            _write(self.counts, {"dialogues": len(rows), **tally.as_dict()})
            _write(self.list, rows)


def run(options: argparse.Namespace, console: Console) -> list[str]:
    """Rewrite dialogues as the command line says.

    Returns:
        Lines that tell what came of it.

    Raises:
        UserError: an option, a file or a model that it names is of no use.
    """
    files = Files.of(options.output)
    rewriter = LLMRewriter(
        options.model,
        str(files.lines),
        prompt=options.prompt,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        dtype=options.dtype,
        four_bit=FourBit() if options.four_bit else None,
        device=options.device,
    )
    rewriter.check()
    talked = talked_of(_benchmark(options), options.limit)
    try:
        with Progress(*_columns(), console=console) as progress:
            texts, tally = rewriter.dialogues([each.texts for each in talked], progress)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory of {options.device} is not enough for {options.batch_size} rounds at "
            "once; what was done is kept, so run again with a smaller --batch-size"
        ) from error
    files.write(talked, texts, tally)
    return [f"{len(talked):,} dialogues in {files.list}", *tally.lines()]


def talked_of(benchmark: Benchmark, limit: int | None = None) -> list[Talked]:
    """The whole dialogues of a benchmark, in its order.

    Args:
        benchmark: by dialogue; it is set up.
        limit: the first so many; None takes all.

    Raises:
        UserError: they are rewritten already, or there is none.
    """
    benchmark.setup()
    longest = {
        query.id.rpartition("#")[0]: Talked(query.targets[0], query.rounds)
        for query in benchmark.queries
    }
    talked = list(longest.values())[:limit]
    if not talked or (limit is not None and limit < 1):
        raise UserError(f"{benchmark.name} has {len(longest)} dialogues, and 1 or more are needed")
    if holds_captions([each.texts for each in talked]):
        raise UserError(
            f"the rounds of {benchmark.name} are no questions, but captions that were rewritten "
            "already; use them as they are"
        )
    return talked


def _benchmark(options: argparse.Namespace) -> Benchmark:
    if options.benchmark != "world" and options.root is None:
        raise UserError(f"--benchmark {options.benchmark} needs a data folder; name it with --root")
    if options.benchmark == "world":
        return WorldDialogue(
            split=options.split, families=options.families, played=options.dialogues
        )
    if options.benchmark == "chatir":
        named = {} if options.dialogues is None else {"dialogues": options.dialogues}
        return ChatIR(options.root, official=options.official, **named)
    return FolderDialogues(options.root, options.split, name="folder", played=options.dialogues)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _write(path: Path, content: object) -> None:
    with whole_file(path) as unfinished:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        unfinished.write_text(f"{text}\n", encoding="utf-8")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 if an option, a file or a model is of no use.
    """
    options = _parser().parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    try:
        lines = run(options, console)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cirlab.dialogue.rewrite",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--benchmark", choices=("world", "chatir", "folder"), required=True, help="of what data")
    add("--root", help="the data folder of chatir or folder")
    add(
        "--dialogues",
        help="which: a name or a .json file below root of chatir; a .json file that "
        "`python -m cirlab.dialogue` played over world or folder; without it their own",
    )
    add("--split", default="val", help="of world or folder")
    add("--families", type=int, default=FAMILIES, help="of 32 look-alikes, in the world's gallery")
    add(
        "--official",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether chatir must have the published numbers of dialogues and images",
    )
    add("--limit", type=int, help="rewrite the first so many dialogues")
    add("--model", required=True, help="hub name, local folder or zoo:name of an instruction LLM")
    add("--prompt", default="full", help=f"{' or '.join(NAMED)}, or a YAML file of their form")
    add("--output", type=Path, required=True, help="the rewritten dialogues, .json")
    add("--max-new-tokens", type=int, default=128, help="longest caption")
    add("--batch-size", type=int, default=16, help="rounds rewritten at once")
    add("--dtype", choices=get_args(Dtype), default="auto", help="of the weights; auto: the file's")
    add("--four-bit", action="store_true", help="4-bit weights (NF4, double quantisation)")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the model runs",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
