"""Pictures and words to what a multimodal LLM reads, in the loader's workers.

The model's own processor and chat template do the work, whatever its layout. A batch becomes
groups of prompts of similar length: little padding is computed, and each group is a whole input
of the model, so that a group can be encoded by itself (`cirlab.chunking`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image
import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from cirlab.encoders.special_tokens import without_special_tokens
from cirlab.errors import UserError

#: Stands for the picture in a prompt.
IMAGE_MARK = "<image>"
#: Stands for the query's or caption's words in a prompt.
TEXT_MARK = "{text}"

#: Characters of a prompt or text in an error message.
_SHOWN = 100

#: What is done with a text that makes its prompt longer than the limit.
LongText = Literal["refuse", "cut"]


@dataclass(frozen=True)
class Prompt:
    """One user message to be read, and embedded at its end.

    Attributes:
        template: the message; `<image>` stands for the picture, `{text}` for the words.
        text: these words.
        image: this picture; None where the template has none.
    """

    template: str
    text: str = ""
    image: PIL.Image.Image | None = None

    def __post_init__(self) -> None:
        marks, pictures = self.template.count(IMAGE_MARK), int(self.image is not None)
        if marks != pictures:
            raise UserError(
                f"the prompt {self.template!r} has {marks} {IMAGE_MARK} for {pictures} pictures; "
                f"write {IMAGE_MARK} where the picture stands, and nowhere else"
            )

    def with_text(self, text: str) -> Prompt:
        """The same with other words."""
        return Prompt(self.template, text, self.image)


def check_marks(templates: Mapping[str, str], marks: Mapping[str, Collection[str]]) -> None:
    """Refuse templates that lack a mark, hold it twice, or hold one that is not theirs.

    Args:
        templates: by the key under which the user gives them.
        marks: of `<image>` and `{text}`, those that each must hold once, by the same key.

    Raises:
        UserError: it names the first template that does not.
    """
    for key, template in templates.items():
        for mark in (IMAGE_MARK, TEXT_MARK):
            if template.count(mark) != (mark in marks[key]):
                times = "once" if mark in marks[key] else "not at all"
                raise UserError(
                    f"model.init_args.{key} is {template!r}; it must hold {mark} {times}"
                )


@dataclass(frozen=True)
class MLLMProcessor:
    """The picklable half of a multimodal LLM.

    Attributes:
        processor: transformers' own, with the padding side that is asked for.
        max_length: tokens of a prompt, picture and template included.
        group_size: prompts that are padded to one length.
        long_text: whether a longer prompt is refused, or loses words at the end of its text.
            What belongs to the picture or the template is never cut.
        options: of the processor, e.g. {"size": {"shortest_edge": 3136, "longest_edge": 401408}}.
    """

    processor: ProcessorMixin
    max_length: int
    group_size: int = 16
    long_text: LongText = "refuse"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """{"groups": inputs of the model, "order": (B,), "cut": ()}, the last two int64.

        Prompts with and without a picture are never in one group. "order" tells where the result of
        each prompt lies, "cut" how many texts lost words.

        Raises:
            UserError: a prompt is longer than `max_length`, or has no picture token.
        """
        lengths = [self._length(prompt) for prompt in prompts]
        pictured = [prompt.image is not None for prompt in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: (not pictured[i], lengths[i]))
        runs = _runs(by_length, pictured, self.group_size)
        read = [self.tensors([prompts[row] for row in rows]) for rows in runs]
        return {
            "groups": [inputs for inputs, _ in read],
            "order": torch.tensor(by_length).argsort(),
            "cut": torch.tensor(sum(cut for _, cut in read)),
        }

    def tensors(self, prompts: Sequence[Prompt]) -> tuple[dict[str, torch.Tensor], int]:
        """Inputs of the model for prompts of one kind, and how many of them lost words.

        Args:
            prompts: all with a picture, or all without one.
        """
        inputs = self._tensors(prompts)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        excess = [length - self.max_length for length in lengths]
        if max(excess) <= 0:
            return inputs, 0
        if self.long_text == "refuse":
            worst = max(range(len(prompts)), key=excess.__getitem__)
            raise self._too_long(prompts[worst], lengths[worst])
        shorter = [self._shorter(*row) for row in zip(prompts, excess, strict=True)]
        inputs, _ = self.tensors(shorter)
        return inputs, sum(over > 0 for over in excess)

    def render(self, prompt: Prompt, reply: str | None = None) -> str:
        """The prompt as one string, by the model's chat template.

        Args:
            prompt: the user's message.
            reply: the assistant's; None leaves the place where it would begin.
        """
        words = without_special_tokens(self.tokenizer, prompt.text)
        asked = content(prompt.with_text(words))
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        if reply is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
        return self.chat(messages, add_generation_prompt=reply is None)

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Messages as one string, by the model's chat template."""
        text = self.processor.apply_chat_template(messages, tokenize=False, **options)
        assert isinstance(text, str)
        # What a template writes as beginning of the text, the tokenizer writes again.
        begin = self.tokenizer.bos_token
        return text.removeprefix(begin) if begin and self._adds_begin else text

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        return tokenizer

    @property
    def _adds_begin(self) -> bool:
        return self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id

    def _tensors(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        images = [prompt.image for prompt in prompts if prompt.image is not None]
        options = dict(self.options) if images else {}
        inputs = self.processor(
            text=[self.render(prompt) for prompt in prompts],
            images=images or None,
            padding=True,
            return_tensors="pt",
            **options,
        )
        return dict(inputs)

    def _length(self, prompt: Prompt) -> int:
        """Tokens of a prompt, near enough to sort by."""
        words = len(self.tokenizer(prompt.text)["input_ids"]) if prompt.text else 0
        if prompt.image is None:
            return words
        size = (prompt.image.height, prompt.image.width)
        return words + _image_tokens(self.processor, size, self.options)

    def _shorter(self, prompt: Prompt, excess: int) -> Prompt:
        """The prompt without so many of its text's last tokens."""
        if excess <= 0:
            return prompt
        ids = self.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        if excess >= len(ids):
            raise self._too_long(prompt, self.max_length + excess)
        shorter = str(self.tokenizer.decode(ids[:-excess], skip_special_tokens=True))
        # Another cut of the words may have as many tokens as before.
        if len(shorter) >= len(prompt.text):
            shorter = prompt.text[: -max(1, excess)]
        return prompt.with_text(shorter)

    def _too_long(self, prompt: Prompt, length: int) -> UserError:
        """What to do about a prompt of so many tokens."""
        limit, pictured = self.max_length, " with its picture" if prompt.image is not None else ""
        bare = int(self._tensors([prompt.with_text("")])["attention_mask"].sum())
        # A text of no words at all would be another question.
        least = bare + bool(prompt.text)
        if self.long_text == "refuse" and least <= limit:
            return UserError(
                f"the prompt {_shown(prompt.template)} has {length} tokens{pictured} and the text "
                f"{_shown(prompt.text)}, more than llm.max_length {limit}; raise llm.max_length "
                f"to at least {length}, or set llm.long_text to cut"
            )
        least = length if self.long_text == "refuse" else max(least, limit + 1)
        wordless = " before any text" if TEXT_MARK in prompt.template else ""
        smaller = (
            ", or make pictures smaller (llm.processor_options) if the model takes smaller ones"
        )
        return UserError(
            f"the prompt {_shown(prompt.template)} has {bare} tokens{pictured}{wordless}, too many "
            f"for llm.max_length {limit}; raise llm.max_length to at least {least}"
            f"{smaller if pictured else ''}"
        )


def content(prompt: Prompt) -> list[dict[str, Any]]:
    """The parts of a user message as chat templates take them."""
    parts: list[dict[str, Any]] = []
    before, mark, after = prompt.template.partition(IMAGE_MARK)
    for piece in (before, mark, after):
        if piece == IMAGE_MARK:
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece.replace(TEXT_MARK, prompt.text)})
    return parts


def _shown(text: str) -> str:
    """As it is written, and not too long for a sentence."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


def _runs(order: Sequence[int], kinds: Sequence[bool], size: int) -> list[list[int]]:
    """Consecutive rows of one kind, at most `size` of them."""
    runs: list[list[int]] = []
    for row in order:
        if runs and len(runs[-1]) < size and kinds[runs[-1][-1]] == kinds[row]:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _image_tokens(
    processor: ProcessorMixin, size: tuple[int, int], options: Mapping[str, Any]
) -> int:
    """Tokens of a picture of this height and width; the same for all where nothing tells."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:
        return 0
    return int(count(image_sizes=[size], **options)["num_image_tokens"][0])
