from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.command.checkpoint_config import check_config, read_metadata
from cirlab.errors import UserError

PATH = Path("last.ckpt")
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {
        "class_path": "lightning_modules.CoLLM",
        "init_args": {
            "clip": "zoo:tiny_clip",
            "llm": {"name": "zoo:tiny_llm", "attention": "sdpa"},
            "loss": {"init_args": {"temperature": 0.07}},
            "optimizer": {"init_args": {"lr": 0.1}},
        },
    },
    "data": {
        "class_path": "datamodules.FolderData",
        "init_args": {"root": "here", "batch_size": 8, "eval_batch_size": 8, "benchmarks": []},
    },
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    place = config
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value
    return config


DECISIVE = [
    ("model.init_args.clip", "zoo:other", True, True),
    ("model.init_args.llm.name", "zoo:other", True, True),
    ("model.init_args.llm.attention", "eager", True, False),
    ("model.init_args.loss.init_args.temperature", 0.9, True, False),
    ("model.init_args.optimizer.init_args.lr", 0.2, True, False),
    ("data.init_args.batch_size", 16, True, False),
    ("data.init_args.eval_batch_size", 16, False, False),
    ("data.init_args.root", "there", False, False),
    ("seed_everything", 1, True, False),
]


@pytest.mark.parametrize("fit", [True, False])
def test_a_limit_may_be_raised_unless_texts_are_cut_to_it(fit: bool) -> None:
    def config(**llm: Any) -> dict[str, Any]:
        model = {
            "class_path": "lightning_modules.InstructCIR",
            "init_args": {"llm": {"name": "zoo:tiny_mllm", **llm}},
        }
        return CONFIG | {"model": model}

    saved = config(max_length=100, long_text="refuse")
    check_config(PATH, saved, config(max_length=200, long_text="refuse"), fit)
    with pytest.raises(UserError, match="long_text is 'cut'") as told:
        check_config(PATH, saved, config(max_length=100, long_text="cut"), fit)
    assert "max_length" not in str(told.value)
    with pytest.raises(UserError, match=r"max_length is 200 .* but 100"):
        cut = config(max_length=100, long_text="cut")
        check_config(PATH, cut, config(max_length=200, long_text="cut"), fit)


@pytest.mark.parametrize(("key", "value", "for_fit", "for_evaluation"), DECISIVE)
def test_what_has_to_agree(key: str, value: Any, for_fit: bool, for_evaluation: bool) -> None:
    for fit, refused in ((True, for_fit), (False, for_evaluation)):
        if refused:
            with pytest.raises(UserError) as caught:
                check_config(PATH, CONFIG, changed(key, value), fit=fit)
            assert key in str(caught.value)
            assert repr(value) in str(caught.value)
            assert "likewise" not in str(caught.value)
        else:
            check_config(PATH, CONFIG, changed(key, value), fit=fit)


def test_another_method_is_named() -> None:
    other = changed("model.class_path", "lightning_modules.CLIP")
    with pytest.raises(UserError, match=r"checkpoint of lightning_modules\.CoLLM, .*\.CLIP"):
        check_config(PATH, CONFIG, other, fit=False)


def test_a_key_on_one_side_only() -> None:
    more = changed("model.init_args.lora", 8)
    for saved, now in ((CONFIG, more), (more, CONFIG)):
        with pytest.raises(UserError, match="lora"):
            check_config(PATH, saved, now, fit=False)


def test_values_are_spelt_as_in_yaml() -> None:
    with pytest.raises(UserError, match=r"lora is true in .* but null in .*; set it to null"):
        check_config(
            PATH,
            changed("model.init_args.lora", None),
            changed("model.init_args.lora", True),
            fit=False,
        )


def test_another_value_is_told_before_the_section_that_it_replaces() -> None:
    scratch = changed("model.init_args.clip", None)
    scratch["model"]["init_args"]["a_scratch"] = {"embed_dim": 16, "vision": {"width": 8}}
    weights = changed("model.init_args.a_scratch", None)
    with pytest.raises(UserError) as caught:
        check_config(PATH, scratch, weights, fit=False)
    assert str(caught.value) == (
        "model.init_args.clip is 'zoo:tiny_clip' in the configuration but null in the checkpoint "
        "last.ckpt (likewise model.init_args.a_scratch is null, not a section); set them as they "
        "were in training, or train anew"
    )


def test_four_bits_are_told_first_with_the_overlay_that_sets_them() -> None:
    four_bit = changed("model.init_args.llm.four_bit", {"quant_type": "nf4"})
    four_bit["model"]["init_args"]["llm"]["attention"] = "eager"
    without = changed("model.init_args.llm.four_bit", None)
    for saved, now, says in (
        (four_bit, without, "is null .* a section in .*; give again what set it, such as -c exper"),
        (without, four_bit, "is a section .* null in .*; leave out what sets it, such as -c exper"),
    ):
        with pytest.raises(UserError, match=rf"^model\.init_args\.llm\.four_bit {says}"):
            check_config(PATH, saved, now, fit=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"no checkpoint", "is no checkpoint"),
        (b"PK\x03\x04 half of one", "is cut off"),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_metadata(path)
    assert re.fullmatch(rf".*last\.ckpt {says}[^;]*; choose another checkpoint", str(caught.value))


def test_weights_that_are_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt holds no training state"):
        read_metadata(tmp_path / "weights.pt")


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint .*nix\.ckpt; .* \(make: CKPT=\)"):
        read_metadata(tmp_path / "nix.ckpt")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="is not loaded as it may run code"):
        read_metadata(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
