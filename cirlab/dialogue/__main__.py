"""`python -m cirlab.dialogue --benchmark world --output FILE.json`: play dialogues.

One asks, who has read a caption; one answers, who sees the image. FILE.json has ChatIR's format. A
run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import track

from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.chatir import ChatIR
from cirlab.benchmarks.folder_dialogues import FolderDialogues
from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.benchmarks.world_families import FAMILIES
from cirlab.chat.llm import Decoding, InstructionLLM, named_device
from cirlab.command.terminal import tell
from cirlab.dialogue.answerers import (
    BARE,
    BlipAnswerer,
    MLLMAnswerer,
    Remembering,
    WorldAnswerer,
)
from cirlab.dialogue.information_gain import InformationGain
from cirlab.dialogue.openings import Openings, openings_of
from cirlab.dialogue.people import HumanAnswerer, HumanQuestioner
from cirlab.dialogue.playing import Playing, Summary, check_beforehand, play, progress_bar
from cirlab.dialogue.pool import WORLD, read_pool
from cirlab.dialogue.prompt import read_dialogue_prompt, read_list_prompt
from cirlab.dialogue.questioners import ListQuestioner, LLMQuestioner, UnansweredQuestioner
from cirlab.dialogue.retriever import DualMethod, GalleryRetriever
from cirlab.dialogue.talk import Answerer, Questioner
from cirlab.encoders.adapters import FourBit
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.llm import Dtype
from cirlab.errors import UserError

#: Who asks; those that need an LLM, and those that look at what the retriever ranks first.
QUESTIONERS = ("list", "llm", "candidates", "unanswered", "information_gain", "human")
NEED_LLM = ("llm", "candidates", "unanswered")
LOOK = ("candidates", "information_gain")
#: Who answers; those that need weights.
ANSWERERS = ("world", "mllm", "blip", "human")
NEED_WEIGHTS = ("mllm", "blip")


def run(options: argparse.Namespace, console: Console) -> Summary:
    """Play dialogues as the command line says.

    Raises:
        UserError: an option, a file or a model that it names is of no use.
    """
    _check(options)
    by_hand = "human" in (options.questioner, options.answerer)
    how = Playing(
        registry=read_pool(options.registry),
        rounds=options.rounds,
        tries=options.tries,
        batch_size=1 if by_hand else options.batch_size,
    )
    device = named_device(options.device)
    openings = _openings(options)
    table = _Table(options, how, openings, device, console)
    check_beforehand(openings, table.known(), options.output, how)
    try:
        everybody = table.questioner, table.answerer, options.output, how, table.retriever
        if by_hand:
            return play(openings, *everybody)
        with progress_bar(console=console) as progress:
            return play(openings, *everybody, progress)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory of {options.device} is not enough for {how.batch_size} dialogues at once; "
            "what was played is kept, so run again with a smaller --batch-size or --answer-batch"
        ) from error


@dataclass(frozen=True)
class _Table:
    """Who is asked to sit at it, made when they are needed."""

    options: argparse.Namespace
    how: Playing
    openings: Openings
    device: torch.device
    console: Console

    def known(self) -> dict[str, Any]:
        """What is known of them before anything is loaded."""
        return {"questioner": {"kind": self._kind}, "answerer": self._answerer_known}

    @property
    def _kind(self) -> str:
        return "llm" if self.options.questioner == "candidates" else self.options.questioner

    @property
    def _answerer_known(self) -> dict[str, Any]:
        weights = self.options.answerer in NEED_WEIGHTS
        return {"name": self.options.answer_model} if weights else {"kind": self.options.answerer}

    @cached_property
    def answerer(self) -> Answerer:
        """Who sees the image."""
        return self._answerer(self.options.answerer, self.options.answer_model)

    @cached_property
    def imagining(self) -> Answerer:
        """Who answers questions about the images that are ranked first."""
        if self.options.imagine is None:
            return Remembering(self.answerer)
        return Remembering(self._answerer(self.options.imagine, self.options.imagine_model))

    @cached_property
    def questioner(self) -> Questioner:
        """Who asks."""
        options = self.options
        make: dict[str, Callable[[], Questioner]] = {
            "list": lambda: ListQuestioner(self.how.registry),
            "human": lambda: HumanQuestioner(options.top if options.retriever else 0, self.console),
            "llm": lambda: LLMQuestioner(
                self.llm, read_dialogue_prompt(options.prompt or "few_shot"), seed=options.seed
            ),
            "candidates": lambda: LLMQuestioner(
                self.llm,
                read_dialogue_prompt(options.prompt or "candidates"),
                describer=self.imagining,
                looks_at=options.top,
                seed=options.seed,
            ),
            "unanswered": lambda: UnansweredQuestioner(
                self.llm,
                read_list_prompt(options.prompt or "unanswered"),
                count=options.rounds,
                decoding=Decoding(max_new_tokens=32 * options.rounds),
                seed=options.seed,
            ),
            "information_gain": lambda: InformationGain(
                self.imagining, self.how.registry, options.top, self._proposer
            ),
        }
        return make[options.questioner]()

    @property
    def _proposer(self) -> Questioner | None:
        if self.options.llm is None:
            return None
        prompt = read_dialogue_prompt(self.options.prompt or "few_shot")
        return LLMQuestioner(self.llm, prompt, seed=self.options.seed)

    @cached_property
    def llm(self) -> InstructionLLM:
        """The instruction LLM."""
        return InstructionLLM(
            self.options.llm,
            dtype=self.options.dtype,
            four_bit=FourBit() if self.options.four_bit else None,
            device=self.device,
            key="--llm",
        )

    @cached_property
    def retriever(self) -> GalleryRetriever | None:
        """What ranks the gallery, if anybody looks at it."""
        if not self.questioner.looks_at:
            return None
        encoder = load_dual_encoder(self.options.retriever, self.options.pretrained)
        return GalleryRetriever(
            DualMethod(encoder).to(self.device),
            list(self.openings.gallery.values()),
            identity={"kind": "dual encoder", "name": encoder.name},
            separator=self.options.separator,
            shown=lambda batches: iter(track(batches, description="gallery", console=self.console)),
        )

    def _answerer(self, kind: str, name: str) -> Answerer:
        options = self.options
        common: dict[str, Any] = {
            "batch_size": options.answer_batch,
            "dtype": options.dtype,
            "device": self.device,
        }
        if kind == "mllm":
            return MLLMAnswerer(name, prompt=options.answer_prompt, **common)
        if kind == "blip":
            return BlipAnswerer(name, **common)
        return HumanAnswerer(self.console) if kind == "human" else WorldAnswerer()


def _openings(options: argparse.Namespace) -> Openings:
    """What is played, read from the benchmark."""
    benchmark = _benchmark(options)
    benchmark.setup()
    return openings_of(benchmark, options.limit)


def _benchmark(options: argparse.Namespace) -> Benchmark:
    if options.benchmark == "world":
        dialogues = {} if options.limit is None else {"dialogues": options.limit}
        return WorldDialogue(split=options.split, families=options.families, **dialogues)
    if options.benchmark == "chatir":
        return ChatIR(options.root)
    return FolderDialogues(options.root, options.split, name="folder")


def _check(options: argparse.Namespace) -> None:
    """Refuse combinations of options in which something is missing."""
    needed = [
        ("questioner", NEED_LLM, "llm", "an instruction LLM"),
        ("questioner", LOOK, "retriever", "what ranks the gallery"),
        ("answerer", NEED_WEIGHTS, "answer_model", "a model"),
        ("imagine", NEED_WEIGHTS, "imagine_model", "a model"),
        ("benchmark", ("chatir", "folder"), "root", "a data folder"),
    ]
    for what, those, option, is_what in needed:
        chosen = getattr(options, what)
        if chosen in those and getattr(options, option) is None:
            raise UserError(
                f"--{what} {chosen} needs {is_what}; name it with --{option.replace('_', '-')}"
            )
    if options.questioner in LOOK and (options.imagine or options.answerer) == "human":
        raise UserError(
            f"--questioner {options.questioner} asks about many images before each round, which "
            "is too much for a person; set --imagine to world, mllm or blip"
        )
    if options.top < 1:
        raise UserError(f"--top is {options.top}; set it to 1 or more")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 if an option, a file or a model is of no use.
    """
    options = _parser().parse_args(args)
    return tell(lambda console: run(options, console).lines(options.output))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cirlab.dialogue",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_data(parser)
    _add_people(parser)
    default = Playing(registry=("?",))
    add = parser.add_argument
    add("--rounds", type=int, default=default.rounds, help="questions of each dialogue")
    add("--tries", type=int, default=default.tries, help="how often to ask for a better question")
    add("--seed", type=int, default=0, help="of an LLM that is asked again")
    add("--batch-size", type=int, default=default.batch_size, help="dialogues played at once")
    add("--dtype", choices=get_args(Dtype), default="auto", help="of the weights; auto: the file's")
    add("--four-bit", action="store_true", help="4-bit weights of the LLM (NF4)")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the models run",
    )
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--benchmark", choices=("world", "chatir", "folder"), required=True, help="what is played")
    add("--root", help="the data folder of chatir or folder")
    add("--split", default="val", help="of world or folder")
    add("--families", type=int, default=FAMILIES, help="of 32 look-alikes, in the world's gallery")
    add("--limit", type=int, help="play the first so many dialogues")
    add("--output", type=Path, required=True, help="the dialogues, .json")


def _add_people(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--questioner", choices=QUESTIONERS, required=True, help="who asks")
    add("--llm", help="hub name, local folder or zoo:name of an instruction LLM")
    add("--prompt", help="few_shot, candidates, unanswered, or a YAML file of their form")
    add("--registry", default=WORLD, help="world, photographs, or a YAML file: what can be asked")
    add("--answerer", choices=ANSWERERS, required=True, help="who sees the image")
    add("--answer-model", help="hub name, local folder or zoo:name for mllm or blip")
    add("--answer-prompt", default=BARE, help="what an mllm is told")
    add("--answer-batch", type=int, default=32, help="questions answered at once")
    add("--imagine", choices=ANSWERERS[:-1], help="who answers about images ranked first")
    add("--imagine-model", help="its weights")
    add("--retriever", help="an open_clip model, zoo:tiny_clip, or blip:name; ranks the gallery")
    add("--pretrained", help="open_clip's tag of the retriever's weights")
    add("--separator", default=", ", help="between the texts of a dialogue that it reads")
    add("--top", type=int, default=10, help="how many of the images ranked first are looked at")


if __name__ == "__main__":
    raise SystemExit(main())
