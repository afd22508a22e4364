"""An export holds what was learned: other libraries load it and compute the same vectors."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import open_clip
import PIL.Image
import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
import yaml
from peft import PeftModel
from transformers import AutoModel

from cirlab.cli import main
from cirlab.command.checkpoint_config import CONFIG
from cirlab.command.export import Export
from cirlab.encoders.adapters import FourBit, Lora, TowerLora
from cirlab.encoders.blip.weights import load_blip
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Query
from lightning_modules import CLIP, ClipFromScratch, CoLLM, EmbeddingLanguageModel
from lightning_modules.base import RetrievalModule
from lightning_modules.collm import LLMSettings
from tests.tiny import write_tiny_blip, write_tiny_clip, write_tiny_llm
from tests.tiny_blip import own_checkpoint, tiny_blip, write_tokenizer
from tests.tiny_export import export, learned, run_card
from tests.tiny_run import tiny_experiment

PICTURE = PIL.Image.new("RGB", (40, 32), "red")
TEXT = "make it blue now"
LORA = Lora(rank=2, alpha=3, dropout=0.1)
#: Every way in which a CoLLM is trained.
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA},
    "lora of both": {"lora": LORA, "tower_lora": TowerLora(rank=2, alpha=2)},
    "second lora": {"lora": LORA, "second_lora": Lora(rank=3, alpha=3, targets=["q_proj"])},
    "all weights": {},
    "llm frozen": {"frozen": True},
    "mean": {"lora": LORA, "pooling": "mean", "max_length": 16},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"clip": write_tiny_clip(root / "clip"), "llm": write_tiny_llm(root / "llm")}


def collm(folders: dict[str, Path], way: dict[str, Any]) -> CoLLM:
    options = dict(way)
    tower = options.pop("tower_lora", None)
    llm = LLMSettings(str(folders["llm"]), **options)
    return CoLLM(clip=f"local-dir:{folders['clip']}", llm=llm, tower_lora=tower)


def asked(module: CoLLM, *, image: bool, text: bool) -> torch.Tensor:
    picture = DecodedImage("red", PICTURE) if image else None
    query = Query("q", TEXT if text else "", targets=("red",), image=picture)
    with torch.no_grad():
        return module.encode_queries(module.query_collator()([query]))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", WAYS)
def test_collm_without_this_repository(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    merged: bool,
) -> None:
    trained = collm(folders, WAYS[name])
    path = learned(trained, tmp_path / "best.ckpt")
    if merged and "lora" not in WAYS[name]:
        with pytest.raises(UserError, match="no adapters to merge; leave merged out"):
            export(collm(folders, WAYS[name]), path, tmp_path / "out", merged)
        assert not (tmp_path / "out").exists()
        return
    folder = export(collm(folders, WAYS[name]), path, tmp_path / "out", merged)
    card = run_card(folder, monkeypatch)
    for image, text in ((True, True), (True, False), (False, True)):
        vector = card["embed_query"](PICTURE if image else None, TEXT if text else "")
        assert (vector - asked(trained, image=image, text=text)).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"^embed_query takes an image, a text, or both$"):
        card["embed_query"]()
    inputs = trained.image_collator()([DecodedImage("red", PICTURE)])
    assert (card["embed_image"](PICTURE) - trained.encode_images(inputs)).abs().max() < 1e-5


@pytest.mark.parametrize("merged", [False, True])
def test_collm_over_blip(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    blip = f"blip:{write_tiny_blip(tmp_path / 'blip')}"

    def module() -> CoLLM:
        tower = TowerLora(rank=2, targets=["fc1", "qkv"])
        return CoLLM(blip, LLMSettings(str(folders["llm"]), lora=LORA), tower_lora=tower)

    trained = module()
    path = learned(trained, tmp_path / "best.ckpt")
    card = run_card(export(module(), path, tmp_path / "out", merged), monkeypatch)
    vector = card["embed_query"](PICTURE, TEXT)
    assert (vector - asked(trained, image=True, text=True)).abs().max() < 1e-5


def test_collm_over_a_file_of_blips_own_code(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card can name no base that another library loads, so that the export holds it."""
    file, words = tmp_path / "blip.pth", write_tokenizer(tmp_path / "words")
    torch.save({"model": own_checkpoint(tiny_blip())}, file)
    monkeypatch.setitem(load_blip.__kwdefaults__, "tokenizer", words)

    def module(tower: TowerLora | None = None) -> CoLLM:
        llm = LLMSettings(str(folders["llm"]), lora=LORA)
        return CoLLM(f"blip:{file}", llm, tower_lora=tower)

    trained = module()
    path = learned(trained, tmp_path / "best.ckpt")
    card = run_card(export(module(), path, tmp_path / "out", False), monkeypatch)
    vector = card["embed_query"](PICTURE, TEXT)
    assert (vector - asked(trained, image=True, text=True)).abs().max() < 1e-5
    adapted = learned(module(TowerLora(rank=2, targets=["qkv"])), tmp_path / "adapted.ckpt")
    with pytest.raises(UserError, match=r"blip\.pth is a file of BLIP's own code, .* MERGED=1"):
        export(module(TowerLora(rank=2, targets=["qkv"])), adapted, tmp_path / "two", False)


