"""The page that tells how to add things: its files run as they are printed."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cirlab.cli import main
from cirlab.errors import UserError
from cirlab.records import Query
from tests.benchmarks.encoders import constant, ranking
from tests.datamodules.toys import write_images
from tests.test_experiments import uncommented

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
#: A path on a line of its own, then the file.
FILES = dict(re.findall(r"^`([\w/]+\.\w+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
#: Lines for the packages' `__init__.py`.
EXPORTS = re.findall(r"^```python\n(from [\w.]+ import \w+)\n```$", PAGE, re.MULTILINE)
#: Ruff looks for modules in the repository, where the page's own are not.
FIRST_PARTY = [
    "--config",
    'lint.isort.known-first-party = ["cirlab", "lightning_modules", "datamodules"]',
]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
QUIET += ["--data.init_args.num_workers=0"]
QUIET += ["--trainer.enable_model_summary=false", "--contact_sheet=null"]
QUIET += ['--trainer.logger=[{"class_path": "callbacks.CsvLog", "init_args": {"name": null}}]']


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files below a folder, as if they lay in the repository."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    known = set(sys.modules)
    for path in sorted(tmp_path.rglob("*.py")):
        package = importlib.import_module(".".join(path.parent.relative_to(tmp_path).parts))
        folders = [*package.__path__, str(path.parent)]
        monkeypatch.setattr(package, "__path__", folders)
    for line in EXPORTS:
        _export(line, monkeypatch)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            parent, _, child = name.rpartition(".")
            del sys.modules[name]
            sys.modules[parent].__dict__.pop(child, None)


def _export(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, _, name = line.split()
    package = sys.modules[module.rpartition(".")[0]]
    added = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(package, name, added, raising=False)


def exported(package: str, name: str) -> Any:
    """What the page adds to a package."""
    return getattr(sys.modules[package], name)


def results(folder: Path, experiment: str, version: int) -> dict[str, Any]:
    path = folder / "runs" / experiment / f"version_{version}" / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))


def write_tsv(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("DATA_ROOT", str(folder))
    names = write_images(folder, 12)
    lines = [f"{a}\tbrighter than it\t{b}" for a, b in pairwise(names)]
    for split in ("train", "val"):
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return names


def test_the_page_holds_what_it_promises() -> None:
    assert len(FILES) == 6 and len(EXPORTS) == 3


@pytest.mark.parametrize("command", [["check", *FIRST_PARTY], ["format", "--check"]])
def test_the_code_passes_lint(command: list[str]) -> None:
    for name, text in FILES.items():
        if name.endswith(".py"):
            run = [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"]
            done = subprocess.run(run, cwd=ROOT, input=text, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


def test_every_key_is_explained() -> None:
    for name, text in FILES.items():
        if name.endswith(".yaml"):
            assert uncommented(text) == []


def test_the_method_starts_as_the_sum_and_learns(added: Path) -> None:
    experiment = ["-c", "experiments/corrected_sum.yaml", *QUIET]
    assert main(["validate", *experiment, "--ckpt_path", "untrained"]) == 0
    (before,) = results(added, "corrected_sum", version=0).values()
    assert before["metrics"] == before["baselines"]["sum"]
    assert main(["fit", *experiment, "--data.init_args.samples=128"]) == 0
    (after,) = results(added, "corrected_sum", version=1).values()
    assert after["metrics"] != before["metrics"] and after["baselines"] == before["baselines"]
    path = added / "runs" / "corrected_sum" / "version_1" / "checkpoints" / "best.ckpt"
    learned = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert set(learned) == {"correction.weight", "correction.bias"}
    assert learned["correction.weight"].any()


def test_the_method_answers_texts(added: Path) -> None:
    module = exported("lightning_modules", "CorrectedSum")("zoo:tiny_clip")
    module.configure_model()
    built = dict(module.named_parameters())
    module.configure_model()
    assert all(built[name] is value for name, value in module.named_parameters())
    inputs = module.query_collator()([Query("q", "a red circle", targets=())])
    expected = module.clip.encode_texts(inputs["text"])
    torch.testing.assert_close(module.encode_queries(inputs), expected)


def test_data_and_benchmark_run(added: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tsv(added, monkeypatch)
    assert main(["fit", "-c", "experiments/corrected_sum_tsv.yaml", *QUIET]) == 0
    (found,) = results(added, "corrected_sum_tsv", version=0).values()
    assert found["protocol"]["pool_size"] == 12 and found["protocol"]["queries"] == 11
    assert found["protocol"]["exclusion"] == "the reference image"


def test_the_benchmark_counts_right(added: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_tsv(added, monkeypatch)
    benchmark = exported("cirlab.benchmarks", "TsvComposed")(str(added))
    benchmark.setup()
    assert [image.id for image in benchmark.gallery] == sorted(names)
    # The reference would be first, were it ranked; then something wrong, then the target.
    found = ranking(benchmark, lambda row: [names[row], names[row - 1], names[row + 1]])
    assert found.results["metrics"] == {
        "recall_at_1": 0,
        "recall_at_5": 1,
        "recall_at_10": 1,
        "mean_rank": 2,
    }
    assert list(found.results["breakdown"]["length"]) == ["short"]
    # Ten others and the target: ties count against it.
    assert constant(benchmark).results["metrics"]["mean_rank"] == 11


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images/0.jpg\tbrighter", "line 2: 'images/0.jpg\\tbrighter' is not reference, text and"),
        ("images/0.jpg\tbrighter\timages/99.jpg", "line 2: there is no image images/99.jpg"),
        ("images/0.jpg\tthe same\timages/0.jpg", "line 2: images/0.jpg is reference and target"),
    ],
)
def test_wrong_lines_are_told(
    added: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    write_tsv(added, monkeypatch)
    whole = "images/0.jpg\tbrighter\timages/1.jpg"
    (added / "val.tsv").write_text(f"{whole}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(said)):
        exported("cirlab.benchmarks", "TsvComposed")(str(added)).setup()
