"""What images are looked at for: questions by facet, and who chooses among them."""

from __future__ import annotations

from cirlab.prompts.asking import Wording
from cirlab.prompts.choosers import FixedPrompt, NoPrompt, OwnPrompt, PromptByFacet, PromptChooser
from cirlab.prompts.chosen import ChosenPrompts
from cirlab.prompts.llm_choice import LLMChoice
from cirlab.prompts.registry import Registry, read_registry

__all__ = [
    "ChosenPrompts",
    "FixedPrompt",
    "LLMChoice",
    "NoPrompt",
    "OwnPrompt",
    "PromptByFacet",
    "PromptChooser",
    "Registry",
    "Wording",
    "read_registry",
]
