"""InstructCIR: prompts, both losses against their definitions, stages, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_type_hints

import lightning as L
import PIL.Image
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import lightning_modules
from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.processor import Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.records import CaptionTriplet, DecodedImage, Pair, Query
from lightning_modules import InstructCIR
from lightning_modules.base import RetrievalModule
from lightning_modules.instructcir import Prompts
from tests.tiny_mllm import write_tiny_mllm

COLOURS = ["red", "green", "blue", "black"]


def image(colour: str) -> DecodedImage:
    return DecodedImage(id=colour, pixels=PIL.Image.new("RGB", (32, 32), colour))


PAIRS = [Pair(image(colour), (f"a {colour} circle",)) for colour in COLOURS]
TRIPLETS = [
    CaptionTriplet(image(a), f"a {a} circle", f"make it {b}", f"a {b} circle")
    for a, b in zip(COLOURS, ["white", "yellow", "grey", "pink"], strict=True)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_mllm(tmp_path_factory.mktemp("mllm")))


def make(folder: str, **options: Any) -> InstructCIR:
    torch.manual_seed(0)
    settings = MLLMSettings(folder, lora=Lora(rank=4, alpha=8, dropout=0.0), max_length=200)
    module = InstructCIR(options.pop("llm", settings), **options)
    module.configure_model()
    return module.eval()


def vectors(module: InstructCIR, prompts: list[Prompt]) -> torch.Tensor:
    model = module.llm
    assert model is not None
    return model(model.processor(prompts))


def test_stage_1_is_infonce_from_picture_to_caption(folder: str) -> None:
    module = make(folder)
    loss = module.losses(module.train_collator()(PAIRS))
    pictures = vectors(module, [Prompt(module.prompts.image, image=p.image.load()) for p in PAIRS])
    captions = vectors(module, [Prompt(module.prompts.text, p.captions[0]) for p in PAIRS])
    expected = cross_entropy(pictures @ captions.T / 0.05, torch.arange(4))
    torch.testing.assert_close(loss, {"caption": expected})


@pytest.mark.parametrize("hard_negatives", [True, False])
def test_stage_2_is_the_released_loss(folder: str, hard_negatives: bool) -> None:
    """B x 2B logits: targets' captions, and those of the reference images; labels 0 .. B - 1."""
    module = make(folder, hard_negatives=hard_negatives)
    loss = module.losses(module.train_collator()(TRIPLETS))
    z1 = vectors(
        module, [Prompt(module.prompts.composed, t.text, t.reference.load()) for t in TRIPLETS]
    )
    z2, z3 = (
        vectors(module, [Prompt(module.prompts.text, text) for text in texts])
        for texts in ([t.target_caption for t in TRIPLETS], [t.caption for t in TRIPLETS])
    )
    logits = torch.cat([z1 @ z2.T, z1 @ z3.T] if hard_negatives else [z1 @ z2.T], dim=1) / 0.05
    torch.testing.assert_close(loss, {"composed": cross_entropy(logits, torch.arange(4))})


def test_a_reference_caption_that_is_a_correct_target_is_no_negative(folder: str) -> None:
    module = make(folder)
    circular = [
        CaptionTriplet(image(a), f"a {a} circle", f"make it {b}", f"a {b} circle")
        for a, b in (("red", "green"), ("green", "red"))
    ]
    batch = module.train_collator()(circular)
    assert batch["ids"].tolist() == batch["reference_ids"].tolist()[::-1]
    loss = module.losses(batch)["composed"]
    # Each target stands in the pool twice, and both are positives: no query tells from itself.
    model = module.llm
    assert model is not None
    scores = model(batch["query"]) @ model(batch["target"]).T / 0.05
    pool = torch.cat([scores, scores.flip(1)], dim=1)
    likely = pool.log_softmax(dim=1)
    expected = -torch.stack([likely[0, [0, 3]].mean(), likely[1, [1, 2]].mean()]).mean()
    torch.testing.assert_close(loss, expected)


