"""Where weights come from: the zoo, a local folder, or a hub, and one sentence if nowhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants, get_session, is_offline_mode
from safetensors import SafetensorError

from cirlab.errors import UserError

ZOO = Path(__file__).parent.parent / "zoo"
ZOO_PREFIX = "zoo:"
#: Tells what adapters are, in the folder that peft saves them in.
ADAPTERS = "adapter_config.json"
#: What torch and transformers say of weights that another configuration belongs to.
_MISMATCHES = ("size mismatch", "loading state_dict", "ignore_mismatched_sizes")
#: Seconds in which a connection to the hub must stand, as huggingface_hub itself asks for.
_CONNECT_SECONDS = 10.0
#: Seconds between the two times that the hub is looked for: a name server may fail once.
_PAUSE = 1.0


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

    Without a network the hub's cache alone is searched, at once.

    Args:
        name: what was asked for.
        key: the YAML key that names it.

    Raises:
        UserError: the weights are neither in a local folder nor reachable, or they lie in one
            and cannot be read, or do not fit their configuration.
    """
    try:
        with _cache_alone_if_unreachable(name):
            yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"weights {name!r} ({key}) need a package that is not installed ({reason}); install "
            "it, or set attention to sdpa if it is that of flash_attention_2"
        ) from error
    # transformers, open_clip and the hub raise subclasses of these; all of them mean that the
    # weights could not be read. Anything else is a defect and keeps its traceback.
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"weights {name!r} ({key}) {_trouble(name, key, reason)} "
            f"(cause: {type(error).__name__}: {reason})"
        ) from error


def _trouble(name: str, key: str, reason: str) -> str:
    """What is wrong with weights that did not load, and what to do."""
    if any(mark in reason for mark in _MISMATCHES):
        return (
            "do not fit the configuration beside them: their shapes or names differ from the "
            "model's that it describes; take both from the same model"
        )
    if (Path(name) / ADAPTERS).is_file():
        return (
            "are adapters alone, which belong to other weights; merge the two (peft's "
            f"merge_and_unload), save them with their processor, and set {key} to that folder"
        )
    if _is_here(name):
        return f"lie in a local folder but cannot be read; copy them again, or set {key} to another"
    return (
        "are neither in a local folder nor reachable on a hub: download them on a machine with a "
        f"network and set {key} to their folder"
    )


def _is_here(name: str) -> bool:
    """Whether a name stands for a folder of this machine."""
    return name.startswith(ZOO_PREFIX) or Path(name.rpartition(":")[2]).is_dir()


@contextmanager
def _cache_alone_if_unreachable(name: str) -> Iterator[None]:
    """Within the block huggingface_hub is offline if its hub cannot be reached.

    It would otherwise ask six times for each file that is not in its cache, which takes half a
    minute on a machine without a network, and tells of every time.
    """
    if is_offline_mode() or _is_here(name) or _hub_is_reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _hub_is_reachable() -> bool:
    """Whether a connection can be made, with the proxies and certificates of the hub's client.

    What comes back does not matter, nor how long it takes.
    """
    for pause in (_PAUSE, 0.0):
        try:
            get_session().head(constants.ENDPOINT, timeout=_CONNECT_SECONDS)
        # The library beneath that client is another one in other versions; its names are the same.
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if "ConnectTimeout" in kinds:
                return False
            if "ConnectError" not in kinds:
                return True
            time.sleep(pause)
        else:
            return True
    return False
