"""What a decoder keeps of pictures: keys and values of all tokens up to a picture's last.

Prompts continue it one after the other (`cirlab.encoders.mllm.prompted_images`), each in the memory
behind it, so that nothing of the pictures is copied for a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

#: Tokens that a prompt behind a picture may have before the prefix is copied for it.
ROOM = 64


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

    @staticmethod
    def of(cache: Cache, mask: torch.Tensor, following: torch.Tensor) -> Prefix:
        """What a decoder has written into an `empty_cache`, and what the attributes tell of it."""
        layers: list[Any] = cache.layers
        return Prefix(tuple(layer.block for layer in layers), mask, following)

    def cache(self) -> Cache:
        """A cache that begins with the prefix and writes into its room."""
        layers: list[Any] = [_Layer(block, self.length) for block in self.layers]
        return Cache(layers=layers)

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


def empty_cache() -> Cache:
    """A cache that a prefix can be made of."""
    # Without a configuration it keeps every token, also those that leave a sliding window.
    return Cache(layer_class_to_replicate=_Layer)


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


def _roomy(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """A copy with room for so many tokens more."""
    return pad(states, (0, 0, 0, tokens))


def _copy(states: torch.Tensor) -> torch.Tensor:
    return states.clone(memory_format=torch.contiguous_format)
