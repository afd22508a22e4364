"""The zoo is what its manifests say, and does what they say."""

from __future__ import annotations

import json

import pytest
import torch

from cirlab.benchmarks import WorldTextToImage
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.encoders.llm import EmbeddingLLM
from cirlab.encoders.names import ZOO
from cirlab.world.language import full_caption
from cirlab.world.scene import draw_scene, generator
from cirlab.world.vocabulary import vocabulary
from cirlab.zoo import rewriting
from cirlab.zoo.manifest import MADE_BY, MANIFEST, checksums
from cirlab.zoo.speech import measure, plain


@pytest.mark.parametrize("name", sorted(MADE_BY.values()))
def test_files_are_those_of_the_manifest(name: str) -> None:
    manifest = json.loads((ZOO / name / MANIFEST).read_text())
    assert manifest["sha256"] == checksums(ZOO / name)
    assert sum(path.stat().st_size for path in (ZOO / name).rglob("*")) < 8 << 20


def test_the_clip_reached_what_is_asked_of_it() -> None:
    reached = json.loads((ZOO / "tiny_clip" / MANIFEST).read_text())["reached"]
    result = reached["world_text_to_image"]
    assert result["protocol"]["pool_size"] == 2000
    assert result["metrics"]["recall_at_10"] >= 0.90


def test_the_clip_finds_held_out_scenes_by_their_captions() -> None:
    """A part of the benchmark, seconds instead of a minute."""
    benchmark = WorldTextToImage(scenes=300)
    benchmark.setup()
    encoder = load_dual_encoder("zoo:tiny_clip").eval()
    with torch.inference_mode():
        pixels = encoder.processor.images([image.load() for image in benchmark.gallery])
        images = encoder.encode_images(pixels)
        texts = encoder.encode_texts(
            encoder.processor.tokenize([query.text for query in benchmark.queries])
        )
    own = [[image.id for image in benchmark.gallery].index(q.targets[0]) for q in benchmark.queries]
    scores = texts @ images.T
    ranks = (scores >= scores[torch.arange(len(own)), own][:, None]).sum(dim=1)
    assert (ranks <= 10).float().mean() >= 0.97


def test_the_llm_knows_the_worlds_words_and_tells_scenes_apart() -> None:
    llm = EmbeddingLLM("zoo:tiny_llm").eval()
    tokenizer = llm.processor.tokenizer
    unknown = [
        w for w in vocabulary() if tokenizer.convert_tokens_to_ids(w) == tokenizer.unk_token_id
    ]
    assert unknown == []
    rng = generator("val", 123)
    scenes = [draw_scene(rng) for _ in range(64)]
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(
            llm(**llm.processor([full_caption(scene) for scene in scenes])), dim=-1
        )
    scores = (vectors @ vectors.T).fill_diagonal_(-1)
    assert scores.max() < 0.99


def test_the_multimodal_llm_sees_the_setting_and_answers() -> None:
    """What its manifest tells of 500 scenes, and a part of it again."""
    says = json.loads((ZOO / "tiny_mllm" / MANIFEST).read_text())["says"]
    assert says["answers"] > 0.6 and says["caption_parts"] > 0.6
    again = measure("zoo:tiny_mllm", scenes=48)
    assert again["answers"] > 0.4 and again["caption_parts"] > 0.5
    settings = ("place", "time", "weather", "view")
    kinds = [
        again["answers_by_kind"][kind] for kind in settings if kind in again["answers_by_kind"]
    ]
    assert sum(kind["asked"] for kind in kinds) >= 5
    assert all(kind["right"] > 0.9 for kind in kinds)


def test_phrases_that_mean_the_same_count_as_the_same() -> None:
    assert plain("a red ring in the dark, looking down") == "a red ring at night, seen from above"
    assert plain("a ring above a star") == "a ring above a star"


def test_the_rewriter_names_what_dialogues_told() -> None:
    """What its manifest tells of 200 dialogues, and a part of it again."""
    says = json.loads((ZOO / "tiny_rewriter" / MANIFEST).read_text())["says"]
    assert says["attributes"] > 0.85 and says["right"] > 0.35 and says["invented"] < 0.15
    again = rewriting.measure("zoo:tiny_rewriter", dialogues=12, rounds=4)
    assert again["attributes"] > 0.85 and again["invented"] < 0.2
    assert again["by_round"]["1"]["right"] > 0.4
