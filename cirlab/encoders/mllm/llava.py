r"""`python -m cirlab.encoders.mllm.llava`: put an image tower and a language model together.

    python -m cirlab.encoders.mllm.llava --vision openai/clip-vit-large-patch14 \
        --language microsoft/Phi-3.5-mini-instruct --output llava_phi35_clip224

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
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from cirlab.encoders.mllm.scratch import IMAGE_TOKEN
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_folder

log = logging.getLogger(__name__)

#: A CLIP, and the image tower of one by itself, in transformers' layout.
CLIPS = ("clip", "clip_vision_model")
DTYPES = ("bfloat16", "float16", "float32")

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
        vision: hub name or folder of a CLIP in transformers' layout; its image tower is taken.
        language: hub name or folder of a causal language model with a chat template.
        folder: is made; must not exist.
        dtype: of the weights.
        seed: of the connector's.

    Returns:
        What was written.

    Raises:
        UserError: the folder exists or cannot be made, the parts are of other kinds, weights cannot
            be read, or there is no chat template.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder, or remove it")
    try:
        with whole_folder(folder) as unfinished:
            model, processor = _put_together(vision, language, dtype, seed)
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
    except OSError as error:
        raise UserError(
            f"the folder {folder} (--output) cannot be written ({error.strerror or error}); name "
            "another one, or see to it that files can be written there"
        ) from error
    return model


def _put_together(
    vision: str, language: str, dtype: str, seed: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    # What may be wrong is read before the weights, which may take minutes.
    images = _image_processor(vision)
    tokenizer = _tokenizer(language)
    with weights_or_sentence(vision, key="--vision"):
        tower = CLIPVisionModel.from_pretrained(resolve_folder(vision), dtype=dtype)
    with weights_or_sentence(language, key="--language"):
        speaker = AutoModelForCausalLM.from_pretrained(resolve_folder(language), dtype=dtype)
    _add_image_token(tokenizer, speaker)
    model = _joined(tower, speaker, tokenizer, seed)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        chat_template=PARTS_TO_STRINGS + tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
    return model, processor


def _image_processor(vision: str) -> BaseImageProcessor:
    """What prepares pictures for a CLIP.

    Raises:
        UserError: the model is something else, or lies there in open_clip's layout.
    """
    wanted = (
        "name a CLIP in transformers' layout (config.json, preprocessor_config.json, "
        "model.safetensors), such as openai/clip-vit-large-patch14"
    )
    folder = Path(resolve_folder(vision))
    of_open_clip = (folder / "open_clip_config.json").is_file()
    if vision.startswith(("local-dir:", "hf-hub:")) or (
        of_open_clip and not (folder / "config.json").is_file()
    ):
        raise UserError(f"{vision} (--vision) is a model of open_clip; {wanted}")
    with weights_or_sentence(vision, key="--vision"):
        kind = AutoConfig.from_pretrained(resolve_folder(vision)).model_type
        if kind not in CLIPS:
            raise UserError(f"{vision} (--vision) is a {kind}; {wanted}")
        images: BaseImageProcessor = AutoImageProcessor.from_pretrained(resolve_folder(vision))
    return images


def _tokenizer(language: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model that chats.

    Raises:
        UserError: the model is something else, or has no chat template.
    """
    with weights_or_sentence(language, key="--language"):
        config = AutoConfig.from_pretrained(resolve_folder(language))
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(
                f"{language} (--language) is a {config.model_type}; name a causal language model, "
                "one of words alone"
            )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_folder(language))
    if tokenizer.chat_template is None:
        raise UserError(
            f"{language} (--language) has no chat template; take the instruction-tuned model of it"
        )
    return tokenizer


def _add_image_token(tokenizer: PreTrainedTokenizerBase, speaker: PreTrainedModel) -> None:
    tokenizer.add_tokens(
        [AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True
    )
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
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
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
    parser = argparse.ArgumentParser(
        prog="python -m cirlab.encoders.mllm.llava",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--vision", required=True, help="CLIP in transformers' layout: hub name or folder")
    add("--language", required=True, help="language model that chats: hub name or folder")
    add("--output", required=True, type=Path, help="folder to be made")
    add("--dtype", default="bfloat16", choices=DTYPES, help="of the weights (bfloat16)")
    add("--seed", default=0, type=int, help="of the connector's weights (0)")
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
