"""`python -m cirlab chat`: find an image of a folder by talking, with a checkpoint of a method."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from rich.console import Console
from rich.progress import Progress

from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.chat.llm import InstructionLLM
from cirlab.command.loading import Loadable, load_method
from cirlab.dialogue.answerers import Remembering, load_answerer
from cirlab.dialogue.chat import Session, Terminal
from cirlab.dialogue.gallery import EncodedGallery, encode_gallery
from cirlab.dialogue.information_gain import InformationGain
from cirlab.dialogue.pool import WORLD, read_pool
from cirlab.dialogue.prompt import read_dialogue_prompt
from cirlab.dialogue.questioners import ListQuestioner, LLMQuestioner
from cirlab.dialogue.retriever import GalleryRetriever
from cirlab.dialogue.retriever import Method as Ranking
from cirlab.dialogue.talk import Questioner
from cirlab.encoders.fingerprint import fingerprint
from cirlab.encoders.names import ZOO_PREFIX
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_folder
from cirlab.reading.image_folder import ImageFolder, images_below, named_files

QuestionerName = Literal["information_gain", "llm", "list"]

#: Families of look-alikes in the gallery that a chat without a folder is about.
WORLD_FAMILIES = 8
#: Kinds of queries that a dialogue may be asked as.
SPOKEN = frozenset({"dialogue", "text"})
PHOTOGRAPHS = "photographs"


class Method(Loadable, Ranking, Protocol):
    """What is asked of a method; see `lightning_modules.base.RetrievalModule`."""

    query_kinds: frozenset[str]

    def to(self, device: torch.device) -> Any: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Chat:
    """What is talked about, and with whom.

    Attributes:
        checkpoint: its path; None: the method before training.
        experiment: its name.
        config: of this call.
        runs: folder of all runs, where a contact sheet and vectors are kept, too.
        root: folder of images; None: pictures of the built-in world.
        target: path of an image whose rank is told after each round; None tells of none.
        top: images shown, and looked at by the questioner.
        questioner: who asks: information_gain, llm or list.
        answerer: the multimodal LLM or BLIP that tells candidate images apart.
        llm: an instruction LLM, which asks or proposes questions.
        registry: questions that can be asked; None: those of the world or of photographs.
        sheet: the contact sheet, .png; None puts it beside the runs.
        batch_size: images encoded at once.
    """

    checkpoint: Path | None
    experiment: str
    config: Mapping[str, Any]
    runs: Path
    root: str | None = None
    target: str | None = None
    top: int = 10
    questioner: QuestionerName = "information_gain"
    answerer: str = f"{ZOO_PREFIX}tiny_mllm"
    llm: str | None = None
    registry: str | None = None
    sheet: Path | None = None
    batch_size: int = 32

    def run(
        self,
        method: Method,
        device: torch.device,
        console: Console,
        convert: Callable[[Any], Any] = lambda method: method,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Load everything and chat at the terminal.

        Args:
            method: as the configuration describes it, without weights.
            device: where all models run.
            console: where to.
            convert: brings the method's weights to the precision that they were trained in.
            arithmetic: a context in which the method encodes.

        Raises:
            UserError: an option, the folder or a model is of no use.
        """
        self._check(method)
        registry, folder = self._registry, self._folder
        _tell_left_out(console, "no images", folder.others)
        target = None if self.target is None else folder.image(self.target).id
        # Before the weights, which may have to be placed where they are made.
        method.to(device)
        load_method(method, self.checkpoint, convert)
        method.to(device)
        try:
            gallery = self._encode(method, folder, console, arithmetic)
        except KeyboardInterrupt:
            console.print("\nended; what was encoded is kept for the next time")
            return
        _tell_left_out(console, "images that do not decode", gallery.broken)
        if target in gallery.broken:
            raise UserError(f"the target {self.target} does not decode; choose another one")
        retriever = GalleryRetriever(
            method,
            gallery.images,
            separator=self._separator,
            vectors=gallery.vectors,
            arithmetic=arithmetic,
        )
        images = {image.id: image for image in gallery.images}
        questioner = self._questioner(registry, device)
        session = Session(retriever, images, questioner, registry, self.top, target)
        Terminal(session, console, self._sheet, self._title(len(images))).run()

    # ---- before weights are read --------------------------------------------------------

    def _check(self, method: Method) -> None:
        if not SPOKEN & frozenset(method.query_kinds):
            raise UserError(
                f"{type(method).__name__} finds no images by words, which a chat needs; choose an "
                "experiment of another method"
            )
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; set it to 1 or more")
        if self.questioner == "llm" and self.llm is None:
            raise UserError("questioner llm needs an instruction LLM; name it with --llm")
        if self._sheet.suffix.lower() != ".png":
            raise UserError(f"the sheet {self._sheet} must end in .png; rename it")

    @property
    def _registry(self) -> tuple[str, ...]:
        return read_pool(self.registry or (PHOTOGRAPHS if self.root else WORLD))

    @cached_property
    def _folder(self) -> ImageFolder:
        return images_below(self.root or str(world_gallery(self.runs / "chat" / "world")))

    @property
    def _separator(self) -> str:
        """The one between the texts of the dialogues that the method was trained with."""
        data = self.config.get("data") or {}
        return str((data.get("init_args") or {}).get("separator") or ", ")

    @property
    def _sheet(self) -> Path:
        return self.sheet or self.runs / "chat" / f"{self.experiment.replace('/', '_')}.png"

    def _title(self, count: int) -> str:
        return f"{self.experiment}: the first of {count:,} images, round by round"

    # ---- with weights -------------------------------------------------------------------

    def _encode(
        self,
        method: Method,
        folder: ImageFolder,
        console: Console,
        arithmetic: Callable[[], AbstractContextManager[Any]],
    ) -> EncodedGallery:
        # It would tell of each of many parts, in the midst of the bar.
        logging.getLogger("cirlab.encoders.feature_cache").setLevel(logging.WARNING)
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("encoding images", total=len(folder.images))
            return encode_gallery(
                method,
                folder.images,
                self.runs / "cache",
                self._identity(method),
                self.batch_size,
                arithmetic,
                lambda done: progress.update(bar, completed=done),
            )

    def _identity(self, method: Method) -> str:
        """What decides a vector beside the image."""
        precision = (self.config.get("trainer") or {}).get("precision")
        settings = json.dumps(self.config["model"], sort_keys=True, default=str)
        return f"chat {settings} {precision} {fingerprint(method.state_dict().items())}"

    def _questioner(self, registry: tuple[str, ...], device: torch.device) -> Questioner:
        if self.questioner == "list":
            return ListQuestioner(registry)
        proposer = None
        if self.llm is not None:
            llm = InstructionLLM(self.llm, device=device, key="--llm")
            proposer = LLMQuestioner(llm, read_dialogue_prompt("few_shot"))
            if self.questioner == "llm":
                return proposer
        answerer = Remembering(load_answerer(self.answerer, "--answerer", device=device))
        return InformationGain(answerer, registry, self.top, proposer)


def _tell_left_out(console: Console, what: str, names: tuple[str, ...]) -> None:
    if names:
        text = f"left out, {what}: {len(names):,} ({named_files(names)})"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def world_gallery(folder: Path) -> Path:
    """A folder of pictures of the built-in world, drawn if it is not there."""
    if not folder.is_dir():
        world = WorldDialogue(families=WORLD_FAMILIES, dialogues=1, rounds=1)
        world.setup()
        with whole_folder(folder) as unfinished:
            for image in world.gallery:
                image.load().save(unfinished / f"{image.id.replace('/', '_')}.png")
    return folder