def test_what_lies_where(folders: dict[str, Path], tmp_path: Path) -> None:
    way = WAYS["second lora"] | {"tower_lora": TowerLora(rank=2)}
    path = learned(collm(folders, way), tmp_path / "best.ckpt")
    folder = export(collm(folders, way), path, tmp_path / "out", merged=False)
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert {p.name for p in (folder / "clip").iterdir()} == adapter
    assert {p.name for p in (folder / "llm" / "second").iterdir()} == adapter
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (folder / "llm").iterdir()} == {*adapter, *tokenizer, "second"}
    parts = {"llm", "clip", "connector.safetensors", "README.md", "config.yaml"}
    assert {p.name for p in folder.iterdir()} == parts
    for config in ("llm/adapter_config.json", "llm/second/adapter_config.json"):
        content = json.loads((folder / config).read_text())
        assert content["base_model_name_or_path"] == str(folders["llm"])
    modes = {p.stat().st_mode for p in folder.rglob("*") if p.is_file()}
    (plain := tmp_path / "plain").write_text("x")
    assert modes == {plain.stat().st_mode}, "whoever may read other files may read these"
    merged = export(collm(folders, way), path, tmp_path / "merged", merged=True)
    assert not list(merged.rglob("adapter_*"))
    assert {p.name for p in (merged / "llm").iterdir()} == {
        *tokenizer,
        "config.json",
        "model.safetensors",
    }


