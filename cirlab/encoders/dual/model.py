"""Dual encoders: an image tower and a text tower that share one space.

`load_dual_encoder` reads them all: open_clip's built-in names and hub or local folders,
transformers' BLIP, and the zoo. A method sees only `DualEncoder`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import open_clip
import PIL.Image
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch import nn

import cirlab.encoders.dual.timm_models  # noqa: F401 - registers names that open_clip may ask for
from cirlab.encoders.blip.weights import BlipParts, load_blip, save_blip
from cirlab.encoders.names import ZOO_PREFIX, resolve_folder, weights_or_sentence
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file

BLIP_PREFIX = "blip:"
#: Tokens of a caption in BLIP's retrieval configuration.
CAPTION_LENGTH = 35


class Tokenizer(Protocol):
    """Texts to token tensors of shape (B, L), by argument name.

    Attributes:
        max_length: tokens of the longest text; of a longer one the last words are left out.
    """

    @property
    def max_length(self) -> int: ...

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]: ...

    def cut(self, texts: list[str]) -> torch.Tensor:
        """Which texts are longer. Shape (B,), bool."""


@dataclass(frozen=True)
class DualProcessor:
    """The picklable half of a dual encoder, run in loader workers.

    Attributes:
        transform: PIL image to a normalised tensor of shape (3, H, W).
        tokenize: texts to tokens.
    """

    transform: Callable[[PIL.Image.Image], torch.Tensor]
    tokenize: Tokenizer

    def images(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        """Pixels, shape (B, 3, H, W)."""
        return torch.stack([self.transform(image) for image in images])


class DualEncoder(nn.Module, ABC):
    """An image tower and a text tower in one space of `dim` dimensions.

    Attributes:
        name: how it was asked for; part of the identity that checkpoints carry.
        image_tower: the module that LoRA may adapt.
    """

    name: str
    dim: int
    processor: DualProcessor

    @property
    def image_backbone(self) -> nn.Module:
        """What `backbone_features` runs."""
        return self.image_tower

    @property
    def image_side(self) -> nn.Module:
        """All that turns pixels into an embedding, a projection included."""
        return self.image_backbone

    @property
    @abstractmethod
    def image_tower(self) -> nn.Module:
        """The part that turns pixels into an embedding."""

    @abstractmethod
    def image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings of any length, (B, D), from pixels (B, 3, H, W)."""

    @abstractmethod
    def text_embeddings(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings of any length, (B, D), from token tensors (B, L)."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) in float32, from pixels (B, 3, H, W)."""
        return nn.functional.normalize(self.image_embeddings(pixels).float(), dim=-1)

    def embed_images(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors (B, D) from pixels, from features of the backbone, or as they were kept.

        Args:
            inputs: {"pixels": (B, 3, H, W)}, {"features": (B, F)} or {"vectors": (B, D)}.
        """
        if "vectors" in inputs:
            return inputs["vectors"]
        if "pixels" in inputs:
            return self.encode_images(inputs["pixels"])
        return nn.functional.normalize(self.project_features(inputs["features"]).float(), dim=-1)

    def encode_texts(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors (B, D) in float32, from token tensors (B, L)."""
        return nn.functional.normalize(self.text_embeddings(tokens).float(), dim=-1)

    def text_parameters(self) -> list[nn.Parameter]:
        """What the embedding of a text depends on, the image side's own parameters aside.

        Found by a backward pass, for the libraries call and nest these parts differently, and some
        models have others beside them that no contrastive loss would reach.
        """
        of_images = {id(parameter) for parameter in self.image_side.parameters()}
        candidates = [p for p in self.parameters() if id(p) not in of_images]
        learned = [parameter.requires_grad for parameter in candidates]
        for parameter in candidates:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            total = self.text_embeddings(self.processor.tokenize(["a"])).sum()
        reached = torch.autograd.grad(total, candidates, allow_unused=True)
        for parameter, before in zip(candidates, learned, strict=True):
            parameter.requires_grad_(before)
        return [p for p, grad in zip(candidates, reached, strict=True) if grad is not None]

    def query_parts(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """A query's image and its words, each as (B, D), from what `DualQueryReader` gives.

        Returns {"image_only", "text_only"}, or "text_only" alone where queries have no image. Rows
        are unit vectors; those of queries without words are zero in "text_only", so that in a sum
        the image alone counts, whatever the other queries of a batch are.
        """
        parts: dict[str, torch.Tensor] = {}
        if "image" in inputs:
            parts["image_only"] = self.embed_images(inputs["image"])
        if "text" in inputs:
            worded = inputs["worded"].unsqueeze(1)
            parts["text_only"] = self.encode_texts(inputs["text"]).masked_fill(~worded, 0.0)
        elif parts:
            parts["text_only"] = torch.zeros_like(parts["image_only"])
        return parts

    def backbone_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What a frozen image backbone says, before any head that may be trained. (B, F).

        The whole tower where it has no separate head: then `project_features` is the identity.
        """
        return self.image_embeddings(pixels)

    def project_features(self, features: torch.Tensor) -> torch.Tensor:
        """From backbone features (B, F) to embeddings (B, D)."""
        return features

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer in the layout of the library they are of.

        A text tower of transformers is named there by the path of `folder`.
        """


class OpenClipEncoder(DualEncoder):
    """Any model of open_clip.

    Args:
        name: a built-in name (`ViT-L-14`), `hf-hub:org/model`, `local-dir:folder`, or `zoo:name`.
        pretrained: open_clip's tag of the weights or a file; only with built-in names.
        load_weights: False starts from random weights.
        image_size: pixels; another one than the weights' has their positions interpolated. None
            keeps theirs.
        max_length: the same for the tokens of a text.

    Attributes:
        source: what open_clip loads it by.
        pretrained: as given.

    Raises:
        UserError: it cannot be loaded, or has no place for so many tokens.
    """

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        load_weights: bool = True,
        image_size: int | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name if pretrained is None else f"{name} ({pretrained})"
        source = f"local-dir:{resolve_folder(name)}" if name.startswith(ZOO_PREFIX) else name
        self.source, self.pretrained = source, pretrained
        if source.startswith("local-dir:"):
            _require_open_clip_folder(Path(source.removeprefix("local-dir:")), load_weights)
        with weights_or_sentence(self.name, key="clip"):
            # A transformers text tower would otherwise look for weights of its own.
            self.model = open_clip.create_model(
                source,
                pretrained=pretrained,
                load_weights=load_weights,
                pretrained_text=False,
                force_image_size=image_size,
                force_context_length=max_length,
            )
            tokenizer = open_clip.get_tokenizer(source, context_length=max_length)
            # Read now: a model from scratch is built in a folder that does not stay.
            self._config = open_clip.get_model_config(source)
        if image_size is not None:
            self._config["vision_cfg"]["image_size"] = image_size
        if max_length is not None:
            self._config["text_cfg"]["context_length"] = max_length
            _check_length(max_length, _places(self.model), name)
        self.tokenizer = tokenizer
        self._finish(tokenizer)

    def _finish(self, tokenizer: Callable[[list[str]], torch.Tensor]) -> None:
        # FSDP2 cannot shard a parameter without a dimension.
        scale = self.model.logit_scale
        self.model.logit_scale = nn.Parameter(scale.detach().reshape(1))
        preprocess = PreprocessCfg(**open_clip.get_model_preprocess_cfg(self.model))
        self.processor = DualProcessor(
            transform=image_transform_v2(preprocess, is_train=False),
            tokenize=_OpenClipTokenizer(tokenizer),
        )
        with torch.no_grad():
            probe = torch.zeros(1, 3, *_pair(preprocess.size))
            self.dim = self.model.eval().encode_image(probe).shape[-1]

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.model.visual
        return tower

    @property
    def image_side(self) -> nn.Module:
        return self.image_tower

    @property
    def image_backbone(self) -> nn.Module:
        """The image tower without a projection of its own: a timm trunk, or the whole tower."""
        backbone: nn.Module = getattr(self.model.visual, "trunk", self.model.visual)
        return backbone

    @property
    def token_embedding(self) -> nn.Embedding:
        """The text tower's embedding matrix, (V, D')."""
        if hasattr(self.model, "token_embedding"):
            embedding: nn.Embedding = self.model.token_embedding
        elif hasattr(self.model.text, "token_embedding"):
            embedding = self.model.text.token_embedding
        else:
            embedding = self.model.text.transformer.get_input_embeddings()
        return embedding

    def image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.model.encode_image(pixels)
        return embeddings

    def text_embeddings(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        embeddings: torch.Tensor = self.model.encode_text(tokens["input_ids"])
        return embeddings

    def backbone_features(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.image_backbone(pixels)
        return features

    def project_features(self, features: torch.Tensor) -> torch.Tensor:
        if self.image_backbone is self.image_tower:
            return features
        embeddings: torch.Tensor = self.model.visual.head(features)
        return embeddings

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = deepcopy(self._config)
        text = config["text_cfg"]
        if text.get("hf_model_name"):
            self.model.text.config.save_pretrained(folder)
            text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        if text.get("hf_tokenizer_name"):
            text["hf_tokenizer_name"] = str(folder)
        save_config_for_hf(self.model, folder / "open_clip_config.json", config)
        # open_clip's own tokenizer is part of its package.
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)
        self.save_weights(folder)

    def save_weights(self, folder: Path) -> None:
        """Write the weights alone, beside the configuration that is already in `folder`."""
        tensors = self.model.state_dict().items()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
        # open_clip's own layout has a scalar here; see `_finish` on why ours has not.
        state["logit_scale"] = state["logit_scale"].reshape(())
        with whole_file(folder / "open_clip_model.safetensors") as unfinished:
            save_file(state, unfinished)


@dataclass(frozen=True)
class _OpenClipTokenizer:
    tokenizer: Any

    @property
    def max_length(self) -> int:
        length: int = self.tokenizer.context_length
        return length

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokenizer(texts)}

    def cut(self, texts: list[str]) -> torch.Tensor:
        # Its tokenizers share no way to count. With twice the places, a text that is too long has
        # something behind the first half where one without words has padding.
        places = self.max_length
        tokens = self.tokenizer([*texts, ""], context_length=2 * places)[:, places:]
        return (tokens[:-1] != tokens[-1]).any(dim=1)


class BlipEncoder(DualEncoder):
    """BLIP's contrastive pair of towers (Li et al., 2022), in transformers' layout.

    Args:
        name: a hub name, a folder of a `BlipForImageTextRetrieval`, `zoo:name`, or a file of BLIP's
            own code.
        parts: what was loaded by that name; None loads it.
        max_length: tokens of a text; None takes a caption's.

    Attributes:
        source: the name.
        parts: model, processor and, where there is one, text decoder.

    Raises:
        UserError: it cannot be loaded, or has no place for so many tokens.
    """

    def __init__(
        self, name: str, parts: BlipParts | None = None, max_length: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.source = f"{BLIP_PREFIX}{name}", name
        self.parts = parts or load_blip(name, key="clip")
        self.model = self.parts.model
        places = self.model.config.text_config.max_position_embeddings
        max_length = min(CAPTION_LENGTH, places) if max_length is None else max_length
        _check_length(max_length, places, name)
        self.dim = self.model.config.image_text_hidden_size
        self.processor = BlipReader(
            transform=_BlipTransform(self.parts.processor.image_processor),
            tokenize=_BlipTokenizer(self.parts.processor.tokenizer, max_length),
        )

    @property
    def image_tower(self) -> nn.Module:
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def image_backbone(self) -> nn.Module:
        """The projection is part of it: what is kept of an image are its `dim` numbers."""
        parts = {"tower": self.model.vision_model, "projection": self.model.vision_proj}
        return nn.ModuleDict(parts)

    def image_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return self.model.vision_proj(hidden[:, 0])

    def text_embeddings(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.model.text_encoder(**tokens).last_hidden_state
        return self.model.text_proj(hidden[:, 0])

    def save(self, folder: Path) -> None:
        save_blip(self.parts, folder)


@dataclass(frozen=True)
class BlipReader(DualProcessor):
    """Reads images in one call, which is twice as fast."""

    transform: _BlipTransform

    def images(self, images: Sequence[PIL.Image.Image]) -> torch.Tensor:
        return self.transform.batch(list(images))


@dataclass(frozen=True)
class _BlipTransform:
    image_processor: Any

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.batch([image])[0]

    def batch(self, images: list[PIL.Image.Image]) -> torch.Tensor:
        return self.image_processor(images, return_tensors="pt")["pixel_values"]


@dataclass(frozen=True)
class _BlipTokenizer:
    tokenizer: Any
    max_length: int

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def cut(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length + 1)["input_ids"]
        return torch.tensor([len(row) > self.max_length for row in ids])


def load_dual_encoder(
    name: str,
    pretrained: str | None = None,
    image_size: int | None = None,
    max_length: int | None = None,
) -> DualEncoder:
    """Load a pretrained dual encoder.

    Args:
        name: `blip:` and a name for BLIP (`BlipEncoder`); anything else goes to open_clip
            (`OpenClipEncoder`).
        pretrained: open_clip's tag of the weights or a file.
        image_size: pixels; None is what the weights were trained with.
        max_length: tokens of a text; None takes open_clip's own, and a caption's of BLIP.

    Raises:
        UserError: the weights are neither in a local folder nor reachable, or have no place for so
            many tokens.
    """
    if name.startswith(BLIP_PREFIX):
        source = name.removeprefix(BLIP_PREFIX)
        parts = load_blip(source, image_size=image_size, key="clip")
        return BlipEncoder(source, parts, max_length)
    return OpenClipEncoder(name, pretrained, image_size=image_size, max_length=max_length)


def _places(model: nn.Module) -> int | None:
    """Tokens that an open_clip model has positions for; None if as many as it was built with."""
    config: Any = getattr(getattr(model, "text", None), "config", None)
    return getattr(config, "max_position_embeddings", None)


def _check_length(max_length: int, places: int | None, name: str) -> None:
    most = max_length if places is None else places
    if not 2 <= max_length <= most:
        raise UserError(
            f"max_length is {max_length}, but the text encoder of {name} has {most} places; "
            f"choose from 2 to {most}"
        )


def _require_open_clip_folder(folder: Path, load_weights: bool) -> None:
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise UserError(
            f"clip folder {folder} holds no open_clip_config.json; train and export that model "
            "first, or point clip to a folder that open_clip wrote"
        )
    try:
        json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{config} is not JSON ({error}); export the model again") from error
    weights = [folder / "open_clip_model.safetensors", folder / "open_clip_pytorch_model.bin"]
    if load_weights and not any(path.is_file() for path in weights):
        raise UserError(f"clip folder {folder} holds no weights: {weights[0].name} is missing")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
