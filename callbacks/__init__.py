"""What happens around a run: evaluation, pictures, record, checkpoints."""

from __future__ import annotations

from callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from callbacks.contact_sheet import ContactSheet
from callbacks.csv_log import CsvLog
from callbacks.dialogue_sheet import DialogueSheet
from callbacks.exact_resume import ExactResume
from callbacks.mlflow_log import MlflowLog
from callbacks.model_sizes import ModelSizes
from callbacks.retrieval import RetrievalEvaluation
from callbacks.round_plot import RoundPlot
from callbacks.run_record import RunRecord
from callbacks.skipped import SkippedImages
from callbacks.submission import Submission

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "ContactSheet",
    "CsvLog",
    "DialogueSheet",
    "ExactResume",
    "LastCheckpoint",
    "MlflowLog",
    "ModelSizes",
    "RetrievalEvaluation",
    "RoundPlot",
    "RunRecord",
    "SkippedImages",
    "Submission",
]
