"""Dialogues about the images of a user's own folder (`cirlab.reading.folder`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cirlab.benchmarks.dialogue import DialogueRules, History
from cirlab.benchmarks.folder import FolderBenchmark, check_paths, distinct
from cirlab.dialogue.files import dialogues_about
from cirlab.reading.folder import Folder, dialogue_row
from cirlab.records import Query


class FolderDialogues(DialogueRules, FolderBenchmark):
    """A dialogue that finds images, ranked after each round: root/<split>/dialogues.jsonl.

    Dialogues may have different numbers of rounds, and several targets, of which the best counts.

    Args:
        root: the data folder.
        split: its subfolder, e.g. val.
        name: of the results.
        separator: stands between the texts of a dialogue that a query joins.
        history: "concat" asks with all texts up to the round, "current" with the newest alone;
            null: "current" where the rounds of `played` are rewritten captions, else "concat".
        hits_at: cut-off of hits and recall.
        played: .json file of dialogues about images of this gallery, as `python -m cirlab.dialogue`
            plays them or `python -m cirlab.dialogue.rewrite` rewrites them, in place of
            dialogues.jsonl; null: none.
    """

    def __init__(
        self,
        root: str,
        split: str,
        name: str,
        separator: str = ", ",
        history: History | None = None,
        hits_at: int = 10,
        played: str | None = None,
    ) -> None:
        DialogueRules.__init__(self, separator, history, hits_at)
        FolderBenchmark.__init__(self, root, split, name)
        self.played = played

    def _queries(self, folder: Folder, pool: frozenset[str]) -> Iterator[Query]:
        if self.played is not None:
            found = list(dialogues_about(Path(self.played), pool))
            self.heed([texts for _, texts in found])
            for number, (image, texts) in enumerate(found):
                yield from self.dialogue(f"{number}", texts, (image,))
            return
        for row in distinct(folder.rows(self.split, "dialogues.jsonl")):
            parsed = dialogue_row(row)
            check_paths(f"dialogue {parsed.id!r}", "targets", parsed.targets, row, pool)
            yield from self.dialogue(parsed.id, parsed.rounds, parsed.targets)
