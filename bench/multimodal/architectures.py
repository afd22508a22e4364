"""Two multimodal LLMs by the numbers of their published configurations, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PretrainedConfig
from transformers.models.qwen2_vl import Qwen2VLConfig

#: Words around a picture's tokens, and of a caption.
PROMPT, CAPTION = 16, 32


@dataclass(frozen=True)
class Tower:
    """A vision transformer.

    Attributes:
        layers: that are computed.
        width: of its states.
        hidden: of its feed-forward layers, of two matrices each.
        heads: of its attention.
        patches: along a side of a picture.
        patch_values: that the first layer reads of each patch.
        class_token: one more token than patches.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    patches: int
    patch_values: int
    class_token: bool

    @property
    def tokens(self) -> int:
        return self.patches**2 + self.class_token


@dataclass(frozen=True)
class Decoder:
    """A language model of Llama's layers: gated feed-forward layers of three matrices."""

    layers: int
    width: int
    hidden: int
    heads: int
    key_value_heads: int
    vocabulary: int

    @property
    def key_value_width(self) -> int:
        return self.width // self.heads * self.key_value_heads


@dataclass(frozen=True)
class Architecture:
    """A multimodal LLM, and one picture with its caption.

    Attributes:
        name: shown in the table.
        layout: "llava" or "qwen2_vl".
        tower: reads pictures.
        decoder: reads what the tower says, and words.
        merged: patches along a side that become one token.
    """

    name: str
    layout: str
    tower: Tower
    decoder: Decoder
    merged: int = 1

    @property
    def image_tokens(self) -> int:
        """Of a picture, in the language model."""
        return (self.tower.patches // self.merged) ** 2

    @property
    def connector(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Inputs and outputs of the two matrices from the tower to the language model."""
        read, width = self.tower.width * self.merged**2, self.decoder.width
        first = read if self.layout == "qwen2_vl" else width
        return (read, first), (first, width)

    @property
    def sides(self) -> tuple[int, int]:
        """Tokens of a picture's prompt and of a caption's."""
        return self.image_tokens + PROMPT, CAPTION

    def config(self) -> PretrainedConfig:
        """For transformers' `from_config`."""
        return _qwen2_vl(self) if self.layout == "qwen2_vl" else _llava(self)

    def images(self, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Pictures of noise and their prompts; every tensor has `batch` rows."""
        picture = torch.full((batch, self.image_tokens), self.decoder.vocabulary - 1)
        ids = torch.cat([picture, self._words(batch, PROMPT)], dim=1)
        side = self.tower.patches
        if self.layout == "qwen2_vl":
            inputs = {
                "pixel_values": torch.randn(batch, side**2, self.tower.patch_values),
                "image_grid_thw": torch.tensor([[1, side, side]]).repeat(batch, 1),
                "mm_token_type_ids": (ids == self.decoder.vocabulary - 1).int(),
            }
        else:
            pixels = side * _patch_size(self.tower)
            inputs = {"pixel_values": torch.randn(batch, 3, pixels, pixels)}
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: value.to(device) for name, value in inputs.items()}

    def captions(self, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Words drawn at random; every tensor has `batch` rows."""
        ids = self._words(batch, CAPTION)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: value.to(device) for name, value in inputs.items()}

    def _words(self, batch: int, length: int) -> torch.Tensor:
        # The last entries stand for pictures and videos, and for what is around them.
        return torch.randint(0, self.decoder.vocabulary - 8, (batch, length))


#: The sizes of Qwen/Qwen2-VL-2B-Instruct, and pictures of 336 pixels.
QWEN2_VL_2B = Architecture(
    name="2B, Qwen2-VL",
    layout="qwen2_vl",
    tower=Tower(32, 1280, 5120, 16, patches=24, patch_values=2 * 3 * 14 * 14, class_token=False),
    decoder=Decoder(28, 1536, 8960, heads=12, key_value_heads=2, vocabulary=151936),
    merged=2,
)
#: The sizes of llava-hf/llava-1.5-7b-hf, which has pictures of 336 pixels.
LLAVA_7B = Architecture(
    name="7B, LLaVA-1.5",
    layout="llava",
    tower=Tower(24, 1024, 4096, 16, patches=24, patch_values=3 * 14 * 14, class_token=True),
    decoder=Decoder(32, 4096, 11008, heads=32, key_value_heads=32, vocabulary=32064),
)


def _patch_size(tower: Tower) -> int:
    return round((tower.patch_values / 3) ** 0.5)


def _text(decoder: Decoder) -> Mapping[str, Any]:
    return {
        "hidden_size": decoder.width,
        "intermediate_size": decoder.hidden,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.key_value_heads,
        "vocab_size": decoder.vocabulary,
        "max_position_embeddings": 4096,
    }


def _llava(model: Architecture) -> PretrainedConfig:
    tower, patch = model.tower, _patch_size(model.tower)
    vision = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.hidden,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        image_size=tower.patches * patch,
        patch_size=patch,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_text(model.decoder)),
        image_token_index=model.decoder.vocabulary - 1,
        image_seq_length=model.image_tokens,
    )


def _qwen2_vl(model: Architecture) -> PretrainedConfig:
    tower, decoder = model.tower, model.decoder
    # Halves of a head's pairs of values turn by height and width, a quarter by time.
    pairs = decoder.width // decoder.heads // 2
    section = [pairs - 2 * (pairs * 3 // 8), pairs * 3 // 8, pairs * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    return Qwen2VLConfig(
        text_config={**_text(decoder), "rope_parameters": rope},
        vision_config={
            "depth": tower.layers,
            "embed_dim": tower.width,
            "hidden_size": decoder.width,
            "num_heads": tower.heads,
            "mlp_ratio": tower.hidden // tower.width,
            "patch_size": round((tower.patch_values / 6) ** 0.5),
            "spatial_merge_size": model.merged,
        },
        image_token_id=decoder.vocabulary - 1,
        video_token_id=decoder.vocabulary - 2,
        tie_word_embeddings=True,
    )
