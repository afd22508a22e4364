"""Two processes evaluate exactly what one does, whatever the padding of their samplers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from callbacks.retrieval import RetrievalEvaluation
from cirlab.errors import UserError
from tests.callbacks.lookup import LookupBenchmark, LookupData, LookupModule, quiet_trainer
from tests.distributed.processes import WORLD, run_in_processes


def evaluate(module: LookupModule, **trainer_options: Any) -> dict[str, Any]:
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


def evaluate_share(rank: int) -> tuple[dict[str, Any], list[str]]:
    """What a process holds after an evaluation, and how failing ones end there."""
    # Lightning then takes this process as one that was started for it.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    options: dict[str, Any] = {"devices": WORLD, "strategy": "ddp"}
    content = evaluate(LookupModule(own_space=True), **options)
    errors = []
    for broken in ({"bad_query": 4}, {"bad_second": 17}):
        with pytest.raises(UserError) as caught:
            evaluate(LookupModule(**broken), **options)
        errors.append(str(caught.value))
    return content, errors


def test_results_and_errors_are_those_of_one_process(tmp_path: Path) -> None:
    alone = evaluate(LookupModule(own_space=True))
    (first, first_errors), (second, second_errors) = run_in_processes(evaluate_share, tmp_path)
    assert first["results"] == second["results"] == alone["results"]
    assert first["logged"] == second["logged"] == pytest.approx(alone["logged"])
    assert "val/lookup/recall_at_5" in alone["logged"]
    assert (first["ranked"], second["ranked"]) == (["again", "lookup"], [])
    # Only rank 0 ranks, and only one process reads a given image in the second stage; the others
    # must hear of their errors instead of waiting for results.
    assert first_errors[0].startswith("1 of 11 query vectors hold NaN")
    assert first_errors[1] == "image17 does not decode; remove it"
    assert second_errors == first_errors
