"""CoLLM: what each query sees, what is learned, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from cirlab.composition import slerp
from cirlab.encoders.adapters import Lora, TowerLora
from cirlab.encoders.llm import IMAGE_PLACEHOLDER, QueryTemplate
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss
from cirlab.records import DecodedImage, Pair, Query, Triplet
from lightning_modules import CoLLM
from lightning_modules.collm import LLMSettings, Synthesis
from tests.tiny import write_tiny_clip, write_tiny_llm

COLOURS = ["red", "green", "blue", "black"]


def image(colour: str) -> DecodedImage:
    return DecodedImage(id=colour, pixels=PIL.Image.new("RGB", (32, 32), colour))


PAIRS = [Pair(image(colour), (f"a {colour} circle",)) for colour in COLOURS]
TRIPLETS = [
    Triplet(reference=image(a), texts=(f"make it {b}", "now"), target=image(b))
    for a, b in zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "clip": f"local-dir:{write_tiny_clip(root / 'clip')}",
        "llm": str(write_tiny_llm(root / "llm")),
    }


def make(folders: dict[str, str], *, lora: Lora | None = None, **options: Any) -> CoLLM:
    torch.manual_seed(0)
    options.setdefault("synthesis", Synthesis(rotation=0.0))
    module = CoLLM(clip=folders["clip"], llm=LLMSettings(folders["llm"], lora=lora), **options)
    module.configure_model()
    return module.eval()


def test_template_leaves_a_missing_modality_out_with_its_label() -> None:
    template = QueryTemplate("Find it.")
    both = template(image=True, text="make it blue")
    assert both == f"Instruct: Find it.\nQuery: Image: {IMAGE_PLACEHOLDER} Text: make it blue"
    assert (
        template(image=True, text=None) == f"Instruct: Find it.\nQuery: Image: {IMAGE_PLACEHOLDER}"
    )
    assert template(image=False, text="x") == "Instruct: Find it.\nQuery: Text: x"


def test_the_gallery_does_not_pass_the_llm(folders: dict[str, str]) -> None:
    module = make(folders)
    batch = module.image_collator()([pair.image for pair in PAIRS])
    before = module.encode_images(batch)
    with torch.no_grad():
        for parameter in [*module.llm.parameters(), *module.projection.parameters()]:
            parameter.normal_()
    torch.testing.assert_close(module.encode_images(batch), before)
    torch.testing.assert_close(before.norm(dim=-1), torch.ones(len(PAIRS)))


def test_a_query_by_image_alone_is_that_of_training(folders: dict[str, str]) -> None:
    """c_v of the paper, which lets CoLLM answer image queries, too."""
    module = make(folders)
    collate = module.query_collator()
    asked = [Query(id=c, text="", targets=("red",), image=image(c)) for c in COLOURS]
    inputs = collate(asked)
    assert "text" not in inputs and "image" in module.query_kinds
    tokens = module.llm.processor([module.template(image=True, text=None)] * len(asked))
    reference = module.encode_images(module.image_collator()([image(c) for c in COLOURS]))
    expected = module._compose(tokens, reference)
    torch.testing.assert_close(module.encode_queries(inputs), expected)
    assert not module.encode_baselines(inputs)["text_only"].any()


def test_queries_depend_on_image_and_text(folders: dict[str, str]) -> None:
    module = make(folders)
    queries = [
        Query(id=str(i), text=text, targets=("red",), image=image(colour))
        for i, (colour, text) in enumerate(
            [("red", "make it blue"), ("blue", "make it blue"), ("red", "make it red now")]
        )
    ]
    vectors = module.encode_queries(module.query_collator()(queries))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    for i in range(3):
        for j in range(i):
            assert (vectors[i] - vectors[j]).abs().max() > 1e-4


def test_three_queries_a_third_each_against_the_plain_target(folders: dict[str, str]) -> None:
    """Section 3.3, equation 5, written out with the module's own parts."""
    how = Synthesis(rotation=0.0, template_probability=0.0, slerp_weight=0.3)
    loss = ContrastiveLoss(temperature=0.07, alpha=1.0, beta=0.5)
    module = make(folders, synthesis=how, loss=loss)
    batch = dict(module.train_collator()(PAIRS))
    got = module.losses(batch)

    targets = module.clip.embed_images(batch["image"])
    similarity = (targets @ targets.T).fill_diagonal_(-2)
    reference = slerp(targets, targets[similarity.argmax(dim=1)], 0.3)
    texts = [pair.captions[0] for pair in PAIRS]
    expected = {}
    for name, prompt, seen in (
        ("composed", [module.template(image=True, text=t) for t in texts], reference),
        ("image", [module.template(image=True, text=None)] * 4, reference),
        ("text", [module.template(image=False, text=t) for t in texts], None),
    ):
        query = module._compose(module.llm.processor(prompt), seen)
        expected[name] = loss(query, targets, batch["ids"]) / 3
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


def test_ablations_drop_what_they_name(folders: dict[str, str]) -> None:
    module = make(folders, image_query=False)
    assert set(module.losses(module.train_collator()(PAIRS))) == {"composed", "text"}
    module = make(folders, text_query=False)
    assert set(module.losses(module.train_collator()(PAIRS))) == {"composed", "image"}
    plain = make(folders, synthesis=Synthesis(image=False, text=False, rotation=0.0))
    batch = plain.train_collator()(PAIRS)
    targets = plain.clip.embed_images(batch["image"])
    reference, texts = plain._synthesise(batch, targets)
    torch.testing.assert_close(reference, targets)
    assert texts == batch["captions"]


