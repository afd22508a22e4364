"""Which pictures are encoded for which prompts, and what kept prefixes spare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.image_views import ImageViews, NamedImages
from cirlab.encoders.mllm.prefix_cache import PrefixCache
from cirlab.encoders.mllm.prefix_tokens import ImagePrefixCollator, suffix_ids
from cirlab.encoders.mllm.prompted_images import PromptedImages
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.records import Image
from cirlab.world.image import SceneImage
from cirlab.world.scene import draw_scene, generator
from tests.tiny_mllm import write_tiny_mllm

TEMPLATES = ["<image> Represent the given image.", "<image>\nLook for: {text}"]


class Counted:
    """A model with a record of how many pictures pass its image tower, and tokens its decoder."""

    def __init__(self, folder: Path) -> None:
        self.llm = EmbeddingMLLM(
            MLLMSettings(str(folder), frozen=True, max_length=256, group_size=3)
        ).eval()
        self.pictures = self.rows = 0
        self.llm.backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: object, args: object, inputs: dict[str, torch.Tensor]) -> None:
        self.rows += len(inputs["input_ids"])
        self.pictures += len(inputs.get("pixel_values", ()))

    def suffixes(self) -> list[torch.Tensor]:
        return [suffix_ids(self.llm.processor, template, "stars") for template in TEMPLATES]

    def reader(self) -> NamedImages:
        return NamedImages(ImagePrefixCollator(self.llm.processor, TEMPLATES[0]))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    return Counted(write_tiny_mllm(tmp_path_factory.mktemp("views") / "llava"))


def pictures(*seeds: int) -> Sequence[Image]:
    return [SceneImage(str(seed), draw_scene(generator("val", seed))) for seed in seeds]


NEEDED = torch.tensor([[True, True, True, True, True], [False, True, False, False, False]])


@torch.no_grad()
def test_only_needed_rows_run_behind_a_prefix(counted: Counted) -> None:
    inputs = counted.reader()(pictures(1, 2, 3, 4, 5))
    whole = ImageViews(PromptedImages(counted.llm), by_prefix=False)
    expected = whole(inputs, counted.suffixes(), NEEDED)
    images = PromptedImages(counted.llm)
    ImageViews(images, by_prefix=True)(inputs, counted.suffixes(), NEEDED)
    counted.rows = counted.pictures = 0
    vectors = ImageViews(images, by_prefix=True)(inputs, counted.suffixes(), NEEDED)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert vectors[1].abs().sum(dim=1).count_nonzero() == 1
    assert counted.pictures == 5
    # Five prefixes, and six vectors behind them.
    assert counted.rows == 11


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_kept_prefixes_spare_the_pictures(counted: Counted, tmp_path: Path, on_disk: bool) -> None:
    views = ImageViews(PromptedImages(counted.llm), by_prefix=True)
    everything = torch.ones(2, 5, dtype=torch.bool)
    plain = views(counted.reader()(pictures(1, 2, 3, 4, 5)), counted.suffixes(), everything)
    views.kept = PrefixCache(tmp_path if on_disk else None, 0.5, "model")
    computed = views(counted.reader()(pictures(1, 2, 3, 4, 5)), counted.suffixes(), everything)
    counted.pictures = 0
    # In another order, and so in other groups.
    order = [4, 2, 0, 3, 1]
    shuffled = counted.reader()(pictures(*(number + 1 for number in order)))
    again = views(shuffled, counted.suffixes(), everything)
    assert counted.pictures == 0
    torch.testing.assert_close(again, plain[:, order], atol=1e-5, rtol=0)
    assert torch.equal(computed, plain)


@torch.no_grad()
def test_a_budget_too_small_for_any_prefix_changes_no_vector(counted: Counted) -> None:
    views = ImageViews(PromptedImages(counted.llm), by_prefix=True)
    inputs = counted.reader()(pictures(1, 2))
    everything = torch.ones(2, 2, dtype=torch.bool)
    plain = views(inputs, counted.suffixes(), everything)
    views.kept = PrefixCache(None, 1e-9, "model")
    assert torch.equal(views(inputs, counted.suffixes(), everything), plain)
    assert torch.equal(views(inputs, counted.suffixes(), everything), plain)


@torch.no_grad()
def test_a_group_that_no_view_needs_is_not_encoded(counted: Counted) -> None:
    views = ImageViews(PromptedImages(counted.llm), by_prefix=True)
    inputs = counted.reader()(pictures(1, 2, 3, 4, 5))
    views(inputs, counted.suffixes(), torch.ones(2, 5, dtype=torch.bool))
    counted.pictures = 0
    needed = torch.zeros(2, 5, dtype=torch.bool)
    assert (views(inputs, counted.suffixes(), needed) == 0).all()
    assert counted.pictures == 0


@torch.no_grad()
def test_mixed_precision_is_not_taken_for_attention_to_the_prompt(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states have 32 bits, but come from products of 16."""
    monkeypatch.setattr("cirlab.encoders.mllm.prompted_images.CLOSE", -1.0)
    inputs = counted.reader()(pictures(1, 2))
    everything = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(UserError, match="attention is not causal"):
        ImageViews(PromptedImages(counted.llm), by_prefix=True)(
            inputs, counted.suffixes(), everything
        )
    with torch.autocast("cpu", torch.bfloat16):
        views = ImageViews(PromptedImages(counted.llm), by_prefix=True)
        assert views(inputs, counted.suffixes(), everything).isfinite().all()
