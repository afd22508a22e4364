"""Dialogues to captions: after each round an LLM writes all that is known into one caption.

As DAR does (arXiv 2501.15379, section 3): what is searched, and drawn, is then a caption and no
conversation. The model sees the caption that a dialogue began with and what was said since, never
the image. Round 0 is that caption as it is.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from cirlab import distributed
from cirlab.chat.llm import ChatModel, Decoding, InstructionLLM, Message, Reply, named_device
from cirlab.dialogue.rewrite_cache import RewriteCache, Text, key_of
from cirlab.dialogue.rewrite_prompt import RewritePrompt, read_rewrite_prompt
from cirlab.encoders.adapters import FourBit
from cirlab.encoders.llm import Dtype
from cirlab.errors import UserError

log = logging.getLogger(__name__)

#: The texts of a dialogue up to a round: the caption first.
History = tuple[str, ...]

#: Histories among which those of like length are brought together.
WINDOW = 1024
#: What a model may write before its caption: "New caption:", "Description:".
_LABEL = re.compile(r"^(?:(?:new|final|rewritten|updated) )?(?:caption|description)\s*:\s*", re.I)
#: Straight and typographic.
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"


class Flaw(StrEnum):
    """What is wrong with a rewriting. Where no text came of it, the former one stands."""

    EMPTY = "empty"
    NO_ROOM = "dialogue too long for the model"
    CUT_OFF = "cut off at the longest answer"


@dataclass(frozen=True)
class Rewriting:
    """How dialogues are rewritten.

    Attributes:
        prompt: what the model is told.
        max_new_tokens: longest caption. The likeliest words are taken.
        batch_size: rounds that are rewritten at once. A run may continue with another one.
    """

    prompt: RewritePrompt
    max_new_tokens: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; set it to 1 or more")
        # Before any work.
        _ = self.decoding

    @property
    def decoding(self) -> Decoding:
        """The likeliest words, so that the same dialogue is always rewritten alike."""
        return Decoding(max_new_tokens=self.max_new_tokens)

    def settings(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the texts, besides the dialogues.

        Args:
            model: its identity, or what is known of it.
        """
        return {"model": model, **asdict(self.prompt), "max_new_tokens": self.max_new_tokens}


@dataclass
class Tally:
    """What the rewriting of some dialogues has come to.

    Attributes:
        rounds: that were rewritten, those with flaws included.
        repeated: of these, rounds whose text is that of the round before, by its words.
        flaws: how often something was wrong, by what it was.
    """

    rounds: int = 0
    repeated: int = 0
    flaws: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """What a person wants to know."""
        kept = sum(self.flaws[flaw] for flaw in (Flaw.EMPTY, Flaw.NO_ROOM))
        yield f"{kept:,} of {self.rounds:,} rounds have no text and keep that of the round before"
        for flaw, count in self.flaws.most_common():
            yield f"  {flaw}: {count:,}"
        yield f"{self.repeated:,} rounds say the same as the round before"

    def as_dict(self) -> dict[str, Any]:
        """For a file, flaws in the order of their names."""
        flaws = dict(sorted(self.flaws.items()))
        return {"rounds": self.rounds, "repeated": self.repeated, "flaws": flaws}