def test_a_sharded_checkpoint_gives_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = learned(collm(folders, WAYS["lora"]), tmp_path / "best.ckpt")
    rest = torch.load(whole, weights_only=True)
    (sharded := tmp_path / "sharded.ckpt").mkdir()
    distributed_checkpoint.save(
        {"state_dict": rest.pop("state_dict")}, checkpoint_id=sharded, no_dist=True
    )
    torch.save(rest, sharded / "meta.pt")
    one, other = (
        export(collm(folders, WAYS["lora"]), path, tmp_path / f"of {path.name}", merged=False)
        for path in (whole, sharded)
    )
    for file in ("llm/adapter_model.safetensors", "connector.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_adapters_over_four_bits(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real bitsandbytes, on the CPU."""
    way = {"lora": LORA, "four_bit": FourBit(compute_dtype="float32")}
    trained = collm(folders, way)
    path = learned(trained, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"4 bits.*; leave merged out"):
        export(collm(folders, way), path, tmp_path / "out", merged=True)
    card = run_card(export(collm(folders, way), path, tmp_path / "out", False), monkeypatch)
    difference = card["embed_query"](PICTURE, TEXT) - asked(trained, image=True, text=True)
    assert difference.abs().max() < 1e-5


def test_peft_alone_knows_the_base(folders: dict[str, Path], tmp_path: Path) -> None:
    path = learned(collm(folders, WAYS["lora"]), tmp_path / "best.ckpt")
    folder = export(collm(folders, WAYS["lora"]), path, tmp_path / "out", False) / "llm"
    by_transformers = AutoModel.from_pretrained(folder).eval()
    base = AutoModel.from_pretrained(folders["llm"])
    by_peft = PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([[2, 5, 6, 7]])
    one, other = by_transformers(input_ids=ids), by_peft(input_ids=ids)
    torch.testing.assert_close(one.last_hidden_state, other.last_hidden_state)
    with by_peft.disable_adapter():
        without = by_peft(input_ids=ids)
    assert (without.last_hidden_state - other.last_hidden_state).abs().max() > 1e-2


def test_a_clip_whose_text_tower_is_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip reads such a tower's configuration where the folder's own names it."""
    scratch = ClipFromScratch(
        vision={"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        text={"context_length": 12, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"},
        text_transformer={
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 16,
        },
        embed_dim=16,
    )
    trained = CLIP(from_scratch=scratch, export_to=str(tmp_path / "never"))
    path = learned(trained, tmp_path / "best.ckpt")
    again = CLIP(from_scratch=scratch, export_to=str(tmp_path / "never"))
    folder = export(again, path, tmp_path / "out", merged=False)
    card = run_card(folder, monkeypatch)
    tokens = trained.encoder.processor.tokenize(["a red circle"])
    with torch.no_grad():
        expected = trained.encoder.encode_texts(tokens)
    assert (card["embed_text"]("a red circle") - expected).abs().max() < 1e-5
    for file in folder.glob("*.json"):
        assert "unfinished" not in file.read_text(), file.name


def test_a_language_model_from_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    module = EmbeddingLanguageModel(config, export_to=str(tmp_path / "zoo"))
    path = learned(module, tmp_path / "last.ckpt")
    again = EmbeddingLanguageModel(config, export_to=str(tmp_path / "zoo"))
    card = run_card(export(again, path, tmp_path / "out", merged=False), monkeypatch)
    collate = module.train_collator()
    with torch.no_grad():
        expected, _ = module._read(collate.words(["a red circle"]))
    assert (card["embed_text"]("a red circle") - expected).abs().max() < 1e-5


# ---- the command line ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_experiment(tmp_path_factory.mktemp("trained"), trainer={"max_epochs": 1})
    assert main(["fit", "-c", str(config)]) == 0
    return config


def call(config: Path, *options: str) -> tuple[int, set[Path]]:
    """Exit status, and what is new."""
    before = set(config.parent.rglob("*"))
    status = main(["export", "-c", str(config), *options])
    return status, set(config.parent.rglob("*")) - before


def test_a_run_becomes_a_folder_of_open_clip(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = trained.parent / "runs" / "tiny" / "version_0"
    status, new = call(trained)
    assert status == 0
    assert all(run / "export" in (path, *path.parents) for path in new), "and nothing else is new"
    (run / "export").rename(tmp_path / "moved")
    card = run_card(tmp_path / "moved", monkeypatch)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    model = open_clip.create_model(f"local-dir:{tmp_path / 'moved'}")
    name = "encoder.model.visual.proj"
    torch.testing.assert_close(model.visual.proj.data, best["state_dict"][name])
    tokens = card["tokenizer"](["a red circle"])
    with torch.no_grad():
        text = torch.nn.functional.normalize(model.eval().encode_text(tokens), dim=-1)
    torch.testing.assert_close(card["embed_text"]("a red circle"), text)
    assert card["embed_image"](PICTURE).norm().item() == pytest.approx(1.0)
    assert capsys.readouterr().out == "", "no tables: nothing was evaluated"
    assert f"exporting {run / 'checkpoints' / 'best.ckpt'}" in caplog.text
    assert "evaluating" not in caplog.text


def test_an_experiment_that_was_never_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert call(tiny_experiment(tmp_path)) == (2, set())
    assert caplog.text.strip().endswith("train it, or give --ckpt_path (make: CKPT=)")


@pytest.mark.parametrize("subcommand", ["export", "validate"])
def test_an_earlier_stage_that_is_gone_is_not_missed(
    folders: dict[str, Path], tmp_path: Path, subcommand: str
) -> None:
    """A checkpoint of the later one holds all that was learned."""
    checkpoint = learned(collm(folders, WAYS["lora"]), tmp_path / "best.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    del state[CONFIG]
    torch.save(state | {"pytorch-lightning_version": lightning.__version__}, checkpoint)
    config = yaml.safe_load(tiny_experiment(tmp_path).read_text())
    config["model"] = {
        "class_path": "lightning_modules.CoLLM",
        "init_args": {
            "clip": f"local-dir:{folders['clip']}",
            "llm": {"name": str(folders["llm"]), "lora": asdict(LORA)},
            "init_from": str(tmp_path / "gone.ckpt"),
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    options = ["-c", str(tmp_path / "tiny.yaml"), "--ckpt_path", str(checkpoint)]
    options += ["--output", str(tmp_path / "out")] if subcommand == "export" else []
    assert main([subcommand, *options]) == 0
    assert main(["validate", *options[:2], "--ckpt_path", "untrained"]) == 2, "and only then"


def test_the_card_has_results_of_exactly_these_weights(trained: Path, tmp_path: Path) -> None:
    run = trained.parent / "runs" / "tiny" / "version_0"
    for name, path in (("best", run / "checkpoints" / "best.ckpt"), ("other", tmp_path / "o.ckpt")):
        state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        if name == "other":
            torch.save(state | {"global_step": 5}, path)
        options = ("--ckpt_path", str(path), "--output", str(tmp_path / name))
        assert call(trained, *options)[0] == 0
    card = (tmp_path / "best" / "README.md").read_text()
    results = json.loads((run / "results.json").read_text())["world_text_to_image"]
    percent = f"{100 * results['metrics']['recall_at_10']:.2f}"
    protocol = results["protocol"]["annotations"]
    row = f"| world_text_to_image | recall @10 | {percent} | `{protocol}` |"
    assert row in card
    assert re.search(rf"- `{protocol}` .*40 queries, gallery of 40", card)
    for fact in ("# tiny", "`lightning_modules.CLIP`", "`datamodules.WorldData`", "torch 2."):
        assert fact in card
    assert "8 optimiser steps" in card
    config = yaml.safe_load((tmp_path / "best" / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    other = (tmp_path / "other" / "README.md").read_text()
    assert "No evaluation of exactly these weights is recorded." in other
    assert row not in other


def test_an_existing_folder_is_replaced_only_when_told(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    options = ("--output", str(folder))
    assert call(trained, *options)[0] == 2
    assert "there is there already; give another --output (make: OUT=)" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert call(trained, *options, "--overwrite", "true")[0] == 0
    assert "mine.txt" not in [path.name for path in folder.iterdir()]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ckpt_path", "nix.ckpt"], "there is no checkpoint nix.ckpt"),
        (["--ckpt_path", "untrained"], "ckpt_path is untrained, but export writes what was"),
        (["--merged", "true"], "merged is true, but the configuration has no adapters"),
        (["--model.init_args.from_scratch.embed_dim=8"], "embed_dim is 8 in the configuration"),
        (["--outputt", "x"], "no option --outputt; did you mean --output?"),
    ],
)
def test_wrong_options(
    trained: Path, caplog: pytest.LogCaptureFixture, options: list[str], says: str
) -> None:
    assert call(trained, *options) == (2, set())
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and says in errors[0] and "\n" not in errors[0]


def test_a_checkpoint_outside_of_runs_needs_a_place(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = trained.parent / "runs" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    (tmp_path / "copy.ckpt").write_bytes(best.read_bytes())
    assert call(trained, "--ckpt_path", str(tmp_path / "copy.ckpt")) == (2, set())
    assert "copy.ckpt lies in no run's folder" in caplog.text


class NothingLearned(RetrievalModule):
    """Training-free."""

    train_collator = losses = image_collator = query_collator = None  # type: ignore[assignment]
    encode_images = encode_queries = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(torch.optim.AdamW, None)


def test_a_training_free_method_has_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^NothingLearned has nothing to export; [^\n]*$"):
        Export(None, "tiny", {}, tmp_path / "out").run(NothingLearned())


def test_a_failure_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = learned(collm(folders, WAYS["lora"]), tmp_path / "best.ckpt")

    def fails(self: CoLLM, folder: Path, merged: bool) -> Any:
        (folder / "half").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(CoLLM, "export", fails)
    with pytest.raises(OSError, match="No space"):
        export(collm(folders, WAYS["lora"]), path, tmp_path / "out", merged=False)
    assert list(tmp_path.iterdir()) == [path]
