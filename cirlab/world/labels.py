"""What stands in each cell of a scene, as numbers for a classifier."""

from __future__ import annotations

from cirlab.world.scene import Scene
from cirlab.world.vocabulary import LOOK_VALUES, POSITIONS, SETTING_VALUES

#: Number of labels of each facet.
LABEL_COUNTS = (
    {"taken": 2}
    | {facet: len(values) for facet, values in LOOK_VALUES.items()}
    | {facet: len(values) for facet, values in SETTING_VALUES.items()}
)


def cell_labels(scene: Scene, nothing: int = -1) -> dict[str, tuple[int, ...]]:
    """Positions in the vocabulary's lists, cell by cell in reading order.

    Args:
        scene: what to label.
        nothing: stands for the look of an empty cell.

    Returns:
        `taken` (0 or 1), each facet of a look, and each of the setting, which is the same
        everywhere; nine numbers each.
    """
    cells = range(len(POSITIONS))
    in_cell = {cell: thing for thing in scene.things for cell in thing.cells}
    labels = {"taken": tuple(int(cell in in_cell) for cell in cells)}
    for facet, values in LOOK_VALUES.items():
        found = {cell: values.index(getattr(thing, facet)) for cell, thing in in_cell.items()}
        labels[facet] = tuple(found.get(cell, nothing) for cell in cells)
    for facet, values in SETTING_VALUES.items():
        labels[facet] = (values.index(getattr(scene, facet)),) * len(cells)
    return labels