def test_queries_are_read_by_the_prompt_of_their_kind(folder: str) -> None:
    module = make(folder)
    collate = module.query_collator()
    composed = [Query("q", "make it green", ("green",), image=image("red"))]
    inputs = collate(composed)
    expected = vectors(
        module, [Prompt(module.prompts.composed, "make it green", image("red").load())]
    )
    torch.testing.assert_close(module.encode_queries(inputs), expected)
    parts = module.encode_baselines(inputs)
    gallery = module.encode_images(module.image_collator()([image("red")]))
    torch.testing.assert_close(parts["image_only"], gallery)
    words = vectors(module, [Prompt(module.prompts.text, "make it green")])
    torch.testing.assert_close(parts["text_only"], words)
    text = collate([Query("q", "a red circle", ("red",))])
    assert module.encode_baselines(text) == {}
    torch.testing.assert_close(
        module.encode_queries(text), vectors(module, [Prompt(module.prompts.text, "a red circle")])
    )
    picture = collate([Query("q", "", ("red",), image=image("red"))])
    torch.testing.assert_close(module.encode_queries(picture), gallery)


def test_the_second_stage_starts_from_the_adapters_of_the_first(
    folder: str, tmp_path: Path
) -> None:
    first = make(folder)
    with torch.no_grad():
        for name, weight in first.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"] and all("lora_" in n for n in checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "best.ckpt")
    second = make(folder, init_from=str(tmp_path / "*.ckpt"))
    inputs = first.image_collator()([image("red")])
    torch.testing.assert_close(second.encode_images(inputs), first.encode_images(inputs))
    assert not torch.allclose(make(folder).encode_images(inputs), first.encode_images(inputs))


def test_adapters_of_another_base_are_refused(folder: str, tmp_path: Path) -> None:
    first = make(folder)
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    other = str(write_tiny_mllm(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="was trained on llm"):
        make(other, init_from=str(tmp_path / "best.ckpt"))


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"image": "Describe this image in one word:"}, r"must hold <image> once"),
        ({"image": "<image>{text}"}, r"must hold \{text\} not at all"),
        ({"text": "in one word:"}, r"must hold \{text\} once"),
        ({"composed": "Modify this image with {text}"}, r"must hold <image> once"),
        ({"composed": "<image><image>{text}"}, r"must hold <image> once"),
    ],
)
def test_prompts_need_their_marks(prompts: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Prompts(**prompts)


def test_the_records_name_of_a_run_counts_the_hard_negatives(folder: str) -> None:
    class Data:
        train_record: type = CaptionTriplet

    class Trainer:
        datamodule = Data()

    module = make(folder)
    module._trainer = Trainer()  # type: ignore[assignment]
    assert module.negatives_per_query(8) == 15
    Data.train_record = Pair
    assert module.negatives_per_query(8) == 7


class OneEpoch(L.LightningDataModule):
    """Pairs to learn from, which need no composed prompt, and nothing to evaluate."""

    train_record = Pair

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, InstructCIR)
        return DataLoader(
            cast("Dataset[Pair]", PAIRS), batch_size=4, collate_fn=module.train_collator()
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(cast("Dataset[Pair]", PAIRS))


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
def test_a_prompt_that_only_evaluations_need_is_checked_before_anything(
    subcommand: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(folder)
    wordy = Prompts(composed=f"{Prompts.composed} {'one word ' * 100}")
    steps: list[Any] = []
    for name in ("training_step", "validation_step", "test_step"):
        monkeypatch.setattr(InstructCIR, name, lambda *a: steps.append(a))
    monkeypatch.setattr(OneEpoch, "test_dataloader", OneEpoch.val_dataloader, raising=False)
    module.prompts = wordy
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, **options, **quiet)
    with pytest.raises(UserError, match=r"Modify this image .* too many for llm.max_length 200"):
        getattr(trainer, subcommand)(module, OneEpoch())
    assert not steps


def test_every_method_over_a_multimodal_llm_names_its_prompts() -> None:
    methods = [getattr(lightning_modules, name) for name in lightning_modules.__all__]
    over_mllm = [
        method
        for method in methods
        if issubclass(method, RetrievalModule)
        and MLLMSettings in get_type_hints(method.__init__).values()
    ]
    assert InstructCIR in over_mllm
    for method in over_mllm:
        assert method.fixed_prompts is not RetrievalModule.fixed_prompts, method.__name__
