"""How well the zoo's rewriter turns dialogues into captions, marked by what they tell of the scene.

Dialogues about scenes of the validation split, which no training sees, are rewritten after each
round. A thing is named with its number and shape, and has up to four attributes: size, texture,
colour and position; a setting is one more.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cirlab.dialogue.rewriting import LLMRewriter
from cirlab.world.dialogue import dialogue
from cirlab.world.language import ADJECTIVES
from cirlab.world.scene import draw_scene, generator
from cirlab.world.told import Mention, mentions_in, settings_in, told

#: What is said of one thing or of the setting, by name; "thing" is number and shape.
Facts = dict[str, Hashable]


class Marks(NamedTuple):
    """A caption beside what it should say.

    Attributes:
        told: attributes that it should name.
        named: of these, those that it names rightly.
        invented: attributes that it names though nothing told them.
    """

    told: int
    named: int
    invented: int

    @property
    def right(self) -> bool:
        """Whether it says what was told and nothing else."""
        return self.named == self.told and not self.invented


def mark(text: str, wanted: str) -> Marks:
    """Compare a caption with the right one, whatever the order and wording of their parts."""
    said, should = _facts(text), _facts(wanted)
    named = 0
    left = list(said)
    for facts in should:
        # The setting stands first, and no thing has a facet of it.
        best = max(left, key=lambda other: _common(facts, other), default=None)
        if best is not None and _common(facts, best):
            named += _common(facts, best)
            left.remove(best)
    told_of, said_of = (sum(map(len, parts)) for parts in (should, said))
    return Marks(told_of, named, said_of - named)


@dataclass
class _Sum:
    captions: int = 0
    right: int = 0
    told: int = 0
    named: int = 0
    invented: int = 0

    def add(self, marks: Marks) -> None:
        self.captions += 1
        self.right += marks.right
        self.told += marks.told
        self.named += marks.named
        self.invented += marks.invented

    def shares(self) -> dict[str, float]:
        said = self.named + self.invented
        return {
            "right": self.right / self.captions,
            "attributes": self.named / self.told,
            "invented": self.invented / said if said else 0.0,
        }


def measure(
    name: str = "zoo:tiny_rewriter", dialogues: int = 200, rounds: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Shares in [0, 1].

    Args:
        name: of the model.
        dialogues: about a scene each, rewritten after each round.
        rounds: of each dialogue.
        seed: of scenes and dialogues.

    Returns:
        `right`: captions that say all that was told and nothing else; `attributes`: of those that
        were told, those that are named rightly; `invented`: of those that are named, those that
        are wrong or were not told; `by_round`: the same by round.
    """
    spoken, wanted = [], []
    for number in range(dialogues):
        rng = generator("val", seed, number)
        scene = draw_scene(rng)
        opening, said = dialogue(scene, rng, rounds)
        spoken.append((opening, *said))
        wanted.append([told(scene, opening, said[:n]).caption() for n in range(1, rounds + 1)])
    written = _rewritten(name, spoken)
    sums = [_Sum() for _ in range(rounds + 1)]
    for texts, right in zip(written, wanted, strict=True):
        for at, pair in enumerate(zip(texts[1:], right, strict=True), start=1):
            for each in (sums[0], sums[at]):
                each.add(mark(*pair))
    by_round = {str(at): sums[at].shares() for at in range(1, rounds + 1)}
    return {"dialogues": dialogues, **sums[0].shares(), "by_round": by_round}


def _rewritten(name: str, spoken: Sequence[Sequence[str]]) -> list[list[str]]:
    with TemporaryDirectory() as folder:
        cache = f"{folder}/rewritten.jsonl"
        rewriter = LLMRewriter(name, cache, prompt="bare", batch_size=32, device="cpu")
        return rewriter.dialogues(spoken)[0]


def _facts(text: str) -> list[Facts]:
    """The setting, if anything is said of it, and each thing."""
    setting: Facts = dict(settings_in(text))
    return [*([setting] if setting else []), *map(_of_thing, mentions_in(text))]


def _of_thing(mention: Mention) -> Facts:
    facts: Facts = {"thing": (mention.count, mention.shape)}
    facts |= {name: mention.looks[name] for name in ADJECTIVES if name in mention.looks}
    return facts | ({"position": frozenset(mention.cells)} if mention.cells else {})


def _common(facts: Facts, other: Facts) -> int:
    """How many attributes agree; of different things, or of a thing and the setting, none."""
    if facts.get("thing") != other.get("thing"):
        return 0
    return sum(other.get(name) == value for name, value in facts.items())
