"""Models of open_clip as dual encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch import nn

import cirlab.encoders.dual.timm_models  # noqa: F401 - registers names that open_clip may ask for
from cirlab.encoders.dual.encoder import DualEncoder, DualProcessor, check_length
from cirlab.encoders.names import ZOO_PREFIX, resolve_folder, weights_or_sentence
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file


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
            check_length(max_length, _places(self.model), name)
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


def _places(model: nn.Module) -> int | None:
    """Tokens that an open_clip model has positions for; None if as many as it was built with."""
    config: Any = getattr(getattr(model, "text", None), "config", None)
    return getattr(config, "max_position_embeddings", None)


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
