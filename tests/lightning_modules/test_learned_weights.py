"""Checkpoints that do not fit, and those of an earlier stage: what is said, what is read."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.command.checkpoint_config import CONFIG
from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from lightning_modules import CoLLM, InstructCIR
from lightning_modules.collm import LLMSettings
from lightning_modules.learner import Learner
from tests.tiny import write_tiny_clip, write_tiny_llm
from tests.tiny_mllm import write_tiny_mllm

LORA = Lora(rank=2, alpha=2, dropout=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "clip": f"local-dir:{write_tiny_clip(root / 'clip')}",
        "llm": str(write_tiny_llm(root / "llm")),
        "mllm": str(write_tiny_mllm(root / "mllm")),
    }


def collm(folders: dict[str, str], kind: type[CoLLM] = CoLLM, **options: Any) -> CoLLM:
    init_from, second = options.pop("init_from", None), options.pop("second_lora", None)
    llm = LLMSettings(folders["llm"], lora=LORA, second_lora=second, **options)
    return kind(clip=folders["clip"], llm=llm, init_from=init_from)


def instructcir(folders: dict[str, str], **options: Any) -> InstructCIR:
    init_from = options.pop("init_from", None)
    llm = MLLMSettings(folders["mllm"], lora=LORA, max_length=128, **options)
    return InstructCIR(llm, init_from=init_from)


def checkpoint_of(module: CoLLM | InstructCIR) -> dict[str, Any]:
    """As a run writes it, after which everything that is learned has moved."""
    module.configure_model()
    with torch.no_grad():
        for name in sorted(module.learned_names()):
            module.get_parameter(name).normal_(std=0.1)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    arguments = {"llm": asdict(module.llm_settings)}
    class_path = f"lightning_modules.{type(module).__name__}"
    checkpoint[CONFIG] = {"model": {"class_path": class_path, "init_args": arguments}}
    return checkpoint


def saved(module: CoLLM | InstructCIR, path: Path) -> str:
    torch.save(checkpoint_of(module), path)
    return str(path)


def refusal(module: Learner) -> str:
    with pytest.raises(UserError) as caught:
        module.configure_model()
    return str(caught.value)


def test_another_methods_checkpoint_is_told_as_that(
    folders: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(collm(folders), tmp_path / "best.ckpt")
    caplog.set_level(logging.INFO)
    assert refusal(instructcir(folders, init_from=path)) == (
        f"init_from {path} is a checkpoint of lightning_modules.CoLLM, whose weights do not fit "
        "InstructCIR; name a checkpoint of InstructCIR"
    )
    assert "starting from" not in caplog.text
    collm(folders, init_from=path).configure_model()
    assert f"starting from {path}" in caplog.text


class Mine(CoLLM):
    """A method of one's own with the same weights."""


def test_a_method_of_the_same_weights_may_start_from_it(
    folders: dict[str, str], tmp_path: Path
) -> None:
    first = collm(folders)
    path = saved(first, tmp_path / "best.ckpt")
    second = collm(folders, Mine, init_from=path)
    second.configure_model()
    torch.testing.assert_close(second.projection.weight, first.projection.weight)


@pytest.mark.parametrize(
    ("method", "then", "now", "says"),
    [
        (
            collm,
            {},
            {"dtype": "float16"},
            "model.init_args.llm.dtype is 'float16' in the configuration but 'float32' in "
            "init_from {}; set it to 'float32', or train anew",
        ),
        (
            collm,
            {"four_bit": FourBit(), "dtype": "bfloat16"},
            {},
            "model.init_args.llm.four_bit is null in the configuration but a section in "
            "init_from {} (likewise model.init_args.llm.dtype is 'float32', not 'bfloat16'); give "
            'again what set it, such as -c experiments/overlays/qlora.yaml (make: ARGS="-c '
            'experiments/overlays/qlora.yaml"), or train anew',
        ),
        (
            instructcir,
            {"tune_connector": True},
            {},
            "model.init_args.llm.tune_connector is false in the configuration but true in "
            "init_from {}; set it to true, or train anew",
        ),
        (
            instructcir,
            {},
            {"tune_connector": True},
            "model.init_args.llm.tune_connector is true in the configuration but false in "
            "init_from {}; set it to false, or train anew",
        ),
    ],
)
def test_settings_of_the_frozen_weights_are_named(
    folders: dict[str, str],
    tmp_path: Path,
    method: Any,
    then: dict[str, Any],
    now: dict[str, Any],
    says: str,
) -> None:
    path = saved(method(folders, **then), tmp_path / "best.ckpt")
    assert refusal(method(folders, **now, init_from=path)) == says.format(path)


# ---- what the first stage is needed for -----------------------------------------------------


def test_the_second_stages_checkpoint_needs_no_first(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """Adapters of the first are in it, those that are frozen by then too."""
    path = saved(collm(folders), tmp_path / "first.ckpt")
    options = {"second_lora": Lora(rank=3, alpha=3, dropout=0.0), "init_from": path}
    second = collm(folders, **options)
    checkpoint = checkpoint_of(second)
    Path(path).unlink()
    again = collm(folders, **options)
    again.will_load(checkpoint)
    again.configure_model()
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=False)
    for name, value in second.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert refusal(collm(folders, **options)) == (
        f"init_from {path} is missing; train it first, name another one, or set it to null to "
        "start without"
    )


class AdapterKept(CoLLM):
    """Freezes what the first stage learned, so that its own checkpoints lack it."""

    def configure_model(self) -> None:
        super().configure_model()
        self.adapter.requires_grad_(False)


def test_a_checkpoint_that_lacks_what_the_first_stage_learned(
    folders: dict[str, str], tmp_path: Path
) -> None:
    first = collm(folders)
    path = saved(first, tmp_path / "first.ckpt")
    checkpoint = checkpoint_of(collm(folders, AdapterKept, init_from=path))
    assert not any(name.startswith("adapter") for name in checkpoint["state_dict"])
    again = collm(folders, AdapterKept, init_from=path)
    again.will_load(checkpoint)
    again.configure_model()
    again.on_load_checkpoint(checkpoint)
    torch.testing.assert_close(again.adapter[0].weight, first.adapter[0].weight)
