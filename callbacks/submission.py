"""Write what the evaluation servers of CIRR and CIRCO take, and check it before they do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.retrieval import RetrievalEvaluation
from cirlab import distributed
from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.servers import LIST_SIZE
from cirlab.errors import UserError
from cirlab.retrieval.evaluation import Ranking
from cirlab.retrieval.submission import check_circo, check_cirr, write_circo, write_cirr

log = logging.getLogger(__name__)

FOLDER = "submission"
#: Violations that are logged; a file holds all of them.
NAMED = 10


@dataclass(frozen=True)
class Server:
    """How one server's files are written and checked, and where it is."""

    write: Callable[[Benchmark, Ranking, Path], list[Path]]
    check: Callable[[Path, Benchmark], list[str]]
    address: str


#: By the value of a benchmark's attribute `submission`.
SERVERS = {
    "cirr": Server(write_cirr, check_cirr, "https://cirr.cecs.anu.edu.au"),
    "circo": Server(write_circo, check_circo, "https://circo.micc.unifi.it"),
}


class Submission(L.Callback):
    """Writes submission files after every evaluation, for benchmarks that have a server.

    Those are the benchmarks with an attribute `submission`, "cirr" or "circo". Each file is read
    back and checked; violations end an evaluation with a sentence (in training they are a warning),
    and all of them stand beside the file in `<file>.violations.txt`.

    Args:
        folder: of the files; null: `submission/` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a run that could not end in a submission.

        Raises:
            UserError: no benchmark has a server, or rankings are too short or not made at all.
        """
        benchmarks = _benchmarks(trainer)
        submitted = [benchmark for benchmark in benchmarks if _server(benchmark) is not None]
        if not submitted:
            names = ", ".join(benchmark.name for benchmark in benchmarks) or "none"
            raise UserError(
                f"Submission finds no benchmark with a server among data.init_args.benchmarks "
                f"({names}); add CIRR's or CIRCO's test split, or remove the callback"
            )
        top_k = max((callback.top_k for callback in _retrieval(trainer)), default=0)
        if not top_k:
            raise UserError(
                "Submission writes rankings, but no callback makes any; add "
                "callbacks.RetrievalEvaluation or remove Submission"
            )
        for benchmark in submitted:
            if (size := max(top_k, benchmark.list_size)) < LIST_SIZE:
                raise UserError(
                    f"rankings of benchmark {benchmark.name!r} hold {size} images, a submission "
                    f"{LIST_SIZE}; set retrieval.init_args.top_k to {LIST_SIZE}"
                )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write_all(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_all(trainer)

    def _write_all(self, trainer: L.Trainer) -> None:
        # Every process asks: the trainer broadcasts the answer of the first.
        run = Path(trainer.log_dir or trainer.default_root_dir)
        folder = Path(self.folder) if self.folder is not None else run / FOLDER
        benchmarks = {benchmark.name: benchmark for benchmark in _benchmarks(trainer)}
        # Only the process that ranks has rankings; all end if a file is not as it must be.
        try:
            distributed.together(lambda: _submit_all(_retrieval(trainer), benchmarks, folder))
        except UserError as error:
            if trainer.state.fn != TrainerFn.FITTING:
                raise
            # Training goes on to an evaluation that may serve.
            log.warning("%s", error)


def _submit_all(
    callbacks: Sequence[RetrievalEvaluation], benchmarks: Mapping[str, Benchmark], folder: Path
) -> None:
    """Write and check every file.

    Raises:
        UserError: a server would refuse some of them.
    """
    refused: list[str] = []
    for callback in callbacks:
        for name, ranking in callback.rankings.items():
            if (server := _server(benchmarks[name])) is not None:
                for path in server.write(benchmarks[name], ranking, folder):
                    refused += _told(server, path, server.check(path, benchmarks[name]))
    if refused:
        raise UserError("; ".join(refused))


def _told(server: Server, path: Path, violations: Sequence[str]) -> list[str]:
    """Say that a file is valid, or return the sentence that says what is wrong with it."""
    report = path.with_name(f"{path.name}.violations.txt")
    report.unlink(missing_ok=True)
    if not violations:
        log.info("submission file %s is valid; its server is %s", path, server.address)
        return []
    report.write_text("".join(f"{line}\n" for line in violations), encoding="utf-8")
    more = f"; all {len(violations)} are in {report}" if len(violations) > NAMED else ""
    return [f"submission file {path} would be refused: {'; '.join(violations[:NAMED])}{more}"]


def _server(benchmark: Benchmark) -> Server | None:
    kind = benchmark.submission
    if kind is None:
        return None
    if kind not in SERVERS:
        raise UserError(
            f"benchmark {benchmark.name!r} has submission {kind!r}; there are: {', '.join(SERVERS)}"
        )
    return SERVERS[kind]


def _benchmarks(trainer: L.Trainer) -> list[Benchmark]:
    return list(getattr(getattr(trainer, "datamodule", None), "benchmarks", None) or [])


def _retrieval(trainer: L.Trainer) -> list[RetrievalEvaluation]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, RetrievalEvaluation)]
