"""An instruction LLM that answers chats in batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from cirlab.encoders.adapters import FourBit
from cirlab.encoders.fingerprint import fingerprint
from cirlab.encoders.llm import Dtype
from cirlab.encoders.names import resolve_folder, weights_or_sentence
from cirlab.encoders.special_tokens import without_special_tokens
from cirlab.errors import UserError

#: One message of a chat: {"role": "user" or "assistant", "content": text}.
Message = dict[str, str]
#: Stands in a chat to see whether a template shows what it is given.
_PROBE = "a red kite over a field"


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn.

    Attributes:
        temperature: of sampling; 0 takes the likeliest token each time.
        max_new_tokens: longest answer.
    """

    temperature: float = 0.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"the temperature is {self.temperature}; set it to 0 or more")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; set it to 1 or more")


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        finished: whether it came to its own end.
    """

    text: str
    finished: bool = True


class ChatModel(Protocol):
    """What is needed of a model that answers chats."""

    def identity(self) -> Mapping[str, Any]:
        """Tells models apart that may answer differently."""
        ...

    def length(self, chat: Sequence[Message]) -> int:
        """Tokens of a chat, up to where the answer begins."""
        ...

    def has_room(self, length: int, decoding: Decoding) -> bool:
        """Whether the longest answer fits behind a chat of so many tokens."""
        ...

    def replies(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
    ) -> list[Reply]:
        """Answers in the order of the chats; `seed` decides what is sampled."""
        ...


class InstructionLLM:
    """A causal language model, or the language half of an image-text-to-text model.

    Args:
        name: hub name, local folder or `zoo:name`.
        dtype: of the weights; "auto" keeps the file's.
        four_bit: 4-bit weights.
        device: where it runs.
        key: how the user has named the model, for errors.

    Raises:
        UserError: the weights cannot be read, or have no chat template that a text fits into.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: Dtype = "auto",
        four_bit: FourBit | None = None,
        device: str | torch.device = "cpu",
        key: str = "--model",
    ) -> None:
        self.name = name
        self.dtype, self.four_bit = dtype, four_bit
        folder = resolve_folder(name)
        with weights_or_sentence(name, key=key):
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            # Before the weights, which may take minutes.
            self._in_parts = _needs_parts(self.tokenizer, f"{name!r} ({key})")
            self.model: Any = _model(folder, dtype, four_bit, torch.device(device))
        # An answer follows its chat: padding in between would stand where words are expected.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": fingerprint(self.model.named_parameters()),
            "dtype": self.dtype,
            "four_bit": None if self.four_bit is None else asdict(self.four_bit),
        }

    def length(self, chat: Sequence[Message]) -> int:
        return len(self._ids(chat))

    def has_room(self, length: int, decoding: Decoding) -> bool:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit is None or length + decoding.max_new_tokens <= limit

    @torch.inference_mode()
    def replies(
        self, chats: Sequence[Sequence[Message]], decoding: Decoding, seed: int
    ) -> list[Reply]:
        batch = self.tokenizer.pad(
            {"input_ids": [self._ids(chat) for chat in chats]}, return_tensors="pt"
        ).to(self.model.device)
        configuration = self._configuration(decoding)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            tokens = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                generation_config=configuration,
            )
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        ends = torch.as_tensor(configuration.eos_token_id, device=new.device).reshape(-1)
        finished = torch.isin(new, ends).any(dim=1).tolist()
        return [Reply(text, end) for text, end in zip(texts, finished, strict=True)]

    def _ids(self, chat: Sequence[Message]) -> list[int]:
        # A template writes the beginning of the text itself.
        text = _rendered(self.tokenizer, chat, in_parts=self._in_parts)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _configuration(self, decoding: Decoding) -> Any:
        """The model's own ends, and nothing else of how it prefers to be sampled."""
        own = copy.deepcopy(self.model.generation_config)
        if own.eos_token_id is None:
            own.eos_token_id = self.tokenizer.eos_token_id
        sampled = decoding.temperature > 0
        own.update(
            do_sample=sampled,
            temperature=decoding.temperature if sampled else None,
            top_k=0 if sampled else None,
            top_p=None,
            repetition_penalty=None,
            num_beams=1,
            max_length=None,
            max_new_tokens=decoding.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return own


def named_device(name: str, key: str = "--device") -> torch.device:
    """The device of this name.

    Raises:
        UserError: it is not here.
    """
    try:
        # Also what has a known name may not be there.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"there is no device {name!r} here; set {key} to cpu or cuda") from error


def _model(
    folder: str, dtype: Dtype, four_bit: FourBit | None, device: torch.device
) -> PreTrainedModel:
    """The weights with their language modelling head, ready to answer."""
    is_causal = type(AutoConfig.from_pretrained(folder)) in MODEL_FOR_CAUSAL_LM_MAPPING
    loader = AutoModelForCausalLM if is_causal else AutoModelForImageTextToText
    quantised = {} if four_bit is None else {"quantization_config": four_bit.config()}
    model: PreTrainedModel = loader.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, **quantised
    )
    return model.eval()


def _needs_parts(tokenizer: PreTrainedTokenizerBase, named: str) -> bool:
    """Whether the chat template wants messages in parts, as those for pictures and words do.

    Args:
        tokenizer: the model's.
        named: the model and where it was named, for errors.

    Raises:
        UserError: there is no template, or it shows a text in neither way.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"the model {named} has no chat template; choose one that was trained to follow "
            "instructions"
        )
    chat: list[Message] = [{"role": "user", "content": _PROBE}]
    for in_parts in (False, True):
        try:
            if _PROBE in _rendered(tokenizer, chat, in_parts=in_parts):
                return in_parts
        except (TemplateError, TypeError):
            continue
    raise UserError(
        f"the chat template of the model {named} does not show what a user says; choose another "
        "model"
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], *, in_parts: bool
) -> str:
    said = [without_special_tokens(tokenizer, message["content"]) for message in chat]
    messages: list[dict[str, Any]] = [
        {**message, "content": [{"type": "text", "text": text}] if in_parts else text}
        for message, text in zip(chat, said, strict=True)
    ]
    # Templates of models that think aloud before they answer know this word; others do without.
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert isinstance(text, str)
    return text
