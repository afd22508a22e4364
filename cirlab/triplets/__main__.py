"""`python -m cirlab.triplets --pairs PAIRS --model NAME --output FILE.jsonl`: make triplets.

An instruction LLM invents a change to each caption, as InstructCIR's second stage learns from. A
run that was stopped goes on where it was when it is started again. Answers that are of no use are
kept in FILE.set_aside.jsonl with the reason. Lines of a batch are written together, so that
triplets stand in another order than captions; "pair" tells which caption each is of.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from cirlab.chat.llm import Decoding, InstructionLLM, named_device
from cirlab.command.terminal import tell
from cirlab.encoders.adapters import FourBit
from cirlab.encoders.llm import Dtype
from cirlab.errors import UserError
from cirlab.triplets.building import Building, Summary, build, check_beforehand, progress_bar
from cirlab.triplets.captions import read_captions
from cirlab.triplets.prompt import NAMED, read_prompt


def run(options: argparse.Namespace, console: Console) -> Summary:
    """Make triplets as the command line says.

    Raises:
        UserError: an option or a file that it names is of no use.
    """
    how = Building(
        prompt=read_prompt(options.prompt),
        decoding=Decoding(options.temperature, options.max_new_tokens),
        max_words=options.max_words,
        tries=options.tries,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    device = named_device(options.device)
    captions = read_captions(options.pairs)
    if options.images is not None:
        captions.check_images(options.images)
    check_beforehand(captions, options.model, options.output, how)
    llm = InstructionLLM(
        options.model,
        dtype=options.dtype,
        four_bit=FourBit() if options.four_bit else None,
        device=device,
    )
    try:
        with progress_bar(console=console) as progress:
            return build(captions, llm, options.output, how, progress)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory of {options.device} is not enough for {options.batch_size} captions at "
            "once; what was done is kept, so run again with a smaller --batch-size"
        ) from error


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 if an option or a file is of no use.
    """
    options = _parser().parse_args(args)
    return tell(lambda console: run(options, console).lines(options.output))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cirlab.triplets",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default, decoding = Building(), Decoding()
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="pairs.jsonl of a data folder, or LLaVA's .json")
    add("--images", type=Path, help="folder of the images, to see beforehand that all are there")
    add("--model", required=True, help="hub name, local folder or zoo:name of an instruction LLM")
    add("--output", type=Path, required=True, help="the triplets, .jsonl")
    add("--prompt", default="short", help=f"{' or '.join(NAMED)}, or a YAML file of that form")
    add("--batch-size", type=int, default=default.batch_size, help="captions asked about at once")
    add("--tries", type=int, default=0, help="how often to ask again after an unusable answer")
    add("--temperature", type=float, default=0.0, help="of sampling; 0: the likeliest words")
    add("--seed", type=int, default=0, help="of sampling")
    add("--max-new-tokens", type=int, default=decoding.max_new_tokens, help="longest answer")
    add("--max-words", type=int, default=default.max_words, help="longest instruction")
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
