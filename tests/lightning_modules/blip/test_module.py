"""BLIP as a method: what it learns, freezes and keeps, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from callbacks import RetrievalEvaluation
from cirlab.benchmarks import FolderTextToImage, WorldDialogue
from cirlab.demo.matching import BlipMatching
from cirlab.encoders.blip.augmentation import Augmentation
from cirlab.encoders.blip.matcher import BlipMatcher
from cirlab.encoders.blip.weights import load_blip
from cirlab.errors import UserError
from cirlab.records import Item, Query
from datamodules import FolderData, WorldDialogueData
from lightning_modules import Blip
from lightning_modules.blip import BlipFromScratch, Contrast
from lightning_modules.schedule import Schedule
from tests.callbacks.lookup import quiet_trainer
from tests.datamodules.toys import write_jsonl
from tests.lightning_modules.blip.learning import CONTRAST, batch_of, blip, gradients
from tests.tiny_blip import TEXT, VISION, pairs, write_tiny_blip
from tests.tiny_export import export, run_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_blip(tmp_path_factory.mktemp("blip"), decoder=True))


def test_every_trained_weight_has_a_gradient_and_no_other(folder: str) -> None:
    """A weight without one would keep the other processes of DDP waiting."""
    for options in (
        {"lm_weight": 1.0},
        {},
        {"itm_weight": 0.0},
        {"freeze_image": True},
        {"freeze_image": True, "itm_weight": 0.0},
        {"freeze_image": "tower"},
        {"freeze_image": "tower", "itm_weight": 0.0},
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
        vision = {name.split(".")[2] for name in trained if ".vision_" in name}
        learned = {False: {"vision_model", "vision_proj"}, True: set(), "tower": {"vision_proj"}}
        assert vision == learned[module.freeze_image]


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


def test_arguments_that_contradict_each_other_are_refused(folder: str) -> None:
    for options, says in (
        ({"cache_features": True}, "keeps what a frozen .* set freeze_image to true or tower"),
        (
            {"cache_features": True, "freeze_image": True, "augmentation": Augmentation()},
            "augmentation: null",
        ),
        ({"itm_weight": -1.0}, "itm_weight is -1.0 and lm_weight 0.0; set each to 0 or more"),
        ({"model": None}, "takes either model or from_scratch"),
    ):
        with pytest.raises(UserError, match=says):
            Blip(**({"model": folder} | options))
    with pytest.raises(UserError, match=r"augmentation\.crop is 0; choose a share"):
        Augmentation(crop=0)


def test_queries_that_lose_words_are_counted_and_told(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = quiet_trainer(default_root_dir=str(tmp_path), callbacks=[RetrievalEvaluation()])
    told_of = WorldDialogue(families=1, dialogues=3, rounds=2)
    source = WorldDialogueData(
        samples=24, batch_size=8, eval_batch_size=8, series_size=2, benchmarks=[told_of]
    )
    trainer.validate(Blip(folder, max_length=4), datamodule=source, verbose=False)
    told = [record.message for record in caplog.records if "longer than" in record.message]
    assert len(told) == 1 and told[0].startswith("world_dialogue: 9 of 9 texts are longer than")


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


@pytest.mark.parametrize("freeze_image", [True, "tower"])
def test_cached_hidden_images_give_the_same_losses(
    folder: str, photographs: Path, tmp_path: Path, freeze_image: Any
) -> None:
    losses, read = [], []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            # Hard negatives are drawn, and what fills the cache draws, too.
            torch.manual_seed(trainer.global_step)

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
            lm_weight=1.0,
            freeze_image=freeze_image,
            cache_features=cached,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.001),
        )
        trainer = quiet_trainer(
            default_root_dir=str(tmp_path), max_epochs=2, limit_val_batches=0, callbacks=[Watch()]
        )
        data = FolderData(str(photographs), "pairs", batch_size=4, eval_batch_size=4, num_workers=0)
        trainer.fit(module, datamodule=data)
    assert read == [{"pixels"}, {"hidden"}]
    # They are kept in 16 bits.
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=2e-3)
    (stored,) = (tmp_path / "runs" / "cache").rglob("*.npy")
    assert stored.stat().st_size < 8 * 5 * 64 * 2 + 200


# ---- a network of timm's as image tower ---------------------------------------------------


def with_timm(tmp_path: Path, **options: Any) -> Blip:
    scratch = BlipFromScratch(
        {"architecture": "test_efficientnet", "image_size": 64},
        TEXT,
        embed_dim=16,
        vision_weights=str(tmp_path / "network.safetensors"),
    )
    settings: dict[str, Any] = {"max_length": 16, "contrast": CONTRAST, "freeze_image": "tower"}
    return Blip(from_scratch=scratch, export_to=str(tmp_path / "model"), **(settings | options))


@pytest.fixture
def trained(photographs: Path, tmp_path: Path) -> Blip:
    """One that was fitted, with a checkpoint in last.ckpt."""
    torch.manual_seed(7)
    network = timm.create_model("test_efficientnet").train()
    # Statistics of its own, which no parameter tells.
    network(torch.randn(8, 3, 64, 64))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "network.safetensors")
    module = with_timm(tmp_path, cache_features=True)
    trainer = quiet_trainer(default_root_dir=str(tmp_path), limit_val_batches=0)
    data = FolderData(str(photographs), "pairs", batch_size=4, eval_batch_size=4, num_workers=0)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module


def test_an_evaluation_reads_and_matches_what_was_kept(
    trained: Blip, photographs: Path, tmp_path: Path
) -> None:
    """The tower, which lies in the checkpoint, sees no photograph twice."""
    (tmp_path / "network.safetensors").unlink()
    (photographs / "val").mkdir()
    pairs_file = (photographs / "train" / "pairs.jsonl").read_text()
    (photographs / "val" / "pairs.jsonl").write_text(pairs_file)
    names = [f"images/{number}.png" for number in range(8)]
    (photographs / "val" / "gallery.txt").write_text("\n".join(names) + "\n")
    asked = FolderTextToImage(str(photographs), "val", "found", rerank_depth=3)
    seen: list[int] = []

    class Watch(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            pl_module.encoder.image_tower.register_forward_hook(lambda *_: seen.append(1))

    evaluated = with_timm(tmp_path, cache_features=True)
    data = FolderData(
        str(photographs), "pairs", 4, eval_batch_size=4, num_workers=0, benchmarks=[asked]
    )
    trainer = quiet_trainer(
        default_root_dir=str(tmp_path), callbacks=[RetrievalEvaluation(), Watch()]
    )
    trainer.validate(evaluated, data, str(tmp_path / "last.ckpt"), verbose=False)
    assert seen == [] and evaluated.cache is not None
    assert evaluated.encoder is not None and trained.encoder is not None
    for name, value in trained.encoder.image_tower.state_dict().items():
        assert torch.equal(evaluated.encoder.image_tower.state_dict()[name], value), name
    queries, images = asked.queries, list(asked.gallery)
    places = torch.tensor([[0, 1], [1, 1], [2, 5]])
    with torch.no_grad():
        kept = evaluated.eval().rerank(queries, images, places, torch.zeros(3))
        evaluated.cache = None
        evaluated.cache_features = False
        read = evaluated.rerank(queries, images, places, torch.zeros(3))
    assert seen
    torch.testing.assert_close(kept, read, rtol=2e-3, atol=2e-3)
    assert len(set(read.tolist())) == 3


def test_its_export_needs_transformers_and_timm_alone(
    trained: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    data = {"class_path": "datamodules.FolderData", "init_args": {"records": "pairs"}}
    checkpoint["config"] = {"model": {"class_path": "lightning_modules.Blip"}, "data": data}
    torch.save(checkpoint, tmp_path / "best.ckpt")
    folder = export(with_timm(tmp_path), tmp_path / "best.ckpt", tmp_path / "out", False)
    card = run_card(folder, monkeypatch)
    assert "A folder of transformers', whole" not in (folder / "README.md").read_text()
    picture, text = pairs(1)[0].image, "a red circle"
    encoder = trained.eval().encoder
    assert encoder is not None
    pixels, tokens = encoder.processor.images([picture.load()]), encoder.processor.tokenize([text])
    again = BlipMatching(BlipMatcher(str(folder), load_blip(str(folder)), 16))
    with torch.no_grad():
        torch.testing.assert_close(
            card["embed_image"](picture.load()), encoder.encode_images(pixels)
        )
        torch.testing.assert_close(card["embed_text"](text), encoder.encode_texts(tokens))
        logits = encoder.match(tokens, encoder.hidden_images(pixels))
    expected = logits.softmax(dim=-1)[0, 1].item()
    assert card["match"](picture.load(), text) == pytest.approx(expected, abs=1e-6)
    assert again.together(picture, [text]) == pytest.approx([expected], abs=1e-6)


def test_it_is_used_frozen(trained: Blip, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"freeze_image is false, .* set freeze_image: tower"):
        with_timm(tmp_path, freeze_image=False).configure_model()


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
    assert {"queue.pushed", "teacher.text_proj.weight", "encoder.log_temperature"} <= kept
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
