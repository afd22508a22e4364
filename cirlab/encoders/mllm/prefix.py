"""One picture, many prompts: what the prompts share is computed once.

A decoder's attention is causal. Where the picture stands before a prompt's words, keys and values
of all tokens up to the picture's last are therefore the same whatever the words are: the prefix.
It is kept, and each prompt runs its own tokens alone (the suffix) behind it. The vectors are those
of one forward of picture and prompt, up to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image
import torch
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK, MLLMProcessor, Prompt
from cirlab.encoders.mllm.prompt_length import SIDE
from cirlab.errors import UserError
from cirlab.records import Image

#: Layers whose keys and values a cache holds token by token; others keep a running state.
KEPT_BY_TOKEN = ("full_attention", "sliding_attention")
#: Tokens that a prompt behind a picture may have before the prefix is copied for it.
ROOM = 64
#: How far apart the vectors of both ways may lie (Euclidean, of unit vectors) in 32 and in fewer
#: bits. Where tokens of the picture see the prompt, they lie further apart than either.
CLOSE, CLOSE_IN_16_BITS = 1e-3, 0.1


@dataclass(frozen=True)
class Prefix:
    """What a decoder keeps of some pictures, padded on the left to one length of P tokens.

    Attributes:
        layers: keys and values of each layer, and after P tokens of them room for those of a
            prompt. Shape (G, heads, P + room, dimensions of a head) each.
        mask: 1 where a token is, 0 where padding. Shape (G, P), int64.
        following: position of the token that comes next. Shape (G,), int64.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    mask: torch.Tensor
    following: torch.Tensor

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.mask.shape[1]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        kept = [states for layer in self.layers for states in layer]
        return sum(tensor.nbytes for tensor in (*kept, self.mask, self.following))

    def to(self, device: torch.device | str) -> Prefix:
        """The same on another device."""
        layers = tuple((keys.to(device), values.to(device)) for keys, values in self.layers)
        return Prefix(layers, self.mask.to(device), self.following.to(device))

    def select(self, wanted: torch.Tensor) -> Prefix:
        """Those of some pictures; itself if all are wanted.

        Args:
            wanted: shape (G,), bool.
        """
        if wanted.all():
            return self
        rows = wanted.nonzero().flatten().to(self.mask.device)
        layers = tuple((keys[rows], values[rows]) for keys, values in self.layers)
        return Prefix(layers, self.mask[rows], self.following[rows])

    def rows(self) -> Iterator[Prefix]:
        """Each picture's own, in memory of its own, without padding or room."""
        for row, count in enumerate(self.mask.sum(dim=1).tolist()):
            one, tokens = slice(row, row + 1), slice(self.length - count, self.length)
            layers = tuple(
                (_copy(keys[one, :, tokens]), _copy(values[one, :, tokens]))
                for keys, values in self.layers
            )
            yield Prefix(layers, _copy(self.mask[one, tokens]), _copy(self.following[one]))

    @staticmethod
    def join(prefixes: Sequence[Prefix]) -> Prefix:
        """Those of several groups as one group, with room for a prompt."""
        longest = max(prefix.length for prefix in prefixes)
        missing = [longest - prefix.length for prefix in prefixes]

        def joined(states: Sequence[torch.Tensor]) -> torch.Tensor:
            kept = [s[..., : p.length, :] for s, p in zip(states, prefixes, strict=True)]
            return torch.cat([pad(s, (0, 0, m, ROOM)) for s, m in zip(kept, missing, strict=True)])

        layers = tuple(
            (joined([keys for keys, _ in layer]), joined([values for _, values in layer]))
            for layer in zip(*(prefix.layers for prefix in prefixes), strict=True)
        )
        masks = [pad(p.mask, (m, 0)) for p, m in zip(prefixes, missing, strict=True)]
        return Prefix(layers, torch.cat(masks), torch.cat([p.following for p in prefixes]))


