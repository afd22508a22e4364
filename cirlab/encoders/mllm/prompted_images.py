"""One picture, many prompts: what the prompts share is computed once.

A decoder's attention is causal. Where the picture stands before a prompt's words, keys and values
of all tokens up to the picture's last are therefore the same whatever the words are: the prefix.
It is kept, and each prompt runs its own tokens alone (the suffix) behind it. The vectors are those
of one forward of picture and prompt, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prefix import Prefix, empty_cache
from cirlab.encoders.mllm.prefix_tokens import by_token
from cirlab.errors import UserError

#: Layers whose keys and values a cache holds token by token; others keep a running state.
KEPT_BY_TOKEN = ("full_attention", "sliding_attention")
#: How far apart the vectors of both ways may lie (Euclidean, of unit vectors) in 32 and in fewer
#: bits. Where tokens of the picture see the prompt, they lie further apart than either.
CLOSE, CLOSE_IN_16_BITS = 1e-3, 0.1


class PromptedImages:
    """Vectors of pictures under prompts, by prefix and suffix or by one plain forward.

    Holds no weights of its own. The first prefix is tried: vectors of either way must agree.

    Args:
        llm: in evaluation mode wherever a prefix is asked for.
        by_prefix: whether prefixes will be asked for; any model makes vectors by one forward.

    Raises:
        UserError: prefixes will be asked for, and the model pools over the picture's tokens, or
            keeps no cache by token.
    """

    def __init__(self, llm: EmbeddingMLLM, *, by_prefix: bool = True) -> None:
        if by_prefix:
            self._check(llm)
        self.llm = llm
        self._by_prefix, self._tried = by_prefix, False

    @staticmethod
    def _check(llm: EmbeddingMLLM) -> None:
        if llm.settings.pooling != "last":
            raise UserError(
                f"llm.pooling is {llm.settings.pooling}, which takes in the picture's tokens; a "
                "prompt that continues a picture's prefix needs llm.pooling: last"
            )
        kinds = getattr(llm.speaker.config.get_text_config(), "layer_types", None) or ()
        other = sorted(set(kinds) - set(KEPT_BY_TOKEN))
        if other:
            raise UserError(
                f"{llm.name} (llm.name) has layers of kind {other[0]}, which keep no keys and "
                "values of a picture's tokens; name another model, or encode picture and prompt in "
                "one forward (looking: whole) where the method can"
            )

    def prefix(self, group: Mapping[str, torch.Tensor]) -> Prefix:
        """Everything up to the pictures' last tokens, on the device of the inputs.

        Args:
            group: one of the groups that `ImagePrefixCollator` makes.

        Raises:
            UserError: what comes after a picture changes what this model makes of it.
        """
        if not self._by_prefix:
            raise ValueError("by_prefix is False: whether the model has prefixes was not checked")
        if self.llm.training:
            raise ValueError("dropout would differ from prompt to prompt: call eval() first")
        prefix = self._prefix(group)
        if not self._tried:
            self._try(group, prefix)
        return prefix

    @torch.no_grad()
    def proceed(self, prefix: Prefix, suffix_ids: torch.Tensor) -> torch.Tensor:
        """Vectors of the pictures under one prompt. The prefix stays as it is.

        Args:
            prefix: on the model's device.
            suffix_ids: as the function of that name makes them. Shape (S,).

        Returns:
            Unit vectors, float32. Shape (G, D).
        """
        following = suffix_ids.expand(len(prefix), len(suffix_ids))
        return self.llm.unit(self.follow(prefix).read(following))

    def follow(self, prefix: Prefix) -> Continuation:
        """Begin to read tokens behind a prefix, at one place only at a time.

        Args:
            prefix: on the model's device.
        """
        return Continuation(self, prefix)

    def whole(self, group: Mapping[str, torch.Tensor], suffix_ids: torch.Tensor) -> torch.Tensor:
        """The same vectors by one forward of pictures and prompt.

        Args:
            group: one of the groups that `ImagePrefixCollator` makes.
            suffix_ids: as the function of that name makes them. Shape (S,).

        Returns:
            Unit vectors, float32. Shape (G, D).
        """
        ids, count = group["input_ids"], len(suffix_ids)
        self.check_length(ids.shape[1] + count)
        full = dict(group)
        for name in by_token(group):
            # Whatever else is told of tokens is 0 of words.
            full[name] = pad(group[name], (0, count), value=int(name == "attention_mask"))
        full["input_ids"] = torch.cat([ids, suffix_ids.to(ids.device).expand(len(ids), -1)], dim=1)
        order = torch.arange(len(ids), device=ids.device)
        return self.llm({"groups": [full], "order": order, "cut": 0})

    @torch.no_grad()
    def _prefix(self, group: Mapping[str, torch.Tensor]) -> Prefix:
        positions, following = self._positions(group)
        cache = empty_cache()
        self.llm.backbone(**group, position_ids=positions, past_key_values=cache, use_cache=True)
        return Prefix.of(cache, group["attention_mask"], following)

    def _positions(self, group: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the prefix's tokens, as the model takes them, and of the next token."""
        mask = group["attention_mask"]
        if not self._places_pictures:
            return (mask.cumsum(dim=1) - 1).clamp(min=0), mask.sum(dim=1)
        told = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        backbone: Any = self.llm.backbone
        positions, _ = backbone.get_rope_index(**{k: group[k] for k in told if k in group})
        # Padding has position 0, so that it is never the largest.
        return positions, positions.amax(dim=(0, 2)) + 1

    @property
    def _places_pictures(self) -> bool:
        """Whether tokens have places in time, height and width (Qwen-VL's rotary positions)."""
        return hasattr(self.llm.backbone, "get_rope_index")

    def on_axes(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions of words, (G, S), as the model takes them."""
        return positions.expand(3, *positions.shape) if self._places_pictures else positions

    def check_length(self, length: int) -> None:
        """Refuse so many tokens of a picture and a prompt.

        Raises:
            UserError: they are more than the limit.
        """
        limit = self.llm.settings.max_length
        if length > limit:
            raise UserError(
                f"a picture with its prompt has {length} tokens, more than llm.max_length {limit}; "
                f"raise llm.max_length to at least {length}, or make pictures smaller "
                "(llm.processor_options) if the model takes smaller ones"
            )

    def _try(self, group: Mapping[str, torch.Tensor], prefix: Prefix) -> None:
        words = self.llm.processor.tokenizer("what is there", add_special_tokens=False)["input_ids"]
        # As long as the limit lets it be: the pictures may take almost all of it.
        room = max(1, self.llm.settings.max_length - prefix.length)
        suffix = torch.tensor(words[:room])
        with torch.no_grad():
            apart = self.proceed(prefix, suffix) - self.whole(group, suffix)
        # Values: under autocast keys are turned in 32 bits after they were computed in 16.
        in_32_bits = prefix.layers[0][1].dtype == torch.float32
        if not float(apart.norm(dim=1).max()) <= (CLOSE if in_32_bits else CLOSE_IN_16_BITS):
            raise UserError(
                f"{self.llm.name} (llm.name) makes another vector of a picture and a prompt in one "
                "forward than of the prompt behind the picture's prefix, so its attention is not "
                "causal; name another model, or encode picture and prompt in one forward (looking: "
                "whole) where the method can"
            )
        self._tried = True


class Continuation:
    """What comes behind the prefixes of some pictures, read in as many steps as one likes.

    The prefix stays as it is.

    Args:
        images: whose prefix it is.
        prefix: of G pictures.
    """

    def __init__(self, images: PromptedImages, prefix: Prefix) -> None:
        self._images, self._cache = images, prefix.cache()
        self._mask, self._following = prefix.mask, prefix.following[:, None]

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read some tokens more; the last layer's state at the last of them, (G, W).

        Args:
            ids: of each picture as many. Shape (G, S).
        """
        count, device = ids.shape[1], self._mask.device
        self._mask = pad(self._mask, (0, count), value=1)
        self._images.check_length(self._mask.shape[1])
        positions = self._following + torch.arange(count, device=device)
        self._following = self._following + count
        hidden: torch.Tensor = self._images.llm.backbone(
            input_ids=ids.to(device),
            attention_mask=self._mask,
            position_ids=self._images.on_axes(positions),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[:, -1]
