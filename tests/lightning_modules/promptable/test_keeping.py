"""What is kept is not computed again, unless it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks import RetrievalEvaluation
from cirlab.benchmarks import WorldFacet
from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt
from lightning_modules.promptable import PrefixBudget, Promptable
from tests.lightning_modules.promptable.tiny import (
    ARMS,
    data,
    evaluate,
    fit,
    method,
    pictures_read,
)


@pytest.mark.parametrize("arm", ["general", "whole", "prefix", "linear"])
def test_kept_vectors_rank_alike_and_are_not_encoded_again(
    folder: Path, arm: str, tmp_path: Path
) -> None:
    plain = evaluate(method(folder, **ARMS[arm]))
    kept = ARMS[arm] | {"store": str(tmp_path)}
    first = method(folder, **kept)
    with pictures_read(first) as read:
        assert evaluate(first) == plain
    assert read
    second = method(folder, **kept)
    with pictures_read(second) as read:
        assert evaluate(second) == plain
    assert read == []


def test_a_gallery_is_encoded_again_for_a_new_question_alone(folder: Path, tmp_path: Path) -> None:
    evaluate(method(folder, looking="general", store=str(tmp_path)))
    module = method(folder, looking="whole", prompts=FixedPrompt("how many?"), store=str(tmp_path))
    with pictures_read(module) as read:
        evaluate(module)
    size = int(evaluate(module)["protocol"]["pool_size"])
    assert 0 < sum(read) <= size + 2
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(files) == 2
    evaluate(module)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == files


def test_a_changed_weight_makes_everything_new(folder: Path, tmp_path: Path) -> None:
    module = method(folder, store=str(tmp_path))
    before = evaluate(module)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.mul_(-20)
    with pictures_read(module) as read:
        after = evaluate(module)
    assert read
    assert after == evaluate(_with_weights(method(folder), module)) != before


def _with_weights(module: Promptable, of: Promptable) -> Promptable:
    module.load_state_dict(of.state_dict())
    return module


def test_vectors_of_another_precision_are_others(folder: Path, tmp_path: Path) -> None:
    evaluate(method(folder, looking="general", store=str(tmp_path)))
    module = method(folder, looking="general", store=str(tmp_path))
    with pictures_read(module) as read:
        evaluate(module, precision="bf16-mixed")
    assert read


def test_galleries_that_share_ids_have_vectors_of_their_own(folder: Path, tmp_path: Path) -> None:
    def results(store: str | None) -> dict[str, Any]:
        retrieval = RetrievalEvaluation()
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[retrieval]
        )
        sizes = [
            WorldFacet(8, queries_per_facet=2, negatives=5, name=f"of_{size}", image_size=size)
            for size in (64, 16)
        ]
        module = method(folder, looking="general", store=store)
        trainer.validate(module, data(benchmarks=sizes), verbose=False)
        return retrieval.results

    assert results(None) == results(str(tmp_path)) == results(str(tmp_path))


def test_prefixes_of_one_evaluation_serve_the_next_with_other_questions(
    folder: Path, tmp_path: Path
) -> None:
    budget = PrefixBudget(0.5, str(tmp_path))
    evaluate(method(folder, looking="prefix", prefixes=budget))
    other = method(folder, looking="prefix", prefixes=budget, prompts=FixedPrompt("how many?"))
    with pictures_read(other) as read:
        found = evaluate(other)
    assert read == []
    assert found == evaluate(method(folder, looking="whole", prompts=FixedPrompt("how many?")))


def test_training_keeps_nothing(folder: Path, tmp_path: Path) -> None:
    budget = PrefixBudget(0.5, str(tmp_path / "prefixes"))
    module = method(folder, store=str(tmp_path / "store"), prefixes=budget)
    fit(module)
    assert list(tmp_path.iterdir()) == []


def test_what_skips_images_keeps_no_vectors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="store keeps vectors of all images and skips none"):
        evaluate(method(folder, store=str(tmp_path)), on_error="skip")


def test_a_folder_that_cannot_be_is_refused_before_pictures_are_read(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "within", Path("/proc/x")):
        for key, arguments in (
            ("store", {"store": str(path)}),
            ("prefixes.folder", {"prefixes": PrefixBudget(0.1, str(path))}),
        ):
            module = method(folder, **arguments)
            sentence = f"{key} {path} cannot be made a folder"
            with pictures_read(module) as read, pytest.raises(UserError, match=sentence):
                evaluate(module)
            assert read == []


def test_a_folder_without_a_name_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="store is ''; name a folder, or set it to null"):
        method(folder, store="")
    with pytest.raises(UserError, match=r"prefixes\.folder is ' '; name a folder, or set it to"):
        PrefixBudget(1.0, " ")


def test_prefixes_are_kept_of_one_way_of_looking(folder: Path) -> None:
    with pytest.raises(UserError, match="looking is 'whole'; set prefixes to null, or looking to"):
        method(folder, looking="whole", prefixes=PrefixBudget())


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"prefixes\.gib is inf; set it above 0 and below infinity"):
        PrefixBudget(float("inf"))
    with pytest.raises(UserError, match=r"prefixes\.gib is 0\.0; set it above 0"):
        PrefixBudget(0.0)
