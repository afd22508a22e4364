"""ChatIR's rules in the built-in world: a caption that leaves things out, then ten rounds.

As in ChatIR (Levy et al., arXiv 2305.20062) the whole gallery is ranked after each round. It holds
32 look-alikes of each picture that is meant, so that a caption rarely tells which one it is; what
questions bring to light (`cirlab.world.dialogue`) narrows them down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cirlab.benchmarks.dialogue import DialogueRules, History
from cirlab.benchmarks.world_families import (
    FAMILIES,
    Group,
    Stream,
    WorldFamilies,
    ids_by_signature,
)
from cirlab.dialogue.files import dialogues_about
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.dialogue import MAX_ROUNDS, dialogue
from cirlab.world.image import SceneImage
from cirlab.world.scene import Signature
from cirlab.world.series import FAMILY_SIZE


class WorldDialogue(DialogueRules, WorldFamilies):
    """Dialogues about pictures of the gallery; pictures that show the same scene are all targets.

    Args:
        families: each gives 32 gallery scenes and about 8 nuisance twins of these.
        dialogues: each about another scene.
        rounds: questions with answers, after the caption; up to 38. Of those in `played` each must
            have as many, and may have more.
        separator: stands between the texts of a dialogue that a query joins.
        history: "concat" asks with all texts up to the round, "current" with the newest alone;
            null: "current" where the rounds of `played` are rewritten captions, else "concat".
        hits_at: cut-off of hits and recall.
        split: val or test; training never sees either's scenes.
        seed: another gallery and other dialogues of the same kind.
        name: where it stands in the results.
        image_size: side of the pictures in pixels.
        played: .json file of dialogues about pictures of this gallery, as `python -m
            cirlab.dialogue` plays them or `python -m cirlab.dialogue.rewrite` rewrites them, in
            place of the world's own; null: none.

    Raises:
        UserError: a number is out of range, or an unknown history.
    """

    def __init__(
        self,
        families: int = FAMILIES,
        dialogues: int = 150,
        rounds: int = 10,
        separator: str = ", ",
        history: History | None = None,
        hits_at: int = 10,
        split: Literal["val", "test"] = "val",
        seed: int = 0,
        name: str = "world_dialogue",
        image_size: int = 64,
        played: str | None = None,
    ) -> None:
        DialogueRules.__init__(self, separator, history, hits_at)
        WorldFamilies.__init__(self, families, split, seed, name, image_size)
        self.at_least(dialogues=dialogues, rounds=rounds)
        if rounds > MAX_ROUNDS:
            raise UserError(
                f"rounds of {name} is {rounds}, but only {MAX_ROUNDS} questions can be asked about "
                f"any scene; set rounds from 1 to {MAX_ROUNDS}"
            )
        if dialogues > families * FAMILY_SIZE:
            raise UserError(
                f"{name} has {families * FAMILY_SIZE} scenes for {dialogues} dialogues; raise "
                "families, or lower dialogues"
            )
        self.dialogues = dialogues
        self.rounds = rounds
        self.played = played

    def ask(self, groups: Sequence[Group], gallery: Sequence[SceneImage]) -> Iterable[Query]:
        equal = ids_by_signature(gallery)
        if self.played is not None:
            yield from self._read(Path(self.played), gallery, equal)
            return
        images = [image for group in groups for image in group.images]
        order = self.numbers(Stream.DIALOGUE).permutation(len(images))
        for number, i in enumerate(order[: self.dialogues]):
            rng = self.numbers(Stream.DIALOGUE, number + 1)
            opening, rounds = dialogue(images[i].scene, rng, self.rounds)
            yield from self.dialogue(images[i].id, (opening, *rounds), _targets(images[i], equal))

    def _read(
        self,
        path: Path,
        gallery: Sequence[SceneImage],
        equal: Mapping[Signature, Sequence[str]],
    ) -> Iterable[Query]:
        by_id = {image.id: image for image in gallery}
        found = list(dialogues_about(path, by_id))
        self.heed([texts for _, texts in found])
        for number, (name, texts) in enumerate(found):
            self._check_rounds(len(texts) - 1, f"{path}, record {number + 1}")
            yield from self.dialogue(f"{number}", texts, _targets(by_id[name], equal))

    def _check_rounds(self, has: int, where: str) -> None:
        """Refuse a played dialogue that ends before the world's own would."""
        if has < self.rounds:
            noun = "round" if has == 1 else "rounds"
            lower = f"set rounds to {has}, or " if has else ""
            raise UserError(
                f"{where}: the dialogue has {has} {noun} after its caption, but rounds of "
                f"{self.name} is {self.rounds}; {lower}have longer ones played"
            )


def _targets(image: SceneImage, equal: Mapping[Signature, Sequence[str]]) -> tuple[str, ...]:
    """The image, and all that show the same."""
    same = equal[image.scene.signature()]
    return (image.id, *(name for name in same if name != image.id))
