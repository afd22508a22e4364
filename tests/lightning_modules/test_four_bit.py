"""QLoRA on the CPU by the real libraries: what moves, what is kept, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import lightning as L
import pytest
import torch

from cirlab.encoders.adapters import FourBit
from cirlab.errors import UserError
from lightning_modules import CoLLM
from tests.chunked import Records, difference, method, one_step
from tests.tiny import write_tiny_clip, write_tiny_llm


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny_clip(root / "clip")
    write_tiny_llm(root / "llm")
    return root


def quantised(models: Path, **options: Any) -> CoLLM:
    four_bit = options.pop("four_bit", FourBit())
    module = method("triplets", models, four_bit=four_bit, **options)
    module.configure_model()
    assert isinstance(module, CoLLM)
    return module


def test_a_step_moves_what_is_learned_and_nothing_else(models: Path) -> None:
    module = quantised(models, dropout=0.1, chunk_size=3, gradient_checkpointing=True)
    layers = [layer for layer in module.llm.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert len(layers) == 14 and all(layer.weight.dtype == torch.uint8 for layer in layers)
    assert all(layer.weight.quant_state.nested for layer in layers), "constants not quantised"
    before = {name: value.clone() for name, value in module.state_dict().items()}
    losses: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )
    trainer.fit(module, Records("triplets"))
    assert len(losses) == 1 and torch.tensor(losses).isfinite().all()
    moved = {n for n, value in module.state_dict().items() if not torch.equal(value, before[n])}
    learned = {name for name, p in module.named_parameters() if p.requires_grad}
    assert moved <= learned and any(".lora_B." in name for name in moved)
    assert {name.split(".")[0] for name in moved} == {"llm", "clip", "adapter", "projection"}

    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == learned
    assert all("lora_" in name for name in learned if name.startswith(("llm", "clip")))


def test_memory_is_saved_without_another_gradient(models: Path) -> None:
    exact = FourBit(compute_dtype="float32")
    plain = one_step("triplets", lambda: quantised(models, four_bit=exact))
    options = {"chunk_size": 3, "gradient_checkpointing": True}
    saving = one_step("triplets", lambda: quantised(models, four_bit=exact, **options))
    assert difference(plain, saving) < 1e-4


def test_adapters_of_another_base_model_are_refused(models: Path, tmp_path: Path) -> None:
    module = quantised(models)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    quantised(models).on_load_checkpoint(checkpoint)
    other = method("triplets", _with_another_llm(models, tmp_path), four_bit=FourBit())
    other.configure_model()
    with pytest.raises(UserError, match=r"trained on (clip|llm) '.*', but the configuration names"):
        other.on_load_checkpoint(checkpoint)
    whole = method("triplets", models)
    whole.configure_model()
    with pytest.raises(UserError, match="trained on other weights by the name of"):
        whole.on_load_checkpoint(checkpoint)


def _with_another_llm(models: Path, folder: Path) -> Path:
    (folder / "clip").symlink_to(models / "clip")
    write_tiny_llm(folder / "llm", seed=1)
    return folder
