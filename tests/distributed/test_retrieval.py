"""Two processes evaluate exactly what one does, whatever the padding of their samplers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from callbacks.retrieval import RetrievalEvaluation
from cirlab.errors import UserError
from tests.callbacks.looking import LookingModule
from tests.callbacks.lookup import LookupBenchmark, LookupData, LookupModule, quiet_trainer
from tests.distributed.processes import WORLD, run_in_processes


def evaluate(module: LookupModule | LookingModule, **trainer_options: Any) -> dict[str, Any]:
    # 23 images and 11 queries do not divide by two: samplers repeat one of each.
    data = LookupData(LookupBenchmark(), LookupBenchmark(name="again", asked=4, rerank_depth=6))
    callback = RetrievalEvaluation()
    trainer = quiet_trainer(callbacks=[callback], **trainer_options)
    trainer.validate(module, datamodule=data, verbose=False)
    return {
        "results": callback.results,
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "ranked": sorted(callback.rankings),
    }


def modules() -> list[LookupModule | LookingModule]:
    """One that looks at images for nothing in particular, and one that has prompts for queries."""
    return [LookupModule(own_space=True), LookingModule()]


def evaluate_share(rank: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What a process holds after evaluations, and how failing ones end there."""
    # Lightning then takes this process as one that was started for it.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    options: dict[str, Any] = {"devices": WORLD, "strategy": "ddp"}
    content = [evaluate(module, **options) for module in modules()]
    errors = []
    broken = LookupModule(bad_query=4), LookupModule(bad_second=17), LookingModule(refused=2)
    for module in broken:
        with pytest.raises(UserError) as caught:
            evaluate(module, **options)
        errors.append(str(caught.value))
    return content, errors


def test_results_and_errors_are_those_of_one_process(tmp_path: Path) -> None:
    every = [evaluate(module) for module in modules()]
    (firsts, first_errors), (seconds, second_errors) = run_in_processes(evaluate_share, tmp_path)
    for alone, first, second in zip(every, firsts, seconds, strict=True):
        assert first["results"] == second["results"] == alone["results"]
        assert first["logged"] == second["logged"] == pytest.approx(alone["logged"])
        assert "val/lookup/recall_at_5" in alone["logged"]
        assert (first["ranked"], second["ranked"]) == (["again", "lookup"], [])
    views = [alone["results"]["lookup"]["protocol"]["views"] for alone in every]
    assert views[0] == "none" and views[1].startswith("2 prompts and none, ")
    # Only rank 0 is asked for prompts and ranks, and only one process reads a given image in the
    # second stage; the others must hear of their errors instead of waiting for results.
    assert first_errors[0].startswith("1 of 11 query vectors hold NaN")
    assert first_errors[1] == "image17 does not decode; remove it"
    assert first_errors[2] == "query number 2 has no prompt; give it one"
    assert second_errors == first_errors
