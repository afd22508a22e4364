"""Model folders without weights: what a tiny model needs before its first training step.

They hold the very files that real models hold (open_clip_config.json, config.json,
tokenizer.json), so that a model trained from scratch is loaded by the calls that load real
ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cirlab.errors import UserError

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<bos>", "<eos>"

_NORMALIZER = normalizers.Lowercase()
_SPLITTER = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
)


def words_of(text: str) -> list[str]:
    """The words of a text as `word_tokenizer` takes them."""
    parts = _SPLITTER.pre_tokenize_str(_NORMALIZER.normalize_str(text))
    return [word for word, _ in parts]


def word_tokenizer(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer with one token a word.

    The end token has the highest id: open_clip's text tower finds the end of a text as the
    position of its largest id.

    Args:
        words: the vocabulary, without special tokens; order decides ids.
        max_length: tokens.
    """
    vocabulary = [PAD, UNKNOWN, BEGIN, *dict.fromkeys(words), END]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = _NORMALIZER
    tokenizer.pre_tokenizer = _SPLITTER
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, vocabulary.index(BEGIN)), (END, vocabulary.index(END))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=max_length,
    )


def write_clip_folder(
    folder: Path,
    architecture: dict[str, Any],
    words: Sequence[str],
    preprocess: dict[str, Any],
    text_transformer: dict[str, Any] | None = None,
) -> None:
    """Write configuration and tokenizer of an open_clip model.

    Args:
        folder: made if absent.
        architecture: open_clip's `model_cfg` (embed_dim, vision_cfg, text_cfg); vocabulary
            size and tokenizer are filled in.
        words: the vocabulary.
        preprocess: open_clip's `preprocess_cfg` (mean, std, ...).
        text_transformer: configuration of a transformers text tower, `model_type` included,
            where the text tower is not open_clip's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = dict(architecture["text_cfg"])
    tokenizer = word_tokenizer(words, max_length=text["context_length"])
    text |= {"hf_tokenizer_name": str(folder), "vocab_size": len(tokenizer)}
    if text_transformer is not None:
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        _write_transformer_config(folder, text_transformer, tokenizer)
    config = {"model_cfg": architecture | {"text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)


def write_llm_folder(folder: Path, config: dict[str, Any], words: Sequence[str]) -> None:
    """Write configuration and tokenizer of a causal language model.

    Args:
        folder: made if absent.
        config: transformers configuration, `model_type` included; vocabulary size and special
            tokens are filled in.
        words: the vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = word_tokenizer(words, max_length=config["max_position_embeddings"])
    _write_transformer_config(folder, config, tokenizer)
    tokenizer.save_pretrained(folder)


def _write_transformer_config(
    folder: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    rest = {key: value for key, value in config.items() if key != "model_type"}
    AutoConfig.for_model(
        config["model_type"],
        **rest,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    ).save_pretrained(folder)


def read_word_vectors(folder: Path) -> tuple[list[str], np.ndarray]:
    """Read `words.txt` (one a line) and `vectors.*.npy` (N, D) of word vectors.

    Raises:
        UserError: a file is missing or the two disagree in length.
    """
    found = sorted(folder.glob("vectors.*.npy"))
    listing = folder / "words.txt"
    if not found or not listing.is_file():
        raise UserError(f"word vector folder {folder} must hold words.txt and vectors.*.npy")
    words = listing.read_text(encoding="utf-8").split("\n")
    words = words[:-1] if words[-1] == "" else words
    vectors = np.load(found[0])
    if len(words) != len(vectors):
        raise UserError(
            f"{listing} has {len(words)} words but {found[0].name} {len(vectors)} rows; "
            "they must be of one release"
        )
    return words, vectors


def set_word_vectors(
    embedding: torch.nn.Embedding,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    vectors: np.ndarray,
) -> int:
    """Start an embedding matrix from word vectors, scaled to the matrix's own spread.

    Args:
        embedding: Shape (V, D).
        tokenizer: gives a word its row.
        words: N words; those outside the tokenizer's vocabulary are passed over.
        vectors: Shape (N, D'), D' <= D; missing dimensions start at zero.

    Returns:
        The number of words that were set.
    """
    vocabulary = tokenizer.get_vocab()
    # In float16, in which vectors are published, their spread overflows to infinity.
    vectors = vectors.astype(np.float32)
    spread = embedding.weight.std().item() / float(vectors.std())
    count = 0
    with torch.no_grad():
        for word, vector in zip(words, vectors, strict=True):
            row = vocabulary.get(word.lower())
            if row is not None:
                embedding.weight[row].zero_()
                embedding.weight[row, : len(vector)] = torch.from_numpy(vector) * spread
                count += 1
    return count
