"""Rules of retrieval by dialogue (ChatIR, Levy et al., NeurIPS 2023, arXiv 2305.20062).

After every round the whole gallery is ranked, so each round of a dialogue is a query of its own.
ChatIR's Hits@k is cumulative: a dialogue that once had its target among the first k is done.
Recall@k of a round, which others report (PlugIR, Lee et al., ACL 2024), can fall again; the two
are different numbers, and both are given.

What a round is, depends on the data. In VisDial and ChatIR it is a question with its answer, and
a query is all that was said. In DAR (arXiv 2501.15379) every round is a new caption that holds
everything already, so that a query is the newest alone; its released code joins them nevertheless,
and the newest, which is last, is what a text encoder of limited length cuts off.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import torch

from cirlab import distributed
from cirlab.benchmarks.base import Benchmark, QueryKind, TargetRanks
from cirlab.dialogue.files import holds_captions
from cirlab.errors import UserError
from cirlab.metrics import (
    best_log_rank_integral,
    best_ranks,
    cumulative_hits_at_k,
    last_ranks,
    mean_rank,
    recall_at_k,
    round_mean_ranks,
    round_recalls_at_k,
)
from cirlab.records import Query

log = logging.getLogger(__name__)

History = Literal["concat", "current"]

#: The tag that numbers the rounds of a dialogue; 0 is what it began with.
ROUND = "round"


class DialogueRules(Benchmark):
    """One query for each round of each dialogue, ranked against the whole gallery.

    Args:
        separator: stands between the texts of a dialogue that a query joins.
        history: "concat" asks with all texts up to the round, "current" with the newest alone; None
            takes "current" for dialogues of files whose rounds are rewritten captions, else
            "concat".
        hits_at: cut-off of hits and recall.

    Raises:
        UserError: an unknown history, or a cut-off below 1.
    """

    kind: ClassVar[QueryKind] = "dialogue"
    breakdowns: ClassVar[tuple[str, ...]] = (ROUND,)

    def __init__(
        self, separator: str = ", ", history: History | None = None, hits_at: int = 10
    ) -> None:
        if history not in ("concat", "current", None):
            raise UserError(f"history is {history!r}; set it to concat, current or null")
        if hits_at < 1:
            raise UserError(f"hits_at is {hits_at}; set it to 1 or more")
        self.separator = separator
        self.chosen = history
        self.hits_at = hits_at
        self._ask_with(history or "concat")

    def heed(self, dialogues: Sequence[Sequence[str]]) -> None:
        """Choose the history by what the rounds are, if it was left open; else tell of a trap.

        Args:
            dialogues: all of a file, of each what it began with and a text for each round.
        """
        captions = holds_captions(dialogues)
        if self.chosen is None:
            self._ask_with("current" if captions else "concat")
        elif self.chosen == "concat" and captions and distributed.rank() == 0:
            log.warning(
                "%s: history: concat joins rounds that are whole captions, so that the newest is "
                "what an encoder of limited length cuts off; history: current asks with it alone",
                self.name,
            )

    def dialogue(self, name: str, texts: Sequence[str], targets: tuple[str, ...]) -> list[Query]:
        """The queries of one dialogue, `<name>#0` and on.

        Args:
            name: unique among the dialogues.
            texts: what it began with, and one text for each further round.
            targets: ids of all images that are meant.
        """
        texts = tuple(texts)
        return [
            Query(
                id=f"{name}#{number}",
                text=self._text(texts[: number + 1]),
                targets=targets,
                rounds=texts[: number + 1],
                tags=_tags(number),
            )
            for number in range(len(texts))
        ]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Cumulative hits after the last round; recall and rank in each dialogue's last round.

        BRI is the integral over all rounds, `cirlab.metrics.best_log_rank_integral`. Of several
        targets the best counts.
        """
        table, _ = rank_table(ranks, queries)
        last = last_ranks(table)
        return {
            f"cumulative_hits_at_{self.hits_at}": cumulative_hits_at_k(table, self.hits_at)[-1],
            f"recall_at_{self.hits_at}": recall_at_k(last, self.hits_at),
            "mean_rank": mean_rank(last),
            "bri": best_log_rank_integral(table),
        }

    def breakdown(
        self, ranks: TargetRanks, queries: Sequence[Query], tag: str
    ) -> dict[str, dict[str, float]]:
        """By round: hits up to it among all dialogues, recall and mean rank of those that have it.

        Rounds stand in their order.
        """
        if tag != ROUND:
            return super().breakdown(ranks, queries, tag)
        table, rounds = rank_table(ranks, queries)
        columns = {
            f"cumulative_hits_at_{self.hits_at}": cumulative_hits_at_k(table, self.hits_at),
            f"recall_at_{self.hits_at}": round_recalls_at_k(table, self.hits_at),
            "mean_rank": round_mean_ranks(table),
        }
        return {
            str(number): {name: values[column] for name, values in columns.items()}
            for column, number in enumerate(rounds)
        }

    def _ask_with(self, history: History) -> None:
        self.history = history
        joined = self.separator.join(("{round 0}", "{round 1}", "..", "{round t}"))
        self.query_template = joined if history == "concat" else "{round t} alone"

    def _text(self, texts: tuple[str, ...]) -> str:
        return texts[-1] if self.history == "current" else self.separator.join(texts)


def rank_table(ranks: TargetRanks, queries: Sequence[Query]) -> tuple[torch.Tensor, list[int]]:
    """The rank of each dialogue's best target, round by round.

    Args:
        ranks: of the targets of these queries.
        queries: any of a benchmark's, in any order; rounds may be missing.

    Returns:
        Shape (D, R), 1-based, 0 where a dialogue lacks the round; and the numbers of the R rounds,
        ascending.
    """
    numbers = [int(query.tags[ROUND]) for query in queries]
    rounds = sorted(set(numbers))
    column_of = {number: column for column, number in enumerate(rounds)}
    row_of: dict[str, int] = {}
    rows = [row_of.setdefault(query.id.rpartition("#")[0], len(row_of)) for query in queries]
    table = torch.zeros((len(row_of), len(rounds)), dtype=torch.long)
    table[rows, [column_of[number] for number in numbers]] = best_ranks(ranks.targets)
    return table, rounds


@lru_cache
def _tags(number: int) -> dict[str, str]:
    """One dictionary for a round of all dialogues."""
    return {ROUND: str(number)}
