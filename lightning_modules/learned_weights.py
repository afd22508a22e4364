"""Checkpoints of what is learned: what they hold, and which of them fit a module.

Pretrained weights that stay frozen are in none of them. A checkpoint names those it was trained on
and carries their fingerprint instead, so that it is never put upon others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from cirlab.checkpoints import is_checkpoint, read_checkpoint
from cirlab.command.checkpoint_config import CONFIG, check_settings
from cirlab.encoders.fingerprint import fingerprint
from cirlab.errors import UserError

log = logging.getLogger(__name__)

#: Keys of a checkpoint under which the names and the fingerprint of the frozen weights lie.
FROZEN_BASE, FROZEN_FINGERPRINT = "frozen_base", "frozen_fingerprint"


@dataclass(frozen=True)
class Layout:
    """What a method's weights are, for its checkpoints.

    Attributes:
        learned: state-dict names of what is learned.
        shapes: of all weights, by state-dict name.
        frozen_fingerprint: short hash of all weights that checkpoints do not hold.
    """

    learned: frozenset[str]
    shapes: Mapping[str, torch.Size]
    frozen_fingerprint: str

    def misfits(self, state: Mapping[str, torch.Tensor]) -> list[str]:
        """Names that are missing from a checkpoint's weights, unknown, or of another shape."""
        shapes = self.shapes
        return sorted(
            {name for name in self.learned if name not in state}
            | {name for name in state if name not in shapes}
            | {n for n, value in state.items() if n in shapes and value.shape != shapes[n]}
        )


class LearnedWeights(L.LightningModule):
    """A module whose checkpoints hold what it learns, and nothing of what stays frozen."""

    def __init__(self) -> None:
        super().__init__()
        # Checkpoints hold only what is learned; `on_load_checkpoint` checks that all of it is
        # there.
        self.strict_loading = False
        self._layout: Layout | None = None
        self._to_load: str | None = None

    def frozen_base(self) -> dict[str, str]:
        """Names of the pretrained weights that checkpoints do not hold, by role."""
        return {}

    def frozen_settings(self) -> dict[str, Any]:
        """Arguments that decide which weights are frozen and how they are held, by dotted key."""
        return {}

    def frozen_fingerprint(self) -> str:
        """Short hash of all weights that checkpoints do not hold."""
        return self.layout().frozen_fingerprint

    # ---- what there is ------------------------------------------------------------------

    def learned_names(self) -> set[str]:
        """State-dict names of what is learned.

        Trainable parameters, the buffers of the modules that own one (running statistics), and
        adapters that an earlier stage has learned.
        """
        names: set[str] = set()
        for prefix, module in self.named_modules():
            own = dict(module.named_parameters(recurse=False))
            dot = f"{prefix}." if prefix else ""
            if ".lora_" in dot:
                names |= {dot + name for name in own}
            if any(p.requires_grad for p in own.values()):
                names |= {dot + name for name, p in own.items() if p.requires_grad}
                names |= {dot + name for name, _ in module.named_buffers(recurse=False)}
        return names

    def layout(self) -> Layout:
        """Names, shapes and fingerprint of the weights, as they were before any sharding."""
        if self._layout is not None:
            return self._layout
        state, learned = self.state_dict(), self.learned_names()
        return Layout(
            learned=frozenset(learned & state.keys()),
            shapes={name: value.shape for name, value in state.items()},
            frozen_fingerprint=fingerprint((n, v) for n, v in state.items() if n not in learned),
        )

    def keep_layout(self) -> None:
        """To be called before the weights are sharded, which hides what they are."""
        self._layout = self.layout()

    def on_fit_start(self) -> None:
        # Later they may look otherwise: bitsandbytes packs 4-bit weights anew where they are first
        # read on a CPU.
        self.keep_layout()

    # ---- checkpoints --------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learned = self.layout().learned
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name in learned
        }
        checkpoint[FROZEN_BASE] = self.frozen_base()
        checkpoint[FROZEN_FINGERPRINT] = self.frozen_fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_learned(checkpoint, source="the checkpoint")

    def will_load(self, checkpoint: Mapping[str, Any]) -> None:
        """Hear what will be loaded once the weights are built; `start_from` may have less to do."""
        self._to_load = checkpoint.get(FROZEN_FINGERPRINT)

    def start_from(self, pattern: str) -> None:
        """Copy what another run of this architecture has learned (an earlier stage).

        Nothing is read where a checkpoint follows that holds all of it, as most do: it learned on
        the very weights that are frozen now.

        Args:
            pattern: path of a checkpoint, or a pattern of which the newest one is taken.

        Raises:
            UserError: there is none, or it does not fit.
        """
        if self._to_load is not None and self._to_load == self.frozen_fingerprint():
            return
        path = newest(pattern)
        checkpoint = read_checkpoint(path)
        self.check_learned(checkpoint, source=f"init_from {path}")
        log.info("starting from %s", path)
        self.load_state_dict(checkpoint["state_dict"], strict=False)

    def check_learned(self, checkpoint: dict[str, Any], source: str) -> None:
        """Refuse a checkpoint that does not hold all that this module learns.

        Raises:
            UserError: another method's or another frozen base, or missing, unknown or differently
                shaped weights.
        """
        layout, own = self.layout(), type(self).__name__
        wrong = layout.misfits(checkpoint["state_dict"])
        config = checkpoint.get(CONFIG)
        method = config["model"]["class_path"] if config else own
        # A method that has the very weights of another may well start from them.
        if wrong and method.rpartition(".")[2] != own:
            raise UserError(
                f"{source} is a checkpoint of {method}, whose weights do not fit {own}; name a "
                f"checkpoint of {own}"
            )
        base = self.frozen_base()
        _check_base(base, checkpoint.get(FROZEN_BASE, {}), source)
        made_on, present = checkpoint.get(FROZEN_FINGERPRINT), layout.frozen_fingerprint
        other_base = made_on not in (None, present)
        if config and (wrong or other_base):
            check_settings(source, config, self.frozen_settings())
        if wrong:
            raise UserError(
                f"{source} is of another architecture: {len(wrong)} weights do not fit "
                f"{own} as configured, {wrong[0]!r} first; use the configuration that it was "
                "trained with"
            )
        if other_base:
            names = " and ".join(sorted(base.values())) or "the frozen weights"
            raise UserError(
                f"{source} was trained on other weights by the name of {names} (fingerprint "
                f"{made_on}, now {present}); bring those back, or train anew on the present ones"
            )


def _check_base(ours: Mapping[str, str], theirs: Mapping[str, str], source: str) -> None:
    """Refuse a checkpoint over frozen weights of other names, by role."""
    for role, name in ours.items():
        if role in theirs and theirs[role] != name:
            raise UserError(
                f"{source} was trained on {role} {theirs[role]!r}, but the configuration names "
                f"{name!r}; use the {role} that it was trained on"
            )


def newest(pattern: str) -> Path:
    """The checkpoint of this name, or the one written last of those that fit a pattern.

    Raises:
        UserError: there is none.
    """
    at = Path(pattern)
    found = [
        path for path in Path(at.anchor).glob(str(at.relative_to(at.anchor))) if is_checkpoint(path)
    ]
    if not found:
        raise UserError(
            f"init_from {pattern} is missing; train it first, name another one, or set it to null "
            "to start without"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
