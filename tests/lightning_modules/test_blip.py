"""BLIP as a method: its losses, what it freezes and keeps, its second stage, what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from cirlab.encoders.blip.collate import Augmentation
from cirlab.errors import UserError
from cirlab.records import Caption, Item, Pair, Query
from datamodules import FolderData
from lightning_modules import Blip
from lightning_modules.blip import BlipFromScratch, Contrast
from lightning_modules.learner import Schedule
from tests.callbacks.lookup import quiet_trainer
from tests.datamodules.toys import write_jsonl
from tests.tiny_blip import TEXT, VISION, pair, pairs, write_tiny_blip
from tests.tiny_export import export, run_card

CONTRAST = Contrast(queue_size=8, momentum=0.5, alpha=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_blip(tmp_path_factory.mktemp("blip"), decoder=True))


def blip(folder: str, **options: Any) -> Blip:
    """As it is when training begins."""
    torch.manual_seed(0)
    module = Blip(folder, **({"contrast": CONTRAST, "max_length": 16} | options))
    module.configure_model()
    module.add_teacher()
    return module


def batch_of(module: Blip, records: list[Pair]) -> Any:
    return module.train_collator()(records)


def gradients(module: Blip) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


# ---- losses -------------------------------------------------------------------------------


def test_every_trained_weight_has_a_gradient_and_no_other(folder: str) -> None:
    """A weight without one would keep the other processes of DDP waiting."""
    for options in (
        {"lm_weight": 1.0},
        {},
        {"itm_weight": 0.0},
        {"freeze_image": True},
        {"freeze_image": True, "itm_weight": 0.0},
        {"itm_weight": 0.0, "lm_weight": 0.5},
    ):
        module = blip(folder, **options)
        terms = module.losses(batch_of(module, pairs(4)))
        expected = {"itc"}
        expected |= {"itm"} if module.itm_weight else set()
        expected |= {"lm"} if module.lm_weight else set()
        assert set(terms) == expected
        torch.stack(list(terms.values())).sum().backward()
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        assert set(gradients(module)) == trained, options
        vision = any("vision" in name for name in trained)
        assert vision != module.freeze_image


def test_weights_scale_their_losses(folder: str) -> None:
    records = pairs(2)
    one = blip(folder, lm_weight=1.0)
    other = blip(folder, lm_weight=0.5, itm_weight=2.0)
    for module in (one, other):
        module.eval()
    first, second = (module.losses(batch_of(module, records)) for module in (one, other))
    torch.testing.assert_close(second["itc"], first["itc"])
    torch.testing.assert_close(second["itm"], 2 * first["itm"])
    torch.testing.assert_close(second["lm"], first["lm"] / 2)


def test_matching_reads_each_pair_and_both_kinds_of_wrong_ones(folder: str) -> None:
    """With two images each has only one other to be drawn."""
    module = blip(folder)
    records = [pair(0, "red"), pair(1, "blue", "is it a blue square on the left ?")]
    batch = batch_of(module, records)
    found = module.losses(batch)["itm"]
    encoder = module.encoder
    assert encoder is not None
    hidden, tokens = encoder.hidden_images(batch["image"]["pixels"]), batch["text"]
    swapped = {key: value.flip(0) for key, value in tokens.items()}
    logits = torch.cat(
        [
            encoder.match(tokens, hidden),
            encoder.match(tokens, hidden.flip(0)),
            encoder.match(swapped, hidden),
        ]
    )
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    torch.testing.assert_close(found, cross_entropy(logits, labels))


def test_an_image_is_no_wrong_one_for_its_other_caption(folder: str) -> None:
    module = blip(folder)
    records = [pair(0, "red"), pair(0, "red", "a square")]
    batch = batch_of(module, records)
    encoder = module.encoder
    assert encoder is not None
    logits = encoder.match(batch["text"], encoder.hidden_images(batch["image"]["pixels"]))
    expected = cross_entropy(logits, torch.tensor([1, 1]))
    torch.testing.assert_close(module.losses(batch)["itm"], expected)


def test_the_queue_and_the_slow_encoders_follow(folder: str) -> None:
    module = blip(folder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert module.queue is not None and module.teacher is not None
    batch = batch_of(module, pairs(3))
    for size in (3, 6, 8):
        module.losses(batch)
        assert len(module.queue.ids) == size
    assert set(module.queue.ids.tolist()) == set(batch["ids"].tolist())


def test_soft_targets_come_gradually(folder: str) -> None:
    module = blip(folder, contrast=Contrast(queue_size=0, alpha=0.4, alpha_warmup=0.5))
    assert module._alpha() == 0.4
    seen: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            seen.append(pl_module._alpha())

    quiet_trainer(callbacks=[Watch()], max_epochs=2).fit(module, loader(module, steps=4))
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])


def loader(module: Blip, steps: int) -> DataLoader[Any]:
    records = pairs(3 * steps)
    starts = range(0, 3 * steps, 3)
    batches: Any = [batch_of(module, records[start : start + 3]) for start in starts]
    return DataLoader(batches, batch_size=None)


def test_a_step_moves_the_slow_encoders_by_their_share(folder: str) -> None:
    module = blip(folder, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    assert module.teacher is not None and module.encoder is not None
    before = {name: value.clone() for name, value in module.teacher.named_parameters()}
    quiet_trainer(max_epochs=1).fit(module, loader(module, steps=1))
    learned = dict(module.encoder.model.named_parameters())
    moved = 0
    for name, value in module.teacher.named_parameters():
        torch.testing.assert_close(value, (before[name] + learned[name]) / 2)
        moved += not torch.equal(value, before[name])
    assert moved > 10


def test_it_learns_to_search_to_match_and_to_describe(tmp_path: Path) -> None:
    """From nothing, pictures of eight colours and their captions."""
    L.seed_everything(0)
    module = Blip(
        from_scratch=BlipFromScratch(VISION, TEXT, embed_dim=16),
        export_to=str(tmp_path / "model"),
        max_length=16,
        contrast=Contrast(queue_size=16, momentum=0.9, alpha=0.2),
        lm_weight=1.0,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
        schedule=Schedule(warmup=0.1),
    )
    module.configure_model()
    module.add_teacher()
    records = pairs(8)
    batches: Any = [batch_of(module, records)] * 240
    quiet_trainer(max_epochs=1).fit(module, DataLoader(batches, batch_size=None))
    module.eval()
    queries = [Query(str(i), pair.captions[0], targets=()) for i, pair in enumerate(records)]
    images: list[Item] = [pair.image for pair in records]
    with torch.no_grad():
        texts = module.encode_queries(module.query_collator()(queries))
        cosines = texts @ module.encode_images(module.image_collator()(images)).T
        best = cosines.topk(2, dim=1).indices
        rows = torch.arange(8)
        places = torch.cat([torch.stack([rows, column], dim=1) for column in best.T])
        right, wrong = module.rerank(queries, images, places, torch.zeros(16)).split(8)
    assert best[:, 0].tolist() == rows.tolist()
    # Matching has learned from the most similar wrong ones, which a search brings up.
    assert (right > wrong).all() and right.mean() > 0 > wrong.mean()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    speaker = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "model")
    pixels = module.image_collator()([records[2].image])["pixels"]
    said = speaker.eval().generate(pixel_values=pixels, max_new_tokens=8)
    assert processor.tokenizer.decode(said[0], skip_special_tokens=True) == "a blue circle"


def test_gradient_checkpointing_changes_no_gradient(folder: str) -> None:
    found = []
    for checkpointing in (False, True):
        module = blip(folder, gradient_checkpointing=checkpointing, lm_weight=1.0)
        batch = batch_of(module, pairs(3))
        torch.manual_seed(1)
        torch.stack(list(module.losses(batch).values())).sum().backward()
        found.append(gradients(module))
        on = [m for m in module.modules() if getattr(m, "gradient_checkpointing", False)]
        assert bool(on) == checkpointing
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_dropout_and_augmentation_belong_to_training_alone(folder: str) -> None:
    module = blip(folder, dropout=0.5, augmentation=Augmentation())
    batch = batch_of(module, pairs(2))
    assert batch["image"]["pixels"].shape == (2, 3, 32, 32)
    read = module.image_collator()([p.image for p in pairs(2)])
    assert not torch.equal(batch["image"]["pixels"], read["pixels"])
    encoder = module.encoder
    assert encoder is not None and module.teacher is not None
    rates = {m.p for m in encoder.model.text_encoder.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.5}
    assert encoder.training and not module.teacher.training


# ---- cached features ----------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rows = []
    for number, record in enumerate(pairs(8)):
        record.image.load().save(root / f"images/{number}.png")
        rows.append({"image": f"images/{number}.png", "captions": list(record.captions)})
    write_jsonl(root / "train" / "pairs.jsonl", rows)
    return root


def test_cached_vectors_give_the_same_losses(
    folder: str, photographs: Path, tmp_path: Path
) -> None:
    losses, read = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            read[-1] |= set(args[3]["image"])
            losses[-1].append(args[2]["loss"].item())

    for cached in (False, True):
        losses.append([])
        read.append(set())
        module = Blip(
            folder,
            max_length=16,
            contrast=CONTRAST,
            itm_weight=0.0,
            freeze_image=True,
            cache_features=cached,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )
        trainer = quiet_trainer(
            default_root_dir=str(tmp_path), max_epochs=2, limit_val_batches=0, callbacks=[Watch()]
        )
        data = FolderData(str(photographs), "pairs", batch_size=4, eval_batch_size=4, num_workers=0)
        trainer.fit(module, datamodule=data)
    assert read == [{"pixels"}, {"features"}]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    (stored,) = (tmp_path / "runs" / "cache").rglob("*.npy")
    assert stored.stat().st_size < 8 * 16 * 4 + 200


def test_arguments_that_contradict_each_other_are_refused(folder: str) -> None:
    for options, says in (
        ({"cache_features": True}, "cache_features: true keeps one vector of each picture"),
        ({"cache_features": True, "freeze_image": True}, "set freeze_image: true, itm_weight: 0"),
        ({"itm_weight": -1.0}, "itm_weight is -1.0 and lm_weight 0.0; set each to 0 or more"),
        ({"model": None}, "takes either model or from_scratch"),
    ):
        with pytest.raises(UserError, match=says):
            Blip(**({"model": folder} | options))
    with pytest.raises(UserError, match=r"contrast\.alpha is 1\.5; choose a value from 0 to 1"):
        Contrast(alpha=1.5)
    with pytest.raises(UserError, match=r"augmentation\.crop is 0; choose a share"):
        Augmentation(crop=0)


# ---- the second stage ---------------------------------------------------------------------


def test_the_second_stage_adds_transformers_logit_to_the_cosine(folder: str) -> None:
    module = blip(folder).eval()
    records = pairs(3)
    queries = [Query(str(i), text, targets=()) for i, text in enumerate(["a red", "blue ?"])]
    places = torch.tensor([[0, 2], [1, 0], [0, 1], [1, 2]])
    first = torch.tensor([0.5, 0.25, 0.0, -0.5])
    images: list[Item] = [record.image for record in records]
    with torch.no_grad():
        found = module.rerank(queries, images, places, first)
    reference = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    encoder = module.encoder
    assert encoder is not None
    expected = []
    for (query, image), cosine in zip(places.tolist(), first.tolist(), strict=True):
        tokens = encoder.processor.tokenize([queries[query].text])
        tokens["input_ids"][:, 0] = encoder.encode_id
        pixels = encoder.processor.images([records[image].image.load()])
        with torch.no_grad():
            score = reference(pixel_values=pixels, **tokens).itm_score
        expected.append(score[0, 1].item() + cosine)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(found.tolist())) == 4
    # The same pairs where captions are looked for.
    captions: list[Item] = [Caption(query.id, query.text) for query in queries]
    asked = [Query(str(i), "", (), image=record.image) for i, record in enumerate(records)]
    with torch.no_grad():
        other = module.rerank(asked, captions, places.flip(1), first)
    torch.testing.assert_close(other, found)


def test_two_images_are_not_matched(folder: str) -> None:
    module = blip(folder).eval()
    images: list[Item] = [record.image for record in pairs(2)]
    asked = [Query("7", "", (), image=pairs(1)[0].image)]
    with pytest.raises(UserError, match=r"query '7' or another one .* rerank_depth: null"):
        module.rerank(asked, images, torch.tensor([[0, 1]]), torch.zeros(1))


# ---- checkpoints and export ---------------------------------------------------------------


@pytest.mark.parametrize("options", [{"lm_weight": 1.0}, {"freeze_image": True, "itm_weight": 0.0}])
def test_a_checkpoint_trains_on_and_is_evaluated(folder: str, options: dict[str, Any]) -> None:
    module = blip(folder, **options)
    module.on_fit_start()
    module.losses(batch_of(module, pairs(4)))
    with torch.no_grad():
        for name in module.learned_names():
            if module.state_dict()[name].is_floating_point():
                module.state_dict()[name].add_(0.01)
    state: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    kept = set(state["state_dict"])
    assert {"queue.pushed", "teacher.text_proj.weight", "encoder.temperature"} <= kept
    assert ("encoder.model.vision_proj.weight" in kept) != module.freeze_image
    resumed = blip(folder, **options)
    resumed.on_load_checkpoint({**state})
    resumed.load_state_dict(state["state_dict"], strict=False)
    for name, value in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # An evaluation has neither slow encoders nor a queue, of whatever size.
    evaluated = Blip(folder, max_length=16, contrast=Contrast(queue_size=3), **options)
    evaluated.configure_model()
    assert evaluated.teacher is None
    checkpoint = {**state}
    evaluated.on_load_checkpoint(checkpoint)
    evaluated.load_state_dict(checkpoint["state_dict"], strict=False)
    image = module.image_collator()([pairs(1)[0].image])
    found, expected = (m.eval().encode_images(image) for m in (evaluated, module))
    torch.testing.assert_close(found, expected)


def test_the_export_needs_transformers_alone(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = blip(folder)
    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            if name.startswith("encoder.model") and value.ndim > 1:
                value.normal_(std=0.1)
    state: dict[str, Any] = {"state_dict": module.state_dict(), "epoch": 1, "global_step": 7}
    module.on_save_checkpoint(state)
    state["config"] = {"model": {"class_path": "lightning_modules.Blip"}, "data": {}}
    torch.save(state, tmp_path / "best.ckpt")
    fresh = Blip(folder, max_length=16)
    card = run_card(export(fresh, tmp_path / "best.ckpt", tmp_path / "out", False), monkeypatch)
    picture, text = pairs(1)[0].image, "a red circle on the left"
    module.eval()
    with torch.no_grad():
        image = module.encode_images(module.image_collator()([picture]))
        query = Query("q", text, targets=())
        words = module.encode_queries(module.query_collator()([query]))
        encoder = module.encoder
        assert encoder is not None
        hidden = encoder.hidden_images(encoder.processor.images([picture.load()]))
        logits = encoder.match(encoder.processor.tokenize([text]), hidden)
    torch.testing.assert_close(card["embed_image"](picture.load()), image)
    torch.testing.assert_close(card["embed_text"](text), words)
    expected = logits.softmax(dim=-1)[0, 1].item()
    assert card["match"](picture.load(), text) == pytest.approx(expected, abs=1e-6)
