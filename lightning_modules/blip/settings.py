"""What a configuration says of a BLIP: an architecture without weights, and its contrast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirlab.encoders.blip.scratch import new_blip, set_image_tower, set_weights
from cirlab.encoders.blip.weights import BlipParts
from cirlab.encoders.scratch import read_word_vectors
from cirlab.encoders.vocabulary import WORLD, vocabulary_words
from cirlab.errors import UserError
from cirlab.world.vocabulary import dialogue_vocabulary


@dataclass
class BlipFromScratch:
    """A BLIP that starts without weights.

    Attributes:
        vision: transformers' configuration of the image tower; or, with `architecture`,
            `image_size` and perhaps `model_args` and `grid`, a convolutional network of timm's.
        text: that of the text encoder, and of the decoder, which shares all but its self-attention.
        embed_dim: dimensions of the shared space.
        vocabulary: "world", the words of captions and dialogues, or a folder of word vectors whose
            words are taken.
        caption_files: pairs.jsonl files whose frequent words join the vocabulary.
        word_vectors: start the token embedding from the vectors of the `vocabulary` folder.
        vision_weights: folder of an image tower of that configuration to start with
            (`TokenLabelling` writes one), or a safetensors file of timm's; null starts it at
            random.
        weights: folder of a whole BLIP of this configuration to start with, the decoder aside; null
            starts without.
        mean: of the pixels in [0, 1], a channel.
        std: of the pixels in [0, 1], a channel.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    embed_dim: int = 128
    vocabulary: str = WORLD
    caption_files: list[str] = field(default_factory=list)
    word_vectors: bool = False
    vision_weights: str | None = None
    weights: str | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.weights is not None and self.vision_weights is not None:
            raise UserError(
                f"from_scratch starts with weights {self.weights} and vision_weights "
                f"{self.vision_weights}; set one of the two to null"
            )
        if self.word_vectors and self.vocabulary == WORLD:
            raise UserError(
                "word_vectors: true needs a folder of word vectors as vocabulary, but that is "
                f"{WORLD!r}; name one, or set word_vectors to false"
            )

    def build(self, decoder: bool, start: bool) -> BlipParts:
        """Model and processor.

        Args:
            decoder: with a text decoder.
            start: training begins, so that weights are needed to start with.
        """
        words = vocabulary_words(self.vocabulary, self.caption_files)
        words += dialogue_vocabulary() if self.vocabulary == WORLD else ()
        parts = new_blip(
            self.vision,
            self.text,
            dim=self.embed_dim,
            words=list(dict.fromkeys(words)),
            mean=self.mean,
            std=self.std,
            decoder=decoder,
            vectors=read_word_vectors(Path(self.vocabulary)) if self.word_vectors else None,
        )
        if self.vision_weights is not None and start:
            set_image_tower(parts.model, Path(self.vision_weights))
        if self.weights is not None and start:
            set_weights(parts.model, Path(self.weights))
        return parts


@dataclass
class Contrast:
    """Image-text contrast (ITC) against slow encoders and a queue.

    Attributes:
        queue_size: pairs of earlier steps that are negatives, too; 0 for none.
        momentum: share of its old weights that a slow encoder keeps in a step.
        alpha: share of soft targets, what the slow encoders find similar.
        alpha_warmup: fraction of all steps over which that share rises from zero; BLIP takes the
            first of six epochs.
    """

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_warmup: float = 1 / 6

    def __post_init__(self) -> None:
        for name in ("momentum", "alpha", "alpha_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"contrast.{name} is {getattr(self, name)}; choose a value from 0 to 1"
                )

    def alpha_at(self, step: int, steps: float) -> float:
        """The share of soft targets in a step of a run of so many."""
        if not self.alpha_warmup:
            return self.alpha
        return self.alpha * min(1.0, step / (self.alpha_warmup * float(steps)))
