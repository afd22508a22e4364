"""What happens around a run: evaluation, pictures, record, checkpoints."""

from __future__ import annotations

from callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from callbacks.contact_sheet import ContactSheet
from callbacks.csv_log import CsvLog
from callbacks.mlflow_log import MlflowLog
from callbacks.random_state import RandomState
from callbacks.retrieval import RetrievalEvaluation
from callbacks.run_record import RunRecord
from callbacks.skipped import SkippedImages

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "ContactSheet",
    "CsvLog",
    "LastCheckpoint",
    "MlflowLog",
    "RandomState",
    "RetrievalEvaluation",
    "RunRecord",
    "SkippedImages",
]