class Rewriter:
    """Rewrites dialogues, each history once: a file keeps what was written.

    Args:
        load: gives the model, when a history comes that the file does not hold.
        known: what is known of the model's identity before it is loaded.
        path: of the file, `.jsonl`; its settings are kept beside it.
        how: prompt and decoding.
    """

    def __init__(
        self, load: Callable[[], ChatModel], known: Mapping[str, Any], path: Path, how: Rewriting
    ) -> None:
        self.load, self.known, self.how = load, dict(known), how
        self.cache = RewriteCache(path)

    def check(self) -> None:
        """Refuse, before any work, a file that cannot be written or was made otherwise.

        Raises:
            UserError: it is so.
        """
        self.cache.check(self.how.settings(self.known))

    def __call__(
        self, histories: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> list[str]:
        """One text for each history, on every process of a run, which call this together.

        Args:
            histories: of each dialogue the caption, and a text "question? answer" for each round
                so far.
            progress: shows how far it is; None shows nothing.

        Raises:
            UserError: the file cannot be written or was made otherwise, or not one of the texts
                that were asked for is of use.
        """
        texts, tally = self.with_tally(histories, progress)
        if tally.flaws and distributed.rank() == 0:
            log.warning("%s: %s", self.cache.path, "; ".join(map(str.strip, tally.lines())))
        return texts

    def with_tally(
        self, histories: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> tuple[list[str], Tally]:
        """The same, with what was wrong."""
        asked = [tuple(history) for history in histories]
        return distributed.from_first(lambda: self._texts(asked, progress))

    def dialogues(
        self, dialogues: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> tuple[list[list[str]], Tally]:
        """Whole dialogues: the caption, and a text for each round in place of what was said in it.

        Args:
            dialogues: the caption and a text for each round.
            progress: shows how far it is; None shows nothing.

        Raises:
            UserError: as when called.
        """
        histories = [each[:n] for each in dialogues for n in range(1, len(each) + 1)]
        texts, tally = self.with_tally(histories, progress)
        rest = iter(texts)
        return [[next(rest) for _ in each] for each in dialogues], tally

    def _texts(
        self, histories: Sequence[History], progress: Progress | None
    ) -> tuple[list[str], Tally]:
        # Those before a round are needed, too: what has no text of its own has that of the former.
        needed = dict.fromkeys(
            history[:n] for history in histories for n in range(2, len(history) + 1)
        )
        written = self._written(list(needed), progress)
        resolved: dict[History, str] = {}
        tally = Tally()
        for history in sorted(needed, key=len):
            former = history[0] if len(history) == 2 else resolved[history[:-1]]
            found = written[history]
            resolved[history] = found.text or former
            tally.rounds += 1
            if found.flaw is not None:
                tally.flaws[found.flaw] += 1
            elif _words(found.text) == _words(former):
                tally.repeated += 1
        return [resolved.get(history, history[0]) for history in histories], tally

    def _written(
        self, histories: Sequence[History], progress: Progress | None
    ) -> Mapping[History, Text]:
        """What the file says of each history, after what it lacks was written."""
        keys = {history: key_of(history) for history in histories}
        known = self.cache.read(self.how.settings(self.known))
        lacking = {history for history in histories if keys[history] not in known}
        if lacking:
            known = self._ask(self.load(), histories, keys, progress)
            # The memory is the encoder's from now on.
            torch.cuda.empty_cache()
        return {history: known[keys[history]] for history in histories}

    def _ask(
        self,
        model: ChatModel,
        histories: Sequence[History],
        keys: Mapping[History, str],
        progress: Progress | None,
    ) -> Mapping[str, Text]:
        chats = {h: self.how.prompt.messages(h[0], h[1:]) for h in histories}
        with self.cache.writing(self.how.settings(model.identity())) as known:
            task = None
            if progress is not None:
                task = progress.add_task("rounds", total=len(histories))
                progress.update(task, completed=sum(keys[h] in known for h in histories))
            for batch in _batches(histories, chats, model, self.how.batch_size):
                # The same batches whatever is done: a text does not depend on where a run was
                # interrupted, not even where a model's rounding depends on what is beside it.
                lacking = [h for h in batch if keys[h] not in known]
                if not lacking:
                    continue
                found = self._batch(model, [chats[h] for h in batch])
                texts = dict(zip(batch, found, strict=True))
                self.cache.add({keys[h]: texts[h] for h in lacking})
                self._check_heard(known, model)
                if progress is not None and task is not None:
                    progress.update(task, advance=len(lacking))
            return dict(known)

    def _batch(self, model: ChatModel, chats: Sequence[Sequence[Message]]) -> list[Text]:
        decoding = self.how.decoding
        fits = [model.has_room(model.length(chat), decoding) for chat in chats]
        asked = [chat for chat, fit in zip(chats, fits, strict=True) if fit]
        replies = iter(model.replies(asked, decoding, seed=0) if asked else [])
        return [_read(next(replies)) if fit else Text("", Flaw.NO_ROOM) for fit in fits]

    def _check_heard(self, known: Mapping[str, Text], model: ChatModel) -> None:
        """Refuse to go on with a model of which not a word was heard."""
        if any(each.text for each in known.values()):
            return
        asked = sum(each.flaw != Flaw.NO_ROOM for each in known.values())
        if asked:
            raise UserError(
                f"the model {model.identity().get('name')} has rewritten none of {asked} "
                "rounds; choose another model or prompt, or let it write more"
            )


class LLMRewriter(Rewriter):
    """Rewrites dialogues by an instruction LLM, which is loaded when the file lacks something.

    Args:
        llm: hub name, local folder or `zoo:name`, with a chat template.
        cache: .jsonl file of what was written, made and added to.
        prompt: full (for any instruction LLM), bare (for those tuned to rewrite, as
            zoo:tiny_rewriter), or a YAML file of their form.
        max_new_tokens: longest caption.
        batch_size: rounds rewritten at once.
        dtype: of the weights; "auto" keeps the file's.
        four_bit: 4-bit weights; null keeps all bits.
        device: where the LLM runs, e.g. cpu; null: the process's GPU, if there is one.

    Raises:
        UserError: an argument is of no use.
    """

    def __init__(
        self,
        llm: str,
        cache: str,
        prompt: str = "full",
        max_new_tokens: int = 128,
        batch_size: int = 16,
        dtype: Dtype = "auto",
        four_bit: FourBit | None = None,
        device: str | None = None,
    ) -> None:
        known = {
            "name": llm,
            "dtype": dtype,
            "four_bit": None if four_bit is None else asdict(four_bit),
        }
        how = Rewriting(read_rewrite_prompt(prompt), max_new_tokens, batch_size)
        if device is not None:
            named_device(device, key="device of the rewriter")
        super().__init__(partial(_load, llm, dtype, four_bit, device), known, Path(cache), how)


def _load(name: str, dtype: Dtype, four_bit: FourBit | None, device: str | None) -> InstructionLLM:
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return InstructionLLM(name, dtype=dtype, four_bit=four_bit, device=where, key="llm")


def cleaned(text: str) -> str:
    """A caption without labels, quotation marks and spare blanks around it."""
    plain = " ".join(text.split())
    while (shorter := _LABEL.sub("", _unquoted(plain))) != plain:
        plain = shorter
    return plain if _words(plain) else ""


def _unquoted(text: str) -> str:
    """Without a pair of quotation marks around all of it."""
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return text[1:-1].strip()
    return text


def _read(reply: Reply) -> Text:
    text = cleaned(reply.text)
    if not text:
        return Text("", Flaw.EMPTY)
    return Text(text, None if reply.finished else Flaw.CUT_OFF)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _batches(
    histories: Sequence[History],
    chats: Mapping[History, Sequence[Message]],
    model: ChatModel,
    size: int,
) -> Iterator[list[History]]:
    """Histories that are rewritten together, of like length.

    The longest first, so that memory runs out soon if it does.
    """
    for start in range(0, len(histories), WINDOW):
        window = histories[start : start + WINDOW]
        order = sorted(range(len(window)), key=lambda i: (-model.length(chats[window[i]]), i))
        for first in range(0, len(order), size):
            yield [window[i] for i in order[first : first + size]]
