"""Pictures drawn by a pipeline, each once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cirlab.chat.llm import named_device
from cirlab.encoders.names import resolve_folder
from cirlab.errors import UserError
from cirlab.imagination.given import check_images
from cirlab.imagination.pipeline import Dtype, Pipeline, Settings, check_folder
from cirlab.imagination.request import Request
from cirlab.imagination.store import PictureStore
from cirlab.imagination.weights import weights_identity
from cirlab.records import FileImage, Image

log = logging.getLogger(__name__)


class Drawer:
    """Draws what is not there yet, and keeps it.

    The noise of a picture follows from the seed, its dialogue, its round and its number alone.
    Weights are loaded when the first picture has to be drawn.

    Args:
        pipeline: hub name, folder or `zoo:` pipeline of diffusers.
        folder: of the pictures, shared by all runs with these settings.
        images: pictures of each request.
        steps: of the sampler.
        guidance: how much the text is followed.
        size: side in pixels; null is the pipeline's own.
        negative_prompt: what is not to be drawn; null: nothing in particular.
        seed: of the noise.
        dtype: of the weights and the arithmetic: float32, bfloat16 or float16.
        batch_size: pictures drawn at once.
        device: where they are drawn.

    Attributes:
        cut_prompts: how many of the texts of the last call are longer than the pipeline reads.

    Raises:
        UserError: a number is out of range, a pipeline's folder lacks a part, or the pictures that
            lie in the folder were drawn with other settings.
    """

    def __init__(
        self,
        pipeline: str,
        folder: str,
        images: int = 1,
        steps: int = 28,
        guidance: float = 7.0,
        size: int | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        dtype: Dtype = "float32",
        batch_size: int = 8,
        device: str = "cpu",
    ) -> None:
        check_images(images)
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; draw at least 1 picture at once")
        self.settings = Settings(steps, guidance, size, negative_prompt)
        self.name, self.images, self.seed, self.dtype = pipeline, images, seed, dtype
        self.batch_size, self.device = batch_size, device
        if Path(resolve_folder(pipeline)).is_dir():
            check_folder(Path(resolve_folder(pipeline)), pipeline)
        decisive: dict[str, Any] = {"pipeline": pipeline, "weights": weights_identity(pipeline)}
        self.store = PictureStore(
            folder, decisive | asdict(self.settings) | {"seed": seed, "dtype": dtype}
        )
        self.cut_prompts = 0
        self._pipeline: Pipeline | None = None

    def pictures(self, requests: Sequence[Request]) -> list[list[Image]]:
        """The pictures of each request; a pipeline draws those that are not there.

        Raises:
            UserError: two requests differ in the text alone, the store has pictures of other
                texts, the pipeline is not there, or it does not take the settings.
        """
        check_distinct(requests)
        lacking, self.cut_prompts = self.store.lacking(requests, self.images)
        if lacking:
            self.cut_prompts += self._draw(lacking)
        if self.cut_prompts:
            log.warning(
                "%s of %s texts are longer than the text encoders of %s read, which never see "
                "their last words",
                f"{self.cut_prompts:,}",
                f"{len(requests):,}",
                self.name,
            )
        return [
            [FileImage(request.picture(n), self.store.path(request, n)) for n in range(self.images)]
            for request in requests
        ]

    def _draw(self, lacking: Sequence[tuple[Request, int]]) -> int:
        """Draw and keep pictures; how many requests have a text that was cut."""
        pipeline = self._loaded()
        cut: set[Request] = set()
        starts = range(0, len(lacking), self.batch_size)
        for start in tqdm(starts, desc="pictures", delay=2, disable=None):
            # Another run with this store may have drawn them since.
            batch = [
                (request, number)
                for request, number in lacking[start : start + self.batch_size]
                if not self.store.holds(request, number)
            ]
            prompts = [request.prompt for request, _ in batch]
            seeds = [noise_seed(self.seed, request, number) for request, number in batch]
            drawn = pipeline.draw(prompts, seeds, self.settings) if batch else []
            for (request, number), picture in zip(batch, drawn, strict=True):
                unread = pipeline.unread(request.prompt)
                cut |= {request} if unread else set()
                self.store.keep(request, number, picture, unread)
        return len(cut)

    def _loaded(self) -> Pipeline:
        if self._pipeline is None:
            made = Pipeline(self.name, self.dtype, named_device(self.device, "device"))
            made.check_size(self.settings.size)
            # A hub's weights are known once they are here.
            self.store.know(weights=weights_identity(self.name))
            self._pipeline = made
        return self._pipeline


def noise_seed(seed: int, request: Request, number: int) -> int:
    """Of one picture's noise, in [0, 2^63)."""
    text = f"{seed} {request.dialogue} {request.round} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_distinct(requests: Sequence[Request]) -> None:
    """Refuse two texts for one picture.

    Raises:
        UserError: it names dialogue and round.
    """
    texts: dict[tuple[str, int], str] = {}
    for request in requests:
        if texts.setdefault((request.dialogue, request.round), request.prompt) != request.prompt:
            raise UserError(
                f"round {request.round} of dialogue {request.dialogue} has two texts; give each "
                "dialogue a name of its own"
            )
