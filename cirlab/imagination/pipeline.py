"""Text-to-image pipelines of diffusers, whatever their class, behind one call.

Stable Diffusion (1 to 3), SDXL and FLUX differ in what reads the words and what draws; a folder's
model_index.json names its parts, and diffusers' own class of pipeline puts them together.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
from transformers.utils import logging as of_transformers

from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]
INDEX = "model_index.json"
#: What a part's folder holds at least, by what the part's name begins with; models otherwise.
_FILES_OF_PARTS = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("tokenizer_config.json", "vocab.json", "tokenizer.json", "spiece.model"),
    "feature_extractor": ("preprocessor_config.json",),
    "image_processor": ("preprocessor_config.json", "config.json"),
}
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Settings:
    """What decides a picture, its text and noise aside.

    Attributes:
        steps: of the sampler.
        guidance: how much the text is followed; 1 and less draws without a second, wordless pass
            where the pipeline has one.
        size: side in pixels; None is the pipeline's own.
        negative_prompt: what is not to be drawn; None: nothing in particular.

    Raises:
        UserError: a number is out of range.
    """

    steps: int = 28
    guidance: float = 7.0
    size: int | None = None
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; set the steps of the sampler to 1 or more")
        # Not a number is no smaller than anything.
        if not self.guidance >= 0:
            raise UserError(f"guidance is {self.guidance}; set it to 0 or more")
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}; set the side of pictures to pixels, or to null")


class Pipeline:
    """A pipeline with its weights, ready to draw.

    Args:
        name: hub name, folder or `zoo:` pipeline.
        dtype: of the weights and the arithmetic.
        device: where it draws.

    Raises:
        UserError: a folder lacks a part, the weights are not there, or it does not draw from words.
    """

    def __init__(self, name: str, dtype: Dtype, device: torch.device) -> None:
        # Not at the top: it takes seconds, which runs without pictures need not wait.
        from diffusers import DiffusionPipeline

        self.name = name
        folder = resolve_folder(name)
        if Path(folder).is_dir():
            check_folder(Path(folder), name)
        with weights_or_sentence(name, "pipeline"), _quiet():
            loaded = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._pipeline = loaded.to(device)
        self._takes = inspect.signature(self._pipeline.__call__).parameters
        missing = sorted({"prompt", "num_inference_steps", "generator"} - set(self._takes))
        if missing or "image" in self._takes:
            raise UserError(
                f"pipeline {name!r} is a {type(self._pipeline).__name__}, which does not draw from "
                "words alone; name a text-to-image pipeline"
            )
        self._pipeline.set_progress_bar_config(disable=True)

    def unread(self, prompt: str) -> int:
        """Tokens at a text's end that not even the longest-reading text encoder reads."""
        tokenizer, limit = self._reader
        ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        return 0 if limit is None else max(0, len(ids) - limit)

    def check_size(self, size: int | None) -> None:
        """Refuse a side that the latents do not divide.

        Raises:
            UserError: it is no multiple of what one latent shows.
        """
        own = getattr(self._pipeline, "image_processor", None)
        factor = own.config.vae_scale_factor if own is not None else 1
        step = factor * getattr(self._pipeline, "patch_size", 1)
        if size is not None and size % step:
            near = max(step, round(size / step) * step)
            raise UserError(
                f"size is {size}, but the autoencoder of {self.name!r} makes sides of multiples of "
                f"{step} pixels; set it to {near}, or to null for the pipeline's own"
            )

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings
    ) -> list[PIL.Image.Image]:
        """One picture for each text, from its own noise: neither batch nor order matters.

        Args:
            prompts: B texts.
            seeds: of the noise of each, on the CPU whatever the device.
            settings: of the sampler.

        Raises:
            UserError: the pipeline does not take the settings.
        """
        options: dict[str, Any] = {
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "height": settings.size,
            "width": settings.size,
        }
        if settings.negative_prompt is not None:
            options["negative_prompt"] = [settings.negative_prompt] * len(prompts)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            with torch.inference_mode(), _quiet():
                output = self._pipeline(prompt=list(prompts), generator=generators, **options)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"pipeline {self.name!r} does not draw with these settings ({reason}); change "
                "them, or take another pipeline"
            ) from error
        flagged = getattr(output, "nsfw_content_detected", None) or []
        if any(flagged):
            log.warning(
                "the safety checker of %s has blackened %s of %s pictures",
                self.name,
                sum(map(bool, flagged)),
                len(prompts),
            )
        return list(output.images)

    @property
    def _reader(self) -> tuple[Any, int | None]:
        """The tokenizer whose encoder reads most, and how many tokens that are."""
        asked = self._takes.get("max_sequence_length")
        readers: list[tuple[Any, int | None]] = []
        for suffix in ("", "_2", "_3", "_4"):
            tokenizer = getattr(self._pipeline, f"tokenizer{suffix}", None)
            if tokenizer is None or getattr(self._pipeline, f"text_encoder{suffix}", None) is None:
                continue
            # Tokenizers without a limit call it 10^30.
            limits = [tokenizer.model_max_length] if tokenizer.model_max_length < 1 << 20 else []
            limits += [asked.default] if asked is not None and asked.default else []
            readers.append((tokenizer, min(limits, default=None)))
        return max(readers, key=lambda reader: reader[1] or 1 << 20)


def check_folder(folder: Path, name: str) -> None:
    """Refuse a pipeline's folder that lacks a part, before anything is read.

    Raises:
        UserError: it names the part.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UserError(
            f"{name} is no folder of a pipeline: it has no {INDEX}; name one that diffusers has "
            "saved"
        )
    try:
        parts = json.loads(index.read_bytes())
        named = [part for part, value in parts.items() if isinstance(value, list) and value[0]]
    except (ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{index} does not read ({error}); copy the pipeline again") from error
    for part in named:
        if lack := _lack(folder / part, part):
            raise UserError(
                f"the pipeline {name} lacks {lack} of its part {part}, which its {INDEX} names; "
                "copy the folder again"
            )


def _lack(folder: Path, part: str) -> str:
    """What is not there of a part, in words; empty where it is whole."""
    if not folder.is_dir():
        return "the folder"
    kinds = (names for kind, names in _FILES_OF_PARTS.items() if part.startswith(kind))
    if (names := next(kinds, None)) is not None:
        return "" if any((folder / name).is_file() for name in names) else names[0]
    if not (folder / "config.json").is_file():
        return "config.json"
    return "" if any(path.suffix in _WEIGHTS for path in folder.iterdir()) else "the weights"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the libraries tell of: cut prompts are counted here instead, once for all."""
    from diffusers.utils import logging as of_diffusers

    libraries = (of_diffusers, of_transformers)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in libraries]
    for each in libraries:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, (verbosity, bars) in zip(libraries, before, strict=True):
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()
