"""An instruction LLM chooses each query's prompt, once for each text; a file keeps the choices.

The arm of Promptable embeddings (arXiv 2505.15877) that needs no annotation of a query's facet.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from cirlab.chat.llm import Decoding, InstructionLLM, named_device
from cirlab.encoders.adapters import FourBit
from cirlab.encoders.llm import Dtype
from cirlab.errors import UserError
from cirlab.prompts.asking import Wording, ask, lettered
from cirlab.prompts.choice_cache import ChoiceCache
from cirlab.prompts.choosers import PromptChooser
from cirlab.prompts.registry import read_registry
from cirlab.records import Query

log = logging.getLogger(__name__)


class LLMChoice(PromptChooser):
    """An instruction LLM is offered the questions of a registry and chooses by the query's text.

    It is loaded when a text comes that the cache does not hold, and leaves the memory afterwards.
    An answer that names no option counts as the first one, which of the named registries is nothing
    in particular; such answers stand in the cache.

    Args:
        llm: hub name, local folder or zoo model, with a chat template.
        cache: .json file of the choices, made and added to; `ChosenPrompts` reads it, too.
        registry: gpt, human or world, or the path of a YAML file of the form of
            cirlab/prompts/gpt.yaml. Its distractors are offered as well.
        wording: what is said to the LLM; null: the paper's words.
        dtype: of the weights; "auto" keeps the file's.
        four_bit: 4-bit weights; null keeps all bits.
        batch_size: texts that are asked about at once.
        max_new_tokens: longest answer.
        device: where the LLM runs, e.g. cpu; null: the process's GPU, if there is one.

    Raises:
        UserError: the registry or an argument is of no use, or the cache was made otherwise.
    """

    def __init__(
        self,
        llm: str,
        cache: str,
        registry: str = "gpt",
        wording: Wording | None = None,
        dtype: Dtype = "auto",
        four_bit: FourBit | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 8,
        device: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size of LLMChoice is {batch_size}; set it to 1 or more")
        if Path(cache).suffix != ".json":
            raise UserError(f"the cache of LLMChoice is {cache!r}; name a .json file")
        self.llm, self.dtype, self.four_bit, self.device = llm, dtype, four_bit, device
        if device is not None:
            named_device(device, key="prompts.init_args.device")
        self.path = Path(cache)
        self.options = lettered(read_registry(registry).options)
        self.wording = wording or Wording()
        self.decoding = Decoding(max_new_tokens=max_new_tokens)
        self.batch_size = batch_size
        # Before any work.
        self._cache()

    def __call__(self, queries: Sequence[Query]) -> list[str | None]:
        texts = [_text(query) for query in queries]
        letters = self._letters(texts)
        return [self.options[letters[text]] for text in texts]

    def _letters(self, texts: Sequence[str]) -> Mapping[str, str]:
        """The letter of every text and of further ones, by text."""
        cache = self._cache()
        lacking = [text for text in dict.fromkeys(texts) if text not in cache.letters]
        if lacking:
            self._ask(lacking, cache)
        return cache.letters

    def _ask(self, texts: Sequence[str], cache: ChoiceCache) -> None:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        llm = InstructionLLM(
            self.llm, dtype=self.dtype, four_bit=self.four_bit, device=device, key="llm"
        )
        cache.made_by("weights", llm.identity()["weights"])
        batches = ask(llm, texts, self.options, self.wording, self.decoding, self.batch_size)
        count = -(-len(texts) // self.batch_size)
        for answers in track(batches, description="prompts", total=count):
            cache.add(answers)
        unclear = sum(text in cache.not_understood for text in texts)
        told = "%s chose prompts for %d texts; %d answers named no option and count as %s (%s)"
        first = next(iter(self.options))
        log.info(told, self.llm, len(texts), unclear, first, self.options[first])
        # The memory is the embedder's from now on.
        del llm, batches
        torch.cuda.empty_cache()

    def _cache(self) -> ChoiceCache:
        settings: dict[str, Any] = {
            "llm": self.llm,
            "dtype": self.dtype,
            "four_bit": None if self.four_bit is None else asdict(self.four_bit),
            "max_new_tokens": self.decoding.max_new_tokens,
            **asdict(self.wording),
        }
        cache = ChoiceCache(self.path, settings, self.options)
        cache.read()
        return cache


def _text(query: Query) -> str:
    text = query.text.strip()
    if not text:
        raise UserError(
            f"query {query.id!r} has no text by which an LLM could choose its prompt; choose "
            "another way to choose prompts"
        )
    return text