def test_no_gradient_reaches_a_frozen_tower_and_all_else_gets_one(folders: dict[str, str]) -> None:
    module = make(folders)
    sum(module.losses(module.train_collator()(PAIRS)).values()).backward()
    assert all(p.grad is None for p in module.clip.parameters())
    learned = [p for p in module.parameters() if p.requires_grad]
    assert learned and all(p.grad is not None for p in learned if p is not None)


def test_tower_lora_learns_from_query_and_target_side(folders: dict[str, str]) -> None:
    lora = TowerLora(rank=2, alpha=2, dropout=0.0)
    module = make(folders, lora=Lora(rank=2, alpha=2, dropout=0.0), tower_lora=lora)
    sum(module.losses(module.train_collator()(PAIRS)).values()).backward()
    tower = {n: p for n, p in module.clip.named_parameters() if p.requires_grad}
    assert tower and all("lora_" in name for name in tower)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.values())


def test_triplets_join_their_texts_and_use_references_as_negatives(
    folders: dict[str, str],
) -> None:
    module = make(folders, texts="all")
    batch = module.train_collator()(TRIPLETS)
    decoded = module.llm.processor.tokenizer.decode(batch["query"]["input_ids"][0])
    assert "make it green , now" in decoded
    with_references = module.losses(batch)["composed"]
    module.reference_negatives = False
    assert with_references > module.losses(batch)["composed"]


def test_baselines_ignore_the_towers_adapters(folders: dict[str, str]) -> None:
    module = make(folders, tower_lora=TowerLora(rank=2, alpha=2, dropout=0.0))
    query = Query(id="q", text="make it blue", targets=("red",), image=image("red"))
    inputs = module.query_collator()([query])
    before = module.encode_baselines(inputs)
    with torch.no_grad():
        for name, parameter in module.clip.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    after = module.encode_baselines(inputs)
    torch.testing.assert_close(after, before)
    gallery = module.image_collator()([image("red")])
    torch.testing.assert_close(module.encode_baseline_gallery(gallery), before["image_only"])
    assert not torch.allclose(module.encode_images(gallery), before["image_only"], atol=1e-4)


def saved(module: CoLLM) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_checkpoints_hold_what_is_learned_and_name_the_rest(folders: dict[str, str]) -> None:
    module = make(folders, lora=Lora(rank=2, alpha=2, dropout=0.0))
    checkpoint = saved(module)
    names = set(checkpoint["state_dict"])
    assert names == {n for n, p in module.named_parameters() if p.requires_grad}
    assert checkpoint["frozen_base"] == {"clip": folders["clip"], "llm": folders["llm"]}
    other = make(folders, lora=Lora(rank=2, alpha=2, dropout=0.0))
    with torch.no_grad():
        other.projection.weight.zero_()
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=False)
    torch.testing.assert_close(other.projection.weight, module.projection.weight)


def test_a_checkpoint_of_another_base_or_architecture_is_refused(folders: dict[str, str]) -> None:
    module = make(folders, lora=Lora(rank=2, alpha=2, dropout=0.0))
    checkpoint = saved(module)
    moved = checkpoint | {"frozen_base": {"clip": "ViT-L-14 (openai)"}}
    with pytest.raises(UserError, match=r"trained on clip 'ViT-L-14 \(openai\)', but"):
        module.on_load_checkpoint(moved)
    fewer = {n: v for n, v in checkpoint["state_dict"].items() if "projection" not in n}
    with pytest.raises(UserError, match="2 weights do not fit CoLLM"):
        module.on_load_checkpoint(checkpoint | {"state_dict": fewer})
    with pytest.raises(UserError, match="another architecture"):
        make(folders, lora=Lora(rank=4, alpha=2)).on_load_checkpoint(checkpoint)
    with torch.no_grad():
        next(p for p in module.llm.parameters() if not p.requires_grad).add_(1.0)
    with pytest.raises(UserError, match=r"other weights by the name of .*fingerprint"):
        module.on_load_checkpoint(checkpoint)


def test_fine_tuning_starts_from_a_pretrained_checkpoint(
    folders: dict[str, str], tmp_path: Path
) -> None:
    first = make(folders)
    with torch.no_grad():
        first.projection.weight.normal_()
    torch.save(saved(first), tmp_path / "best.ckpt")
    second = make(folders, init_from=str(tmp_path / "best.ckpt"))
    torch.testing.assert_close(second.projection.weight, first.projection.weight)
    with pytest.raises(UserError, match=r"init_from .*absent\.ckpt is missing"):
        make(folders, init_from=str(tmp_path / "absent.ckpt"))


def test_second_adapters_stand_beside_the_first_which_are_kept(
    folders: dict[str, str], tmp_path: Path
) -> None:
    first = make(folders, lora=Lora(rank=2, alpha=2, dropout=0.0), tower_lora=TowerLora(rank=2))
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    torch.save(saved(first), tmp_path / "best.ckpt")
    llm = LLMSettings(
        folders["llm"],
        lora=Lora(rank=2, alpha=2, dropout=0.0),
        second_lora=Lora(rank=3, alpha=3, dropout=0.0),
    )
    second = CoLLM(
        clip=folders["clip"],
        llm=llm,
        tower_lora=TowerLora(rank=2),
        tower_frozen=True,
        init_from=str(tmp_path / "*.ckpt"),
    )
    second.configure_model()
    second.eval()
    query = Query(id="q", text="make it blue", targets=("red",), image=image("red"))
    inputs = first.query_collator()([query])
    torch.testing.assert_close(second.encode_queries(inputs), first.encode_queries(inputs))
    trainable = {n for n, p in second.named_parameters() if p.requires_grad}
    assert any(".second." in name for name in trainable)
    assert not any("lora_" in name and ".second." not in name for name in trainable)
    kept = set(saved(second)["state_dict"])
    assert set(saved(first)["state_dict"]) | trainable == kept
