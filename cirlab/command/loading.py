"""A checkpoint's weights in a method, where no trainer loads them: exports and chats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cirlab.checkpoints import read_checkpoint


class Loadable(Protocol):
    """What is asked of a method; see `lightning_modules.learner.Learner`."""

    def configure_model(self) -> None: ...
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def eval(self) -> Any: ...


def load_method(
    method: Loadable, checkpoint: Path | None, convert: Callable[[Any], Any] = lambda method: method
) -> dict[str, Any]:
    """Build a method's weights and read a checkpoint into them, as an evaluation does.

    Args:
        method: as the configuration describes it, without weights; in evaluation mode afterwards.
        checkpoint: its path; None leaves the weights as they are before training.
        convert: brings the weights to the precision that they were trained in.

    Returns:
        What the checkpoint holds; empty without one.

    Raises:
        UserError: the checkpoint does not fit the method.
    """
    method.configure_model()
    convert(method)
    held: dict[str, Any] = {}
    if checkpoint is not None:
        held = read_checkpoint(checkpoint)
        method.on_load_checkpoint(held)
        method.load_state_dict(held["state_dict"], strict=False)
    method.eval()
    return held
