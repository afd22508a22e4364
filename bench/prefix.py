"""A further prompt for pictures whose prefixes are kept, against picture and prompt in one forward.

The zoo's model under a question that evaluations ask, and a LLaVA with random weights under
pictures and prompts of more tokens. Random weights compute as others do. Counted in CPU seconds of
one thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from bench.measure import Row, in_turns
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.prefix import Prefix
from cirlab.encoders.mllm.prefix_cache import PrefixCache
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, suffix_ids
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.scratch import subword_tokenizer, write_mllm_folder
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.records import DecodedImage
from cirlab.world.dialogue import QUESTIONS
from cirlab.world.render import render
from cirlab.world.scene import draw_scene, generator

REPEATS = 5
#: Pictures encoded at once: the usual number, and fewer where they have many tokens.
PICTURES, LARGE_PICTURES = 16, 4
TEMPLATE = "<image>\nRepresent the given image with the following question: {text}\n"
#: Tokens of a picture and of a prompt.
SIZES = ((64, 16), (144, 16), (256, 16), (576, 16), (576, 8), (576, 32), (576, 64))
PATCH = 14
TOWER = {
    "model_type": "clip_vision_model",
    "patch_size": PATCH,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
#: With several times the tower's work a token, as in LLaVA-1.5.
DECODER = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}


def run() -> Iterator[Row]:
    """Milliseconds a picture."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from rows()
    finally:
        torch.set_num_threads(threads)


def rows() -> Iterator[Row]:
    """First the zoo's model, then larger ones."""
    llm = EmbeddingMLLM(MLLMSettings("zoo:tiny_mllm", frozen=True)).eval()
    pictures = [render(draw_scene(generator("val", 0, i))) for i in range(PICTURES)]
    question = suffix_ids(llm.processor, TEMPLATE, QUESTIONS["weather"][0])
    yield further_prompt(llm, pictures, question, "zoo:tiny_mllm")
    yield from_disk(llm, pictures)
    for image_tokens, prompt_tokens in SIZES:
        with TemporaryDirectory() as folder:
            llm = random_llava(Path(folder), image_tokens)
        rng = np.random.default_rng(0)
        side = round(image_tokens**0.5) * PATCH
        pictures = [noise(rng, side) for _ in range(LARGE_PICTURES)]
        words = torch.from_numpy(rng.integers(10, 200, prompt_tokens))
        yield further_prompt(llm, pictures, words, "LLaVA, 256 wide")


@torch.inference_mode()
def further_prompt(
    llm: EmbeddingMLLM, pictures: Sequence[np.ndarray], suffix: torch.Tensor, name: str
) -> Row:
    """One more prompt behind kept prefixes."""
    images, group = PromptedImages(llm), inputs(llm, pictures)
    prefix = images.prefix(group)
    images.proceed(prefix, suffix), images.whole(group, suffix)
    ours, theirs = in_turns(
        lambda: each(lambda: images.proceed(prefix, suffix), len(pictures)),
        lambda: each(lambda: images.whole(group, suffix), len(pictures)),
        REPEATS,
    )
    return Row(
        name=f"further prompt of {len(suffix)} tokens, {prefix.length} before it, {name}",
        ours=ours,
        reference=theirs,
        unit="ms/picture",
        reference_name="picture and prompt in one forward",
    )


@torch.inference_mode()
def from_disk(llm: EmbeddingMLLM, pictures: Sequence[np.ndarray]) -> Row:
    """Prefixes that a run before has left in files."""
    images, group = PromptedImages(llm), inputs(llm, pictures)
    names = [str(number) for number in range(len(pictures))]
    with TemporaryDirectory() as folder:
        cache = PrefixCache(Path(folder), 1.0, "bench")
        cache.put(names, images.prefix(group))
        ours, theirs = in_turns(
            lambda: each(lambda: read(cache, names), len(pictures)),
            lambda: each(lambda: images.prefix(group), len(pictures)),
            REPEATS,
        )
    return Row(
        name="prefixes read from files, zoo:tiny_mllm",
        ours=ours,
        reference=theirs,
        unit="ms/picture",
        reference_name="computed from pixels",
    )


def each(work: Callable[[], object], pictures: int) -> float:
    """Milliseconds of one thread for each of so many pictures."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start) / pictures


def read(cache: PrefixCache, names: Sequence[str]) -> Prefix:
    """All of them as one group."""
    return Prefix.join([found for found in cache.get(names) if found is not None])


def inputs(llm: EmbeddingMLLM, pictures: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """What the model reads of the pictures, as one group."""
    records = [DecodedImage(str(i), PIL.Image.fromarray(p)) for i, p in enumerate(pictures)]
    group: dict[str, torch.Tensor]
    (group,) = ImagePrefixCollator(llm.processor, TEMPLATE)(records)["groups"]
    return group


def random_llava(folder: Path, image_tokens: int) -> EmbeddingMLLM:
    """A LLaVA whose pictures have so many tokens, a square number."""
    vision = TOWER | {"image_size": round(image_tokens**0.5) * PATCH}
    tokenizer = subword_tokenizer(["what is the weather?"], size=300, max_length=1024)
    write_mllm_folder(folder, vision, DECODER, tokenizer)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return EmbeddingMLLM(MLLMSettings(str(folder), frozen=True)).eval()


def noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """A picture."""
    return rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
