"""What methods share whose images and texts all pass through one multimodal LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch.cli import OptimizerCallable

from cirlab.chunking import check_chunk_size
from cirlab.encoders.export import check_merging
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.settings import MLLMSettings
from lightning_modules.base import RetrievalModule
from lightning_modules.schedule import Schedule


class MultimodalRetrieval(RetrievalModule):
    """A multimodal LLM with adapters, which encodes gallery and queries alike.

    Args:
        llm: the multimodal LLM and how it is adapted.
        chunk_size: prompts encoded at once in training, so that the batch may be of any size
            (GradCache); None keeps what every prompt computed.
        optimizer: builds the optimiser from the trainable parameters.
        schedule: how the learning rate moves; None keeps it constant.
    """

    learning_arguments = RetrievalModule.learning_arguments | {
        "loss",
        "chunk_size",
        "llm.attention",
        "llm.gradient_checkpointing",
        "llm.group_size",
        "llm.padding_side",
    }

    def __init__(
        self,
        llm: MLLMSettings,
        chunk_size: int | None,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
    ) -> None:
        super().__init__(optimizer, schedule)
        check_chunk_size(chunk_size)
        self.llm_settings = llm
        self.chunk_size = chunk_size
        self.llm: EmbeddingMLLM | None = None

    def configure_model(self) -> None:
        if self.llm is not None:
            return
        self.llm = EmbeddingMLLM(self.llm_settings, self.chunk_size, self.weights_device)
        self.on_weights_read()
        # Libraries hand their models out in eval mode, and Lightning leaves modes as they are.
        self.llm.train(not self.llm_settings.frozen)
        check_chunk_size(self.chunk_size, self.llm)

    def on_weights_read(self) -> None:
        """What else a method needs of its model, once."""

    @property
    def _llm(self) -> EmbeddingMLLM:
        assert self.llm is not None, "configure_model has not run"
        return self.llm

    def frozen_base(self) -> dict[str, str]:
        return {"llm": self._llm.name}

    def frozen_settings(self) -> dict[str, Any]:
        llm = asdict(self.llm_settings)
        return {f"llm.{name}": llm[name] for name in ("dtype", "four_bit", "tune_connector")}

    @staticmethod
    def limits(arguments: Mapping[str, Any]) -> frozenset[str]:
        # Where words are cut, vectors depend on how many are left.
        cuts = arguments.get("llm", {}).get("long_text") == "cut"
        return frozenset() if cuts else frozenset({"llm.max_length"})

    def check_export(self, merged: bool) -> None:
        llm = self.llm_settings
        adapters, four_bit = llm.lora is not None, llm.four_bit is not None
        check_merging(merged, adapters=adapters, four_bit=four_bit)
