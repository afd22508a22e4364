from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from callbacks.retrieval import RetrievalEvaluation
from callbacks.submission import Submission
from cirlab.benchmarks.world_composed import WorldComposed
from cirlab.cli import main
from cirlab.command.configuration import EXPERIMENTS
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.retrieval.submission import check_circo, check_cirr
from tests.callbacks.lookup import LookupBenchmark, LookupData, LookupModule, quiet_trainer
from tests.distributed.processes import WORLD, run_in_processes
from tests.tiny_run import tiny_experiment


class Served(LookupBenchmark):
    """A test split: answers are held back, its gallery is large enough for a submission."""

    answered = False
    list_size = 50

    def __init__(self, submission: str | None, **options: Any) -> None:
        options = {"images": 60, "asked": 7, "name": f"{submission}_test", **options}
        super().__init__(**options)
        if submission is not None:
            self.submission = submission

    def setup(self) -> None:
        super().setup()
        self.queries = [
            Query(
                id=str(number),
                text=query.text,
                targets=(),
                image=query.image,
                exclude=query.exclude,
                subset=query.subset,
            )
            for number, query in enumerate(self.queries)
        ]


def validate(
    root: Path, *benchmarks: LookupBenchmark, run: str = "validate", **options: Any
) -> None:
    callbacks = [options.pop("retrieval", RetrievalEvaluation()), Submission(**options)]
    logger = CSVLogger(save_dir=root, name="exp", version=0)
    trainer = quiet_trainer(callbacks=[c for c in callbacks if c is not None], logger=logger)
    data = LookupData(*benchmarks, on_error="skip")
    getattr(trainer, run)(LookupModule(), datamodule=data, verbose=False)


@pytest.mark.parametrize("run", ["validate", "test"])
def test_files_lie_in_the_runs_folder_and_are_valid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, run: str
) -> None:
    caplog.set_level(logging.INFO)
    cirr, circo, other = Served("cirr"), Served("circo"), LookupBenchmark()
    validate(tmp_path, cirr, circo, other, run=run)
    folder = tmp_path / "exp" / "version_0" / "submission"
    names = ["circo_test.json", "cirr_test_recall.json", "cirr_test_recall_subset.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert check_circo(folder / names[0], circo) == []
    assert check_cirr(folder / names[1], cirr) == check_cirr(folder / names[2], cirr) == []
    for name in names:
        assert f"{folder / name} is valid" in caplog.text


def test_the_files_hold_the_ranking(tmp_path: Path) -> None:
    retrieval, circo = RetrievalEvaluation(), Served("circo")
    validate(tmp_path, circo, retrieval=retrieval, folder=str(tmp_path / "own"))
    content = json.loads((tmp_path / "own" / "circo_test.json").read_text())
    images = retrieval.rankings["circo_test"].images
    assert content == {str(i): images[i, :50].tolist() for i in range(7)}


def test_violations_end_the_run_and_are_written_down(tmp_path: Path) -> None:
    """Every reference is broken, so that no query but one can be ranked."""
    broken = [(number + 5) % 60 for number in range(20)]
    with pytest.raises(UserError) as refused:
        validate(tmp_path, Served("circo", asked=21, broken=broken), folder=str(tmp_path))
    report = tmp_path / "circo_test.json.violations.txt"
    lines = report.read_text().splitlines()
    # The broken images leave 40 for the last query, too.
    assert lines == [f"query {i} is missing" for i in range(20)] + [
        "query 20 has 39 images, must have 50"
    ]
    told = str(refused.value)
    assert told.startswith(f"submission file {tmp_path / 'circo_test.json'} would be refused")
    assert f"query 9 is missing; all 21 are in {report}" in told
    validate(tmp_path, Served("circo"), folder=str(tmp_path))
    assert not report.exists()


def test_fit_writes_after_a_validation_but_not_in_the_sanity_check(tmp_path: Path) -> None:
    trainer = quiet_trainer(
        callbacks=[RetrievalEvaluation(), Submission(str(tmp_path / "own"))],
        max_epochs=1,
        num_sanity_val_steps=1,
    )
    trainer.fit(LookupModule(), datamodule=LookupData(Served("circo")))
    assert (tmp_path / "own" / "circo_test.json").is_file()


@pytest.mark.parametrize(
    ("benchmark", "options", "problem"),
    [
        (Served(None), {}, r"no benchmark with a server .*\(None_test\); add CIRR's"),
        (Served("cir"), {}, "'cir_test' has submission 'cir'; there are: cirr, circo"),
        (Served("circo"), {"retrieval": None}, "no callback makes any"),
    ],
)
def test_what_cannot_end_in_a_submission_is_refused(
    tmp_path: Path, benchmark: Served, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        validate(tmp_path, benchmark, **options)


def test_short_rankings_are_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    short = Served("circo")
    short.list_size = 0
    with pytest.raises(UserError, match=r"'circo_test' hold 10 images, a submission 50"):
        validate(tmp_path, short)
    validate(tmp_path, short, retrieval=RetrievalEvaluation(top_k=50))


class ServedWorld(WorldComposed):
    """Two families of the built-in world as a test split of CIRR."""

    answered = False
    list_size = 50
    submission = "cirr"

    def __init__(self, name: str) -> None:
        super().__init__(families=2, name=name)

    def setup(self) -> None:
        super().setup()
        self.queries = [dataclasses.replace(query, targets=()) for query in self.queries]


@pytest.mark.parametrize("name", ["cirr", "circo"])
def test_an_overlay_turns_an_experiment_into_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The overlay as it is, but for the benchmark."""
    overlay = yaml.safe_load((EXPERIMENTS / "overlays" / f"submission_{name}.yaml").read_text())
    (benchmark,) = overlay["data"]["init_args"]["benchmarks"]
    assert benchmark["init_args"]["root"] == f"${{oc.env:DATA_ROOT}}/{name}"
    overlay["data"]["init_args"]["benchmarks"] = [
        {"class_path": f"{__name__}.ServedWorld", "init_args": {"name": "served"}}
    ]
    path = tmp_path / "overlays" / f"submission_{name}.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(overlay))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    experiment = tiny_experiment(tmp_path)
    options = ["-c", str(experiment), "-c", str(path), "--ckpt_path", "untrained"]
    assert main(["validate", *options]) == 0
    (run,) = [file.parent for file in tmp_path.rglob("run.json")]
    served = ServedWorld("served")
    served.setup()
    files = sorted((run / "submission").iterdir())
    assert [file.name for file in files] == [
        "served_recall.json",
        "served_recall_subset.json",
    ]
    assert [check_cirr(file, served) for file in files] == [[], []]
    # What the experiment's own callbacks write is still written, of this benchmark alone.
    results = json.loads((run / "results.json").read_text())
    assert {name: found["metrics"] for name, found in results.items()} == {"served": {}}


def submit(rank: int, folder: Path) -> bool:
    """What one of two processes writes: only the first ranks."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    trainer = quiet_trainer(
        callbacks=[RetrievalEvaluation(), Submission(str(folder / str(rank)))],
        devices=WORLD,
        strategy="ddp",
    )
    trainer.validate(LookupModule(), datamodule=LookupData(Served("circo")), verbose=False)
    return (folder / str(rank) / "circo_test.json").exists()


def test_the_first_of_two_processes_writes(tmp_path: Path) -> None:
    assert run_in_processes(submit, tmp_path, tmp_path) == [True, False]
    circo = Served("circo")
    circo.setup()
    assert check_circo(tmp_path / "0" / "circo_test.json", circo) == []
