"""ChatIR: what learns and what stays, cached vectors, what is cut, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from callbacks.retrieval import RetrievalEvaluation
from cirlab.benchmarks import WorldComposed, WorldDialogue
from cirlab.errors import UserError
from cirlab.losses import ContrastiveLoss
from cirlab.recall_surrogate import RecallSurrogate
from cirlab.records import Pair, Query
from datamodules import ChatIRData, WorldDialogueData
from lightning_modules import CLIP, ChatIR
from tests.callbacks.lookup import quiet_trainer
from tests.chunked import records
from tests.datamodules.test_dialogues import chatir_data
from tests.tiny import write_tiny_clip
from tests.tiny_blip import pair, pairs, write_tiny_blip
from tests.tiny_export import export, learned, run_card

KINDS = ("clip", "blip")
#: Where the words of a text side begin, by kind.
TEXT_SIDE = {
    "clip": ("transformer", "token_embedding", "positional_emb", "ln_final", "text_projection"),
    "blip": ("text_encoder", "text_proj"),
}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clip": f"local-dir:{write_tiny_clip(root / 'clip')}",
        "blip": f"blip:{write_tiny_blip(root / 'blip')}",
    }


def chatir(name: str, **options: Any) -> ChatIR:
    module = ChatIR(name, **options)
    module.configure_model()
    return module


def data(**options: Any) -> WorldDialogueData:
    sizes = {"samples": 24, "batch_size": 8, "eval_batch_size": 8, "series_size": 2}
    return WorldDialogueData(**(sizes | options))


def fit(module: ChatIR, folder: Path, source: Any = None, **options: Any) -> None:
    trainer = quiet_trainer(default_root_dir=str(folder), **({"limit_val_batches": 0} | options))
    trainer.fit(module, datamodule=source or data())


class Watched(ChatIR):
    """Keeps what it reads of the images, and its losses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.read: list[set[str]] = []
        self.lost: list[float] = []

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        terms = super().losses(batch)
        self.read.append(set(batch["image"]))
        self.lost.append(terms["dialogue"].item())
        return terms


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_side_learns_and_the_image_side_stays(
    kind: str, names: dict[str, str], tmp_path: Path
) -> None:
    module = chatir(names[kind], optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, tmp_path)
    moved = {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}
    begin = tuple(f"encoder.model.{part}" for part in TEXT_SIDE[kind])
    assert moved and all(name.startswith(begin) for name in moved)
    assert moved <= module.learned_names()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert all(name.startswith(begin) for name in checkpoint["state_dict"])
    assert not any("crossattention" in name for name in checkpoint["state_dict"])
    assert not any(part.training for part in module.encoder.image_tower.modules())
    assert any(part.training for part in module.encoder.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_cached_vectors_give_the_same_losses(
    kind: str, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, over two epochs, and without a picture."""
    runs = []
    for cached in (False, True):
        torch.manual_seed(0)
        module = Watched(names[kind], cache_features=cached)
        fit(module, tmp_path, max_epochs=2)
        assert module.read == [{"vectors"} if cached else {"pixels"}] * 6
        runs.append(module.lost)
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    assert len(set(runs[0])) == 6
    # All is kept by now: a third run draws nothing.
    monkeypatch.setattr("cirlab.world.image.render", None)
    fit(Watched(names[kind], cache_features=True), tmp_path)


def test_a_cache_needs_pictures_that_stay(names: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fresh: true draws new scenes in every epoch"):
        fit(ChatIR(names["clip"], cache_features=True), tmp_path, data(fresh=True))


def test_without_a_trainer_pictures_are_read_as_they_are(names: dict[str, str]) -> None:
    module = chatir(names["clip"], cache_features=True)
    assert set(module.image_collator()([pair(0, "red").image])) == {"pixels"}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_it_is_shown(kind: str, names: dict[str, str]) -> None:
    module = chatir(names[kind], loss=RecallSurrogate(temperature=0.2))
    batch = module.train_collator()([pair(i, c) for i, c in enumerate(("red", "blue", "green"))])

    def found() -> list[int]:
        with torch.no_grad():
            scores = module.encode_queries(batch) @ module.encode_images(batch["image"]).T
        return scores.argmax(dim=1).tolist()

    assert found() != [0, 1, 2]
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.003)
    for _ in range(60):
        optimizer.zero_grad()
        module.losses(batch)["dialogue"].backward()
        optimizer.step()
    assert found() == [0, 1, 2]


def test_the_loss_is_chosen(names: dict[str, str]) -> None:
    module = chatir(names["clip"], loss=ContrastiveLoss(temperature=0.1, symmetric=False))
    batch = module.train_collator()(pairs(5))
    with torch.no_grad():
        found = module.losses(batch)["dialogue"]
        texts = module.encode_queries(batch)
        images = module.encode_images(batch["image"])
    expected = cross_entropy(texts @ images.T / 0.1, torch.arange(5))
    torch.testing.assert_close(found, expected)
    assert isinstance(ChatIR("any").loss, RecallSurrogate)


def test_what_else_a_dialogue_is_true_of_is_no_negative(names: dict[str, str]) -> None:
    module = chatir(names["clip"])
    one, other = pairs(2)
    apart = module.losses(module.train_collator()([one, other]))["dialogue"]
    one = Pair(one.image, one.captions, also_correct=(other.image.id,))
    other = Pair(other.image, other.captions, also_correct=(one.image.id,))
    together = module.losses(module.train_collator()([one, other]))["dialogue"]
    # Of a target that comes first, 1 - sigmoid(k - 1), averaged over the five cut-offs.
    assert together.item() == pytest.approx(0.16346, abs=1e-4) and apart > together + 1e-3


def test_chunks_change_nothing(names: dict[str, str]) -> None:
    batch = pairs(7)
    found = []
    for chunk_size in (None, 2):
        module = chatir(names["blip"], chunk_size=chunk_size)
        module.losses(module.train_collator()(batch))["dialogue"].backward()
        grads = [p.grad for p in module.parameters() if p.requires_grad]
        found.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


# ---- evaluation -----------------------------------------------------------------------------


def benchmark(**options: Any) -> WorldDialogue:
    return WorldDialogue(**({"families": 1, "dialogues": 3, "rounds": 2} | options))


@pytest.mark.parametrize("kind", KINDS)
def test_dialogues_are_evaluated_round_by_round(
    kind: str, names: dict[str, str], tmp_path: Path
) -> None:
    evaluation = RetrievalEvaluation()
    trainer = quiet_trainer(default_root_dir=str(tmp_path), callbacks=[evaluation])
    trainer.validate(
        ChatIR(names[kind], cache_features=True),
        datamodule=data(benchmarks=[benchmark()]),
        verbose=False,
    )
    rounds = evaluation.results["world_dialogue"]["breakdown"]["round"]
    hits = [values["cumulative_hits_at_10"] for values in rounds.values()]
    assert len(hits) == 3 and hits == sorted(hits) and hits[-1] <= 1


def test_other_queries_are_refused(names: dict[str, str], tmp_path: Path) -> None:
    source = data(benchmarks=[WorldComposed(families=1)])
    with pytest.raises(UserError, match="ChatIR answers only dialogue and text queries"):
        fit(ChatIR(names["clip"]), tmp_path, source)


@pytest.mark.parametrize("method", [ChatIR, CLIP])
def test_queries_that_lose_words_are_counted_and_told_once(
    method: Any, names: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = quiet_trainer(default_root_dir=str(tmp_path), callbacks=[RetrievalEvaluation()])
    module = method(names["clip"])
    for _ in range(2):
        trainer.validate(module, datamodule=data(benchmarks=[benchmark()]), verbose=False)
    told = [record.message for record in caplog.records if "longer than" in record.message]
    assert told == [
        "world_dialogue: 9 of 9 texts are longer than the text encoder reads, which never sees "
        "their last words (max_length of methods that have it reads more)"
    ]


def test_dialogues_that_lose_words_in_training_are_told_once(
    names: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = ChatIR(names["clip"])
    fit(module, tmp_path)
    told = [r.message for r in caplog.records if "longer than the 12 tokens" in r.message]
    assert len(told) == 1 and names["clip"] in told[0]
    assert module.trainer.callback_metrics["train/cut_texts"] > 0.5
    caplog.clear()
    fit(ChatIR(names["clip"], max_length=400), tmp_path)
    assert not [r for r in caplog.records if "longer than" in r.message]


# ---- what is refused ------------------------------------------------------------------------


def test_a_checkpoint_of_another_encoder_is_refused(names: dict[str, str], tmp_path: Path) -> None:
    module = chatir(names["clip"])
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    chatir(names["clip"]).on_load_checkpoint(checkpoint)
    other = f"local-dir:{write_tiny_clip(tmp_path / 'other', seed=1)}"
    with pytest.raises(UserError, match=r"was trained on clip '.*', but the configuration names"):
        chatir(other).on_load_checkpoint(checkpoint)
    # The same name, other weights by it.
    write_tiny_clip(Path(names["clip"].removeprefix("local-dir:")), seed=1)
    try:
        with pytest.raises(UserError, match="was trained on other weights by the name of"):
            chatir(names["clip"]).on_load_checkpoint(checkpoint)
    finally:
        write_tiny_clip(Path(names["clip"].removeprefix("local-dir:")))


def test_a_checkpoint_of_another_length_is_told_by_its_key(names: dict[str, str]) -> None:
    module = chatir(names["clip"], max_length=24)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    arguments = {"clip": names["clip"], "max_length": 24, "image_size": None}
    model = {"class_path": "lightning_modules.ChatIR", "init_args": arguments}
    checkpoint["config"] = {"model": model}
    with pytest.raises(UserError, match=r"model\.init_args\.max_length is null in the config"):
        chatir(names["clip"]).on_load_checkpoint(checkpoint)


def test_an_unknown_image_is_told_before_training(names: dict[str, str], tmp_path: Path) -> None:
    source: ChatIRData = chatir_data(tmp_path, "partial_dialogues")
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are missing, the first is .*1\.jpg"):
        fit(ChatIR(names["clip"], cache_features=True), tmp_path, source)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dropout": 1.0}, r"dropout is 1\.0; choose a share from 0 to below 1, or null"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"dropout": 0.1}, r"dropout is 0\.1, but the text side of .* has no such layers"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    options: dict[str, Any], says: str, names: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=says):
        chatir(names["clip"], **options)


def test_dropout_is_of_the_text_side(names: dict[str, str]) -> None:
    module = chatir(names["blip"], dropout=0.3)
    layers = {n: m.p for n, m in module.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {share for name, share in layers.items() if "text_encoder" in name} == {0.3}
    assert 0.3 not in {share for name, share in layers.items() if "vision" in name}


# ---- export ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_reads_dialogues_by_itself(
    kind: str, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = ChatIR(names[kind], max_length=16)
    path = learned(trained, tmp_path / "best.ckpt")
    folder = export(ChatIR(names[kind], max_length=16), path, tmp_path / "out", merged=False)
    card = run_card(folder, monkeypatch)
    text = "a red circle , is it on the left ? no , it is on the right , " * 2
    asked = Query("0", text, targets=())
    (shown, *_) = (record.image for record in records("clip"))
    with torch.no_grad():
        words = trained.encode_queries(trained.query_collator()([asked]))
        image = trained.encode_images(trained.image_collator()([shown]))
    torch.testing.assert_close(card["embed_text"](text), words, atol=1e-5, rtol=0)
    torch.testing.assert_close(card["embed_image"](shown.load()), image, atol=1e-5, rtol=0)
