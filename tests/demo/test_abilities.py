"""The small API on real, tiny models: the zoo's, and a BLIP with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, BlipForConditionalGeneration

import cirlab.demo.abilities as abilities
from cirlab.demo import Abilities
from cirlab.errors import UserError
from cirlab.world.image import SceneImage
from cirlab.world.language import full_caption
from cirlab.world.oracle import answer_to
from cirlab.world.scene import draw_scene, generator
from tests.tiny_blip import write_tiny_blip

SCENES = [draw_scene(generator("val", 0, number)) for number in range(4)]
IMAGES = [SceneImage(str(number), scene) for number, scene in enumerate(SCENES)]
CLIP, MLLM = "zoo:tiny_clip", "zoo:tiny_mllm"


@pytest.fixture(scope="module")
def zoo() -> Abilities:
    return Abilities(captioner=MLLM, answerer=MLLM, matcher=CLIP)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_blip(tmp_path_factory.mktemp("blip"), decoder=True)


def test_the_zoo_describes_and_answers(zoo: Abilities) -> None:
    """Whole descriptions, whose last words an answer's usual length would cut off."""
    said = zoo.caption(IMAGES[0])
    assert said.split(", ")[-1] == full_caption(SCENES[0]).split(", ")[-1]
    asked = "what is the view?"
    answers = [zoo.answer(image, asked) for image in IMAGES]
    assert answers == [answer_to(scene, asked) for scene in SCENES]


def test_features_of_images_and_texts_share_a_space(zoo: Abilities) -> None:
    texts = [full_caption(scene) for scene in SCENES]
    images, words = zoo.image_features(IMAGES), zoo.text_features(texts)
    assert images.shape == words.shape == (4, 128) and images.dtype == torch.float32
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    assert (words @ images.T).argmax(dim=1).tolist() == [0, 1, 2, 3]
    for number, image in enumerate(IMAGES):
        matches = zoo.match(image, texts)
        assert matches[0].text == texts[number] and matches[0].together is None
        assert matches == sorted(matches, key=lambda each: each.similarity, reverse=True)
        assert matches[0].similarity == pytest.approx((words[number] @ images[number]).item())
    assert zoo.match(IMAGES[0], []) == []


def test_blip_reads_image_and_text_together(blip: Path) -> None:
    able = Abilities(captioner=str(blip), answerer=MLLM, matcher=f"blip:{blip}")
    texts = ["a red circle", "a green square on the left of a black circle", "yes"]
    matches = able.match(IMAGES[0], texts)
    sure = [each.together for each in matches]
    assert all(value is not None and 0 < value < 1 for value in sure)
    assert sure == sorted(sure, reverse=True, key=lambda value: value or 0.0)
    # Beside longer texts and alone.
    (alone,) = able.match(IMAGES[0], texts[:1])
    beside = next(each for each in matches if each.text == texts[0])
    assert alone.together == pytest.approx(beside.together, abs=1e-5)
    assert alone.similarity == pytest.approx(beside.similarity, abs=1e-5)


def test_blip_describes_as_transformers_does(blip: Path) -> None:
    said = Abilities(captioner=str(blip)).caption(IMAGES[1])
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = AutoProcessor.from_pretrained(blip)
    pixels = processor(images=IMAGES[1].load(), return_tensors="pt")["pixel_values"]
    # As many as it has places for, behind the token that begins.
    count = model.config.text_config.max_position_embeddings - 1
    assert count < 96
    tokens = model.generate(pixel_values=pixels, max_new_tokens=count, num_beams=1, do_sample=False)
    assert said == " ".join(processor.decode(tokens[0], skip_special_tokens=True).split()) != ""


def test_one_model_may_describe_and_answer_and_is_loaded_once(zoo: Abilities) -> None:
    assert zoo._captioner.answerer is zoo._answerer  # type: ignore[attr-defined]
    assert Abilities(captioner=MLLM, answerer="other").answerer == "other"


def test_the_zoos_blip_is_taken_once_it_is_there(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abilities, "ZOO", tmp_path)
    assert (Abilities().captioner, Abilities().matcher) == (MLLM, CLIP)
    (tmp_path / "tiny_blip").symlink_to(blip)
    names = (Abilities().captioner, Abilities().matcher)
    assert names == ("zoo:tiny_blip", "blip:zoo:tiny_blip")


def test_weights_that_cannot_do_it_are_refused(tmp_path: Path) -> None:
    mute = write_tiny_blip(tmp_path / "mute")
    with pytest.raises(UserError, match=r"\(--captioner\) is a BLIP without a text decoder; name"):
        Abilities(captioner=str(mute)).caption(IMAGES[0])
    with pytest.raises(UserError, match="the zoo holds no model 'zoo:none'"):
        Abilities(answerer="zoo:none").answer(IMAGES[0], "what is it?")
    with pytest.raises(UserError, match="the zoo holds no model 'zoo:none'"):
        Abilities(matcher="zoo:none").image_features(IMAGES)
