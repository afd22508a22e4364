"""Where weights come from: the zoo, a local folder, or a hub, and one sentence if nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from cirlab.errors import UserError

ZOO = Path(__file__).parent.parent / "zoo"
ZOO_PREFIX = "zoo:"


def resolve_folder(name: str) -> str:
    """Turn `zoo:tiny_llm` into the folder it stands for; other names pass through.

    Raises:
        UserError: the zoo holds no such model.
    """
    if not name.startswith(ZOO_PREFIX):
        return name
    folder = ZOO / name.removeprefix(ZOO_PREFIX)
    if not folder.is_dir():
        held = sorted(path.name for path in ZOO.iterdir() if (path / "manifest.json").is_file())
        raise UserError(f"the zoo holds no model {name!r}; it holds {', '.join(held) or 'nothing'}")
    return str(folder)


@contextmanager
def weights_or_sentence(name: str, key: str) -> Iterator[None]:
    """Turn a library's many ways of failing to find weights into one sentence.

    Args:
        name: what was asked for.
        key: the YAML key that names it.

    Raises:
        UserError: the weights are neither in a local folder nor reachable.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    # transformers, open_clip and the hub raise subclasses of these; all of them mean that the
    # weights could not be read. Anything else is a defect and keeps its traceback.
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"weights {name!r} ({key}) are neither in a local folder nor reachable on a hub: "
            f"download them on a machine with a network and set {key} to their folder "
            f"(cause: {type(error).__name__}: {reason})"
        ) from error
