"""How people ask for a change: as an instruction, or by describing what the target shows.

Every phrasing can mean one change of its scene only, but says little of what stays: a text
alone does not tell the target, nor does the reference alone. Many also name what is to go away
("at night instead of by day"), as people do, so that a bag of words is led astray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from cirlab.world.changes import Change, SettingChange, ThingChange
from cirlab.world.language import (
    ADJECTIVES,
    definite,
    indefinite,
    name,
    position,
    refer,
    setting_phrase,
    spot,
    telling,
)
from cirlab.world.scene import Scene, Thing, pick

Style = Literal["instruction", "description"]
STYLES: tuple[Style, ...] = ("instruction", "description")


def speak(change: Change, scene: Scene, style: Style, rng: np.random.Generator) -> str:
    """Put one change of `scene`, the reference, into words.

    Args:
        change: one of the scene's things or of its setting.
        scene: the reference.
        style: "instruction" ("make the star red") or "description" of the target's changed
            part ("with a red star").
        rng: decides among phrasings.
    """
    if isinstance(change, SettingChange):
        return _setting(change, style, rng)
    speaker = _SPEAKERS[change.category]
    return speaker(change, scene, style, rng)


def modification(
    changes: Sequence[Change], scene: Scene, style: Style, rng: np.random.Generator
) -> str:
    """All changes of `scene` in one text, in random order."""
    order = rng.permutation(len(changes))
    return combine([speak(changes[i], scene, style, rng) for i in order], style, rng)


_JOINTS: dict[Style, tuple[str, ...]] = {
    "instruction": (" and ", ", and ", ", ", ", then "),
    "description": (" and ", ", and ", ", "),
}


def combine(texts: Sequence[str], style: Style, rng: np.random.Generator) -> str:
    """Join short texts of one style as people do."""
    if len(texts) == 1:
        return texts[0]
    return f"{', '.join(texts[:-1])}{pick(rng, _JOINTS[style])}{texts[-1]}"


# ---- setting ------------------------------------------------------------------------------

_SETTING_ORDERS = {
    "place": ("show it {}", "set it {}", "put everything {}", "the same {}", "{} instead"),
    "time": ("show it {}", "make it {}", "the same {}", "{} instead", "let it be {}"),
    "weather": ("show it {}", "the same {}", "{} instead", "let it be {}"),
    "view": ("show it {}", "the same {}", "change the view, {}", "a picture {} instead"),
}
_SETTING_REPORTS = ("{}", "{}", "{}", "it is {}", "this time {}", "now {}", "{} now")


#: How often a change of an attribute or of the setting names the old value too.
_CONTRAST_SHARE: dict[Style, float] = {"instruction": 0.7, "description": 0.4}
_CONTRASTS = (
    "{new} instead of {old}",
    "{new}, not {old}",
    "not {old} but {new}",
    "{new} rather than {old}",
)


def _setting(change: SettingChange, style: Style, rng: np.random.Generator) -> str:
    phrase = setting_phrase(change.facet, change.after, rng)
    if rng.random() < _CONTRAST_SHARE[style]:
        old = setting_phrase(change.facet, change.before, rng)
        return pick(rng, _CONTRASTS).format(new=phrase, old=old)
    options = _SETTING_ORDERS[change.facet] if style == "instruction" else _SETTING_REPORTS
    return pick(rng, options).format(phrase)


# ---- things -------------------------------------------------------------------------------

_VALUE_ORDERS = (
    "make {ref} {value}",
    "turn {ref} {value}",
    "change {ref} to {value}",
    "{ref} should be {value}",
    "let {ref} be {value}",
)
_SHAPE_ORDERS = (
    "turn {ref} into {value}",
    "change {ref} into {value}",
    "make {ref} {value}",
    "{value} instead of {ref}",
)
_LARGER = ("make {ref} larger", "make {ref} large", "enlarge {ref}", "{ref} should be large")
_SMALLER = ("make {ref} smaller", "make {ref} small", "shrink {ref}", "{ref} should be small")


def _attribute(change: ThingChange, scene: Scene, style: Style, rng: np.random.Generator) -> str:
    (before,), (after,) = change.before, change.after
    attribute = _changed_attribute(before, after)
    if rng.random() < _CONTRAST_SHARE[style]:
        return _replacement(before, after, scene, rng)
    if style == "description":
        if attribute != "shape" and rng.random() < 0.35:
            verb = "is" if before.count == 1 else "are"
            value = getattr(after, attribute)
            return pick(rng, ("{} {} {}", "{} {} {} now")).format(
                refer(before, scene, rng), verb, value
            )
        must = () if attribute == "shape" else (attribute,)
        return _new(after, scene, rng, must, ("with {}", "{}", "it has {}", "{} now"))
    ref = refer(before, scene, rng)
    if attribute == "shape":
        value = indefinite(after, ())
        return pick(rng, _SHAPE_ORDERS).format(ref=ref, value=value)
    if attribute == "size":
        return pick(rng, _LARGER if after.size == "large" else _SMALLER).format(ref=ref)
    return pick(rng, _VALUE_ORDERS).format(ref=ref, value=getattr(after, attribute))


def _replacement(before: Thing, after: Thing, scene: Scene, rng: np.random.Generator) -> str:
    """The thing as it is to be, and as it was."""
    attribute = _changed_attribute(before, after)
    others = [other for other in scene.things if other != before]
    said = telling(before, others, rng, must={attribute} - {"shape"})
    said = telling(after, scene.things, rng, must=said, extra=0.0)
    old, new = definite(before, said), indefinite(after, said)
    return pick(rng, _CONTRASTS).format(new=new, old=old)


def _changed_attribute(before: Thing, after: Thing) -> str:
    return next(a for a in (*ADJECTIVES, "shape") if getattr(before, a) != getattr(after, a))


def _new(
    thing: Thing,
    scene: Scene,
    rng: np.random.Generator,
    must: Sequence[str],
    options: Sequence[str],
) -> str:
    """An indefinite phrase that is not yet true of anything in the reference."""
    said = telling(thing, scene.things, rng, must=must, extra=0.5)
    return pick(rng, options).format(indefinite(thing, said))


_ADD_ORDERS = ("add {}", "add {}", "put {} in", "draw {} too", "there should also be {}")
_ADD_REPORTS = ("with {}", "also {}", "{} as well", "it has {} too", "with {} added")


def _added(change: ThingChange, scene: Scene, style: Style, rng: np.random.Generator) -> str:
    (thing,) = change.after
    said = telling(thing, scene.things, rng, must=_some_adjectives(rng), extra=0.2)
    phrase = indefinite(thing, said)
    if rng.random() < 0.3:
        where = f"{phrase} {position(thing.cells)}"
        options = ("add {}", "put {}") if style == "instruction" else ("{}", "with {}")
        return pick(rng, options).format(where)
    return pick(rng, _ADD_ORDERS if style == "instruction" else _ADD_REPORTS).format(phrase)


def _some_adjectives(rng: np.random.Generator) -> list[str]:
    chances = {"colour": 0.75, "size": 0.35, "texture": 0.3}
    return [adjective for adjective, chance in chances.items() if rng.random() < chance]


_REMOVE_ORDERS = (
    "remove {}",
    "take {} away",
    "take away {}",
    "leave out {}",
    "get rid of {}",
    "{} should go away",
)


def _removed(change: ThingChange, scene: Scene, style: Style, rng: np.random.Generator) -> str:
    (thing,) = change.before
    ref = refer(thing, scene, rng)
    if style == "instruction":
        return pick(rng, _REMOVE_ORDERS).format(ref)
    if rng.random() < 0.3:
        others = [other for other in scene.things if other != thing]
        return f"no {name(thing, telling(thing, others, rng))}"
    verb = "is" if thing.count == 1 else "are"
    options = (f"without {ref}", f"{ref} {verb} missing", f"{ref} {verb} gone")
    return pick(rng, options)


_MOVE_ORDERS = (
    "move {ref} to {to}",
    "move {ref} from {old} to {to}",
    "shift {ref} to {to}",
    "put {ref} {at}",
    "{ref} should be {at}",
)
_MOVE_REPORTS = ("{ref} {at}", "with {ref} {at}", "{ref} is {at}", "{ref} is {at} now")
_SWAP_ORDERS = (
    "swap {} and {}",
    "exchange {} and {}",
    "switch {} with {}",
    "let {} and {} trade places",
)
_SWAP_REPORTS = ("{} and {} have traded places", "{} and {} swapped", "{} and {} exchanged")


def _relationship(change: ThingChange, scene: Scene, style: Style, rng: np.random.Generator) -> str:
    refs = [refer(thing, scene, rng) for thing in change.before]
    if len(refs) == 2:
        return pick(rng, _SWAP_ORDERS if style == "instruction" else _SWAP_REPORTS).format(*refs)
    old, new = change.before[0].cells, change.after[0].cells
    options = _MOVE_ORDERS if style == "instruction" else _MOVE_REPORTS
    wording = pick(rng, options)
    return wording.format(ref=refs[0], old=spot(old), to=spot(new), at=position(new))


_NUMBERS = ("one", "two", "three")
_NUMBER_REPORTS = ("{}", "with {}", "there {verb} {}", "{} in the picture")


def _number(change: ThingChange, scene: Scene, style: Style, rng: np.random.Generator) -> str:
    (before,), (after,) = change.before, change.after
    said = telling(before, [other for other in scene.things if other != before], rng)
    wanted = f"{_NUMBERS[after.count - 1]} {name(after, said)}"
    if style == "description":
        verb = "is" if after.count == 1 else "are"
        return pick(rng, _NUMBER_REPORTS).format(wanted, verb=verb)
    present = _NUMBERS[before.count - 1]
    options = [f"{wanted} instead of {present}", f"make it {wanted}", f"show {wanted}"]
    difference = _NUMBERS[abs(after.count - before.count) - 1]
    if after.count > before.count:
        several = replace(before, cells=(0, 1))
        options.append(f"add {difference} more of {definite(several, said)}")
    else:
        options.append(f"leave only {wanted}")
        options.append(f"remove {difference} of {definite(before, said)}")
    return pick(rng, options)


_SPEAKERS = {
    "attribute": _attribute,
    "added": _added,
    "removed": _removed,
    "relationship": _relationship,
    "number": _number,
}