class _Layer(DynamicLayer):
    """Keys and values of one layer, in blocks of memory that have room for more.

    Transformers' own is copied as a whole whenever tokens are added: for each prompt, all tokens
    of the pictures.

    Args:
        block: keys and values of a prefix, which stay as they are; None begins one.
        length: tokens of the prefix.
    """

    def __init__(
        self, block: tuple[torch.Tensor, torch.Tensor] | None = None, length: int = 0
    ) -> None:
        super().__init__()
        self._block = block
        if block is not None:
            self.lazy_initialization(*block)
            self._show(block, length)

    @property
    def block(self) -> tuple[torch.Tensor, torch.Tensor]:
        """With its room."""
        assert self._block is not None, "the layer has not been computed"
        return self._block

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held, count = self.get_seq_length(), key_states.shape[-2]
        if self._block is None:
            self.lazy_initialization(key_states, value_states)
            self._block = _roomy(key_states, ROOM), _roomy(value_states, ROOM)
            return self._show(self._block, count)
        if held + count > self._block[0].shape[-2]:
            # Answers come token by token.
            more = max(count, ROOM)
            self._block = _roomy(self._block[0], more), _roomy(self._block[1], more)
        for block, added in zip(self._block, (key_states, value_states), strict=True):
            block[..., held : held + count, :] = added
        return self._show(self._block, held + count)

    def _show(
        self, block: tuple[torch.Tensor, torch.Tensor], length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shown = block[0][..., :length, :], block[1][..., :length, :]
        self.keys, self.values = shown
        return shown


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
        for name in _by_token(group):
            # Whatever else is told of tokens is 0 of words.
            full[name] = pad(group[name], (0, count), value=int(name == "attention_mask"))
        full["input_ids"] = torch.cat([ids, suffix_ids.to(ids.device).expand(len(ids), -1)], dim=1)
        order = torch.arange(len(ids), device=ids.device)
        return self.llm({"groups": [full], "order": order, "cut": 0})

    @torch.no_grad()
    def _prefix(self, group: Mapping[str, torch.Tensor]) -> Prefix:
        positions, following = self._positions(group)
        # Without a configuration it keeps every token, also those that leave a sliding window.
        cache = Cache(layer_class_to_replicate=_Layer)
        self.llm.backbone(**group, position_ids=positions, past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        blocks = tuple(layer.block for layer in layers)
        return Prefix(blocks, group["attention_mask"], following)

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
        self._images, self._cache = images, _continued(prefix)
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


@dataclass(frozen=True)
class ImagePrefixCollator:
    """Images to what `PromptedImages` takes: {"groups", "order", "cut"}, as `MLLMProcessor` has it.

    Each group ends with the pictures' last tokens and is padded on the left, whatever the
    tokenizer's side is: what follows then begins in the same place for all.

    Attributes:
        processor: of the model.
        template: of any of the prompts, for all begin alike.
    """

    processor: MLLMProcessor
    template: str

    def __call__(self, images: Sequence[Image]) -> dict[str, Any]:
        batch = self.processor([Prompt(self.template, image=i.load()) for i in images])
        return batch | {"groups": [_until_picture(self.processor, g) for g in batch["groups"]]}


def suffix_ids(processor: MLLMProcessor, template: str, text: str = "") -> torch.Tensor:
    """Tokens of a prompt behind its picture's last, the same for every picture. Shape (S,), int64.

    Args:
        processor: of the model.
        template: `<image>` stands for the picture, `{text}` for the words.
        text: these words.

    Raises:
        UserError: words stand before the picture, so that prefixes differ from prompt to prompt.
    """
    before, _, _ = template.partition(IMAGE_MARK)
    if TEXT_MARK in before:
        raise UserError(
            f"the prompt {template!r} has {TEXT_MARK} before {IMAGE_MARK}; a picture's prefix is "
            f"the same for all prompts only if {IMAGE_MARK} stands first"
        )
    return _halves(processor, template, text)[1]


def prefix_ids(processor: MLLMProcessor, template: str) -> torch.Tensor:
    """Tokens of a prompt up to the last of a small picture. Shape (P,), int64."""
    return _halves(processor, template)[0]


def check_same_prefix(processor: MLLMProcessor, templates: Mapping[str, str]) -> None:
    """Refuse prompts that do not begin alike up to their pictures.

    Args:
        processor: of the model.
        templates: by the key under which the user gives them.

    Raises:
        UserError: it names the first that differs.
    """
    begun = {key: prefix_ids(processor, text).tolist() for key, text in templates.items()}
    first = next(iter(templates))
    for key, template in templates.items():
        if begun[key] != begun[first]:
            raise UserError(
                f"{key} is {template!r} and {first} is {templates[first]!r}: up to {IMAGE_MARK} "
                "they do not begin alike, but pictures are read once for both; write the same "
                "before it"
            )


def _halves(
    processor: MLLMProcessor, template: str, text: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens up to the last of a small picture, and those behind it."""
    # What fits is for the pictures themselves to tell.
    unlimited = replace(processor, max_length=sys.maxsize)
    picture = PIL.Image.new("RGB", (SIDE, SIDE))
    (group, _) = unlimited.tensors([Prompt(template, text, picture)])
    ids = group["input_ids"][0]
    end = int(_last_of_picture(processor, group)[0]) + 1
    return ids[:end], ids[end:]


def _until_picture(
    processor: MLLMProcessor, group: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The group without what follows each picture, padded on the left."""
    mask, ends = group["attention_mask"], _last_of_picture(processor, group) + 1
    begins = mask.argmax(dim=1)
    longest = int((ends - begins).max())
    fill = {"input_ids": processor.tokenizer.pad_token_id}

    def cut(name: str) -> torch.Tensor:
        rows = [row[begin:end] for row, begin, end in zip(group[name], begins, ends, strict=True)]
        padded = [pad(r, (longest - len(r), 0), value=fill.get(name, 0)) for r in rows]
        return torch.stack(padded)

    return dict(group) | {name: cut(name) for name in _by_token(group)}


def _last_of_picture(processor: MLLMProcessor, group: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Where the last token of each row's picture is. Shape (G,)."""
    inner: Any = processor.processor
    tokenizer: Any = processor.tokenizer
    of_picture = group["input_ids"].eq(tokenizer.convert_tokens_to_ids(inner.image_token))
    return of_picture.shape[1] - 1 - of_picture.int().flip(1).argmax(dim=1)


def _by_token(group: Mapping[str, torch.Tensor]) -> list[str]:
    """Inputs that tell something of every token."""
    shape = group["input_ids"].shape
    return [n for n, t in group.items() if t.shape == shape and not t.is_floating_point()]


def _continued(prefix: Prefix) -> Cache:
    """A cache that begins with the prefix and writes into its room."""
    layers: list[Any] = [_Layer(block, prefix.length) for block in prefix.layers]
    return Cache(layers=layers)


def _roomy(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """A copy with room for so many tokens more."""
    return pad(states, (0, 0, 0, tokens))


def _copy(states: torch.Tensor) -> torch.Tensor:
    return states.clone(memory_format=torch.contiguous_format)
