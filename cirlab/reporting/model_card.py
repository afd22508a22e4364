"""The README of an export: what it is, how to load it, what it reaches by which protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirlab.reporting.results import metric_text, metric_title, protocol_line
from cirlab.reporting.run import Run, runs_of

#: Results by benchmark, as results.json has them.
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ModelCard:
    """What is known of a checkpoint.

    Attributes:
        experiment: its name.
        what: one or two sentences on what the model does.
        code: Python that loads it.
        method: class path.
        data: class path of the data module, and which records it gave.
        base: names of the frozen pretrained weights, by role.
        fingerprint: of these weights.
        step: optimiser steps.
        record: run.json of the training.
        results: of exactly these weights.
    """

    experiment: str
    what: str
    code: str
    method: str
    data: str
    base: Mapping[str, str]
    fingerprint: str
    step: int
    record: Mapping[str, Any]
    results: Results

    def markdown(self) -> str:
        """The whole README."""
        parts = [
            f"# {self.experiment}",
            self.what,
            "\n".join(self._facts()),
            "## How to load it",
            "The base weights are read from where the code names them; everything else lies here.",
            f"```python\n{self.code}```",
            "## Results",
            "\n".join(self._results()),
            "## Licence",
            "These weights carry the licence of the weights they were made from"
            f"{self._base_names()}, and of the data they were trained on. The code that made them "
            "is cirlab's, Apache-2.0.",
        ]
        return "\n\n".join(parts) + "\n"

    def _facts(self) -> Iterator[str]:
        yield "| | |"
        yield "|---|---|"
        yield f"| method | `{self.method}` |"
        if self.base:
            named = ", ".join(f"{role}: `{name}`" for role, name in sorted(self.base.items()))
            yield f"| base weights | {named}; fingerprint `{self.fingerprint}` |"
        else:
            yield "| base weights | none: all weights were trained and lie here |"
        yield f"| trained on | {self.data}; see `config.yaml` for every setting |"
        yield f"| trained for | {self.step} optimiser steps |"
        if "code_revision" in self.record:
            changed = ", changed" if self.record.get("code_dirty") else ""
            yield f"| cirlab | revision `{self.record['code_revision']}`{changed} |"
        if packages := self.record.get("packages"):
            yield f"| packages | {', '.join(f'{n} {v}' for n, v in packages.items())} |"

    def _results(self) -> Iterator[str]:
        scored = {name: found for name, found in self.results.items() if found["metrics"]}
        if not scored:
            yield "No evaluation of exactly these weights is recorded."
            return
        yield "| benchmark | metric | value | protocol |"
        yield "|---|---|---|---|"
        for name, found in scored.items():
            for metric, value in found["metrics"].items():
                identity = found["protocol"]["annotations"]
                text = metric_text(metric, value)
                yield f"| {name} | {metric_title(metric)} | {text} | `{identity}` |"
        yield ""
        yield "Numbers with another protocol do not compare:"
        yield ""
        for name, found in scored.items():
            identity = found["protocol"]["annotations"]
            yield f"- `{identity}` ({name}): {protocol_line(found['protocol'])}"

    def _base_names(self) -> str:
        return f" ({', '.join(f'`{n}`' for n in sorted(self.base.values()))})" if self.base else ""


def run_of(checkpoint: Path) -> Run | None:
    """The run that wrote a checkpoint, if it lies in one's folder."""
    folder = checkpoint.resolve().parent
    run = Run(folder.parent)
    return run if folder.name == "checkpoints" and run.record else None


def results_of(checkpoint: Path, step: int) -> dict[str, Any]:
    """What is recorded of exactly these weights, the newest evaluation of each benchmark.

    Args:
        checkpoint: its path.
        step: the optimiser step after which it was written; a file of this name may have been
            written anew since it was evaluated.
    """
    own = run_of(checkpoint)
    if own is None:
        return {}
    root = own.folder.parent
    found: dict[str, Any] = {}
    evaluations = [
        run
        for run in runs_of(root.name, root.parent)
        if run.folder == own.folder or _same(run.weights, checkpoint)
    ]
    for run in reversed(evaluations):
        if run.record.get("evaluated_after", {}).get("step") == step:
            found |= run.results or {}
    return found


def _same(weights: str, checkpoint: Path) -> bool:
    return Path(weights).resolve() == checkpoint.resolve()
