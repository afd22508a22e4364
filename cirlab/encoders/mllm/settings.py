"""Which multimodal LLM a method reads with, and how it is adapted: the section `llm` of a YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cirlab.encoders.adapters import FourBit, Lora
from cirlab.encoders.llm import Attention, Dtype, Pooling
from cirlab.encoders.mllm.processor import LongText
from cirlab.errors import UserError

PaddingSide = Literal["left", "right"]


@dataclass
class MLLMSettings:
    """The multimodal LLM and how it is adapted.

    Attributes:
        name: hub name, local folder or `zoo:name`.
        lora: adapters of the language model; null trains every weight of it unless `frozen`.
        four_bit: 4-bit base weights of the language model; needs `lora` or `frozen`.
        frozen: train nothing of it.
        tune_connector: train what leads from the image tower to the language model; the tower
            itself is never trained.
        gradient_checkpointing: compute each layer again in the backward pass instead of keeping
            what it computed.
        dtype: of the base weights; "auto" keeps the file's.
        attention: transformers' implementation of it.
        pooling: "last" takes the last token, "mean" averages.
        projection: dimensions of a learned linear head; null compares the last layer's states
            themselves.
        padding_side: null keeps the tokenizer's own. Vectors are the same under either.
        max_length: tokens of a prompt, the picture's included.
        long_text: refuse a longer one, or cut words from the end of its text.
        group_size: prompts padded to one length, where no `chunk_size` is set.
        chat_template: Jinja template, or a file that holds one; null takes the model's own.
        processor_options: of the model's processor, e.g. {size: {shortest_edge: 3136,
            longest_edge: 401408}} for Qwen2-VL, which are pixels of a picture.
        trust_remote_code: run code that lies beside the weights.
    """

    name: str
    lora: Lora | None = None
    four_bit: FourBit | None = None
    frozen: bool = False
    tune_connector: bool = False
    gradient_checkpointing: bool = False
    dtype: Dtype = "float32"
    attention: Attention = "sdpa"
    pooling: Pooling = "last"
    projection: int | None = None
    padding_side: PaddingSide | None = None
    max_length: int = 1024
    long_text: LongText = "refuse"
    group_size: int = 16
    chat_template: str | None = None
    processor_options: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "group_size", "projection"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"llm.{name} is {getattr(self, name)}; set it to 1 or more")
        if self.four_bit is not None and self.lora is None and not self.frozen:
            raise UserError(
                "llm.four_bit stores weights that cannot be trained; set llm.lora, or llm.frozen"
            )
