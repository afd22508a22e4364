"""What is printed: the sentences of this repository, and of libraries what matters."""

from __future__ import annotations

import logging
import warnings

#: What the packages of this repository say is for the user; libraries speak when it matters.
PACKAGES = ("cirlab", "lightning_modules", "datamodules", "callbacks")


def quiet_libraries() -> None:
    """Log this repository's sentences as they are, and no library's but warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning about its own insides, the folder of a resumed run, frozen towers, which are in eval
    # mode because their running statistics must not move, and short trials.
    messages = (
        ".*LeafSpec.*",
        # peft asks transformers by an old name.
        ".*is_gradient_checkpointing.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from .*",
        ".*module\\(s\\) in eval mode at the start of training.*",
        ".*is smaller than the logging interval.*",
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
