"""Folder of a small multimodal LLM without weights, in the layout of LLaVA.

As `cirlab.encoders.scratch`: the files are those of real models (config.json, tokenizer.json,
chat_template.jinja, processor_config.json), so that `AutoProcessor` and
`AutoModelForImageTextToText` load what is trained from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

#: Tokens of the vocabulary. Prompts mark the picture's place by `mllm_processor.IMAGE_MARK`,
#: whatever a model's own image token is.
PAD, END, IMAGE_TOKEN = "<pad>", "<|end|>", "<image>"
ROLES = ("system", "user", "assistant")

#: Roles as special tokens, in the manner of Phi-3's template; a message's content is a string, or
#: parts of which those of type "image" become the image token.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def role_token(role: str) -> str:
    """Begins a message of this role."""
    return f"<|{role}|>"


def subword_tokenizer(texts: Iterable[str], size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level byte pair encoding: frequent words are one token, and none is unknown.

    Args:
        texts: what its merges are learned from.
        size: entries of the vocabulary.
        max_length: tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END, IMAGE_TOKEN, *map(role_token, ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=special[2:],
        model_max_length=max_length,
        padding_side="left",
    )


def write_mllm_folder(
    folder: Path,
    vision: dict[str, Any],
    text: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Write configuration, tokenizer and processor of a LLaVA, without weights.

    Args:
        folder: made if absent.
        vision: transformers configuration of the image tower, `model_type` included.
        text: that of the language model; vocabulary size and special tokens are filled in.
        tokenizer: as `subword_tokenizer` makes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, patch = vision["image_size"], vision["patch_size"]
    LlavaConfig(
        vision_config=_config(vision),
        text_config=_config(
            text
            | {
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
            }
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=(size // patch) ** 2,
        # Every layer of so small a tower is needed; LLaVA takes the last but one.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    ).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(
            size={"height": size, "width": size},
            do_center_crop=False,
            crop_size={"height": size, "width": size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def _config(values: dict[str, Any]) -> Any:
    rest = {key: value for key, value in values.items() if key != "model_type"}
    return AutoConfig.for_model(values["model_type"], **rest)
