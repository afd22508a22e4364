"""What the papers' settings of Promptable have a model read: the papers' words, to the letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor

from cirlab.command.configuration import EXPERIMENTS
from cirlab.command.references import read_config
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, check_same_prefix, suffix_ids
from cirlab.encoders.mllm.processor import Prompt
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.prompts import PromptByFacet
from cirlab.records import DecodedImage, Query
from tests.tiny_mllm import write_tiny_mllm

#: By experiment: a layout, and how VLM2Vec marks pictures in it (`vlm_image_tokens`).
MODELS = {"vlm2vec": ("llava_next", "<image>"), "qwen2vl": ("qwen2_vl", "<|image_pad|>")}
#: COCO-Facet's own strings (VLM2Vec/eval_d.py and eval_f.py), with that mark for Phi-3.5-V's.
GENERAL = "{mark} Represent the given image."
TIME = (
    "{mark}\nRepresent the given image with the following question: "
    "What time of day is depicted in this image?\n"
)
QUERY = "Find me an everyday image that is taken during the evening."
BEGIN = "<|system|>"


def settings(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("DATA_ROOT", "/data")
    path = EXPERIMENTS / "paper" / f"promptable_{name}.yaml"
    model: dict[str, Any] = read_config(path).resolved["model"]["init_args"]
    return model


def tiny(folder: Path, layout: str, chat_template: str) -> EmbeddingMLLM:
    """A model of this layout; LLaVA-NeXT's tokenizer begins texts, as Mistral's does."""
    write_tiny_mllm(folder, layout)
    if layout == "llava_next":
        processor = AutoProcessor.from_pretrained(folder)
        tokenizer = processor.tokenizer
        tokenizer.add_special_tokens({"bos_token": BEGIN})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.bos_token_id)]
        )
        processor.save_pretrained(folder)
    return EmbeddingMLLM(
        MLLMSettings(str(folder), frozen=True, max_length=256, chat_template=chat_template)
    ).eval()


@pytest.mark.parametrize("name", MODELS)
def test_prompts_are_read_as_theirs_and_by_prefix(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, mark = MODELS[name]
    given = settings(name, monkeypatch)
    templates = given["templates"]
    model = tiny(tmp_path, layout, given["llm"]["chat_template"])
    processor = model.processor
    assert given["prompts"]["class_path"] == "cirlab.prompts.PromptByFacet"
    query = Query("q", text=QUERY, targets=("a",), tags={"facet": "Visual7W_time"})
    (question,) = PromptByFacet(**given["prompts"]["init_args"])([query])
    assert question is not None
    picture = PIL.Image.new("RGB", (60, 40), "red")

    read = {
        GENERAL: Prompt(templates["image"], image=picture),
        TIME: Prompt(templates["prompted"], question, picture),
        QUERY + "\n": Prompt(templates["text"], QUERY),
    }
    for text, prompt in read.items():
        theirs = text.format(mark=mark)
        assert processor.render(prompt) == theirs
        (group,) = processor([prompt])["groups"]
        ids = group["input_ids"][0].tolist()
        assert ids.count(processor.tokenizer.convert_tokens_to_ids(BEGIN)) == (name == "vlm2vec")
        # Nothing follows the words, whose last token makes the vector.
        words = processor.tokenizer(theirs.partition(mark)[2] or theirs, add_special_tokens=False)
        assert ids[-len(words["input_ids"]) :] == words["input_ids"]

    check_same_prefix(processor, {key: templates[key] for key in ("image", "prompted")})
    images = PromptedImages(model)
    (pictured,) = ImagePrefixCollator(processor, templates["image"])([DecodedImage("a", picture)])[
        "groups"
    ]
    kept = images.prefix(pictured)
    for prompt in (read[GENERAL], read[TIME]):
        suffix = suffix_ids(processor, prompt.template, prompt.text)
        with torch.no_grad():
            expected = model(processor([prompt]))
        assert (images.proceed(kept, suffix) - expected).abs().max() < 1e-4
