"""`python -m cirlab.encoders.llava`: put an image tower and a language model together.

InstructCIR's model is a LLaVA of CLIP ViT-L/14 at 224 pixels and Phi-3.5-mini, of which no folder
in transformers' layout was released before its training. This writes one, from any CLIP and any
language model that transformers has: both with their own weights, and between them LLaVA's
connector (two layers with GELU; Liu et al., arXiv 2310.03744) with random ones, to be trained first
(`llm.tune_connector`).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.encoders.scratch_mllm import IMAGE
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_folder

log = logging.getLogger(__name__)

#: Before a template that takes messages as strings: makes strings of messages in parts.
PARTS_TO_STRINGS = (
    "{%- set said = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}"
    "{%- else -%}{%- set said.text = '' -%}"
    "{%- for part in message['content'] -%}"
    "{%- set said.text = said.text + ('<image>' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set said.messages = said.messages"
    " + [{'role': message['role'], 'content': said.text}] -%}"
    "{%- endfor -%}"
    "{%- set messages = said.messages -%}"
)


def assemble(
    vision: str, language: str, folder: Path, dtype: str = "bfloat16", seed: int = 0
) -> LlavaForConditionalGeneration:
    """Write a LLaVA of two pretrained models.

    Args:
        vision: hub name or folder of a CLIP; its image tower is taken.
        language: hub name or folder of a causal language model with a chat template.
        folder: is made; must not exist.
        dtype: of the weights.
        seed: of the connector's.

    Returns:
        What was written.

    Raises:
        UserError: the folder exists, weights cannot be read, or there is no chat template.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder, or remove it")
    with weights_or_sentence(vision, key="vision"):
        tower = CLIPVisionModel.from_pretrained(resolve_folder(vision), dtype=dtype)
        images = AutoImageProcessor.from_pretrained(resolve_folder(vision))
    with weights_or_sentence(language, key="language"):
        speaker = AutoModelForCausalLM.from_pretrained(resolve_folder(language), dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(resolve_folder(language))
    if tokenizer.chat_template is None:
        raise UserError(
            f"{language} (language) has no chat template; take the instruction-tuned model of it"
        )
    _add_image_token(tokenizer, speaker)
    model = _joined(tower, speaker, tokenizer, seed)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        chat_template=PARTS_TO_STRINGS + tokenizer.chat_template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    return model


def _add_image_token(tokenizer: PreTrainedTokenizerBase, speaker: PreTrainedModel) -> None:
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    tokenizer.padding_side = "left"
    # Many matrices have rows to spare, so that sizes suit tensor cores.
    if len(tokenizer) > speaker.config.vocab_size:
        speaker.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)


def _joined(
    tower: CLIPVisionModel, speaker: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> LlavaForConditionalGeneration:
    vision: Any = tower.config
    config = LlavaConfig(
        vision_config=vision,
        text_config=speaker.config,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        # LLaVA's own: the last layer but one, without the class token.
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=bool(speaker.config.tie_word_embeddings),
    )
    # Only the connector's weights are drawn; the others would take minutes and are replaced.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = speaker.base_model
    model.lm_head = speaker.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = type(model.model.multi_modal_projector)(config)
    model.model.multi_modal_projector = connector.to(speaker.dtype)
    return model


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; 2 for what the user can mend."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m cirlab.encoders.llava", description=__doc__)
    parser.add_argument("--vision", required=True, help="CLIP: hub name or folder")
    parser.add_argument("--language", required=True, help="language model: hub name or folder")
    parser.add_argument("--output", required=True, type=Path, help="folder to be made")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (bfloat16)")
    parser.add_argument("--seed", default=0, type=int, help="of the connector's weights (0)")
    given = parser.parse_args(args)
    try:
        assemble(given.vision, given.language, given.output, given.dtype, given.seed)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    log.info("wrote %s; its connector is untrained: set llm.tune_connector", given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
