"""Floating point operations of a training step, counted from the architecture.

A product of (m, k) and (k, n) matrices is 2 m k n operations; nothing else is counted. Attention
counts as if every token saw all others, as in PaLM (arXiv 2204.02311, appendix B). What is computed
a second time (chunks, gradient checkpointing) does not count: it is a cost, not a yield.
"""

from __future__ import annotations

from bench.multimodal.architectures import Architecture, Decoder, Tower


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """One matrix applied to tokens."""
    return 2 * tokens * inputs * outputs


def attention(tokens: int, width: int) -> int:
    """Scores and their weighted sums, one layer."""
    return 4 * tokens * tokens * width


def decoder_layers(decoder: Decoder) -> list[tuple[int, int]]:
    """Inputs and outputs of the seven matrices of a layer, to all of which adapters are added."""
    width, key_value, hidden = decoder.width, decoder.key_value_width, decoder.hidden
    square, narrow, up, down = (
        (width, width),
        (width, key_value),
        (width, hidden),
        (hidden, width),
    )
    return [square, narrow, narrow, square, up, up, down]


def tower_forward(tower: Tower) -> int:
    """A picture through the tower."""
    layer = 4 * linear(tower.tokens, tower.width, tower.width)
    layer += 2 * linear(tower.tokens, tower.width, tower.hidden)
    layer += attention(tower.tokens, tower.width)
    return linear(tower.patches**2, tower.patch_values, tower.width) + tower.layers * layer


def connector_forward(model: Architecture) -> int:
    """What the tower says of a picture, to the language model's tokens."""
    return sum(linear(model.image_tokens, *matrix) for matrix in model.connector)


def decoder_forward(decoder: Decoder, tokens: int) -> tuple[int, int]:
    """A text through the frozen matrices, and through attention."""
    matrices = sum(linear(tokens, *matrix) for matrix in decoder_layers(decoder))
    return decoder.layers * matrices, decoder.layers * attention(tokens, decoder.width)


def adapters_forward(decoder: Decoder, tokens: int, rank: int) -> int:
    """A text through the adapters of all matrices."""
    both = [linear(tokens, i, rank) + linear(tokens, rank, o) for i, o in decoder_layers(decoder)]
    return decoder.layers * sum(both)


def step(model: Architecture, rank: int) -> int:
    """A picture and its caption, forward and backward.

    The tower and the connector are frozen and only run forward. Of the frozen matrices the backward
    pass needs the gradient of their inputs, as much again; attention and adapters need two
    gradients each, twice as much again.
    """
    total = tower_forward(model.tower) + connector_forward(model)
    for tokens in model.sides:
        matrices, attended = decoder_forward(model.decoder, tokens)
        total += 2 * matrices + 3 * attended
        total += 3 * adapters_forward(model.decoder, tokens, rank)
    return total
