"""What images are looked at for: questions by facet, and who chooses among them."""

from __future__ import annotations

from cirlab.prompts.choosers import FixedPrompt, NoPrompt, OwnPrompt, PromptByFacet, PromptChooser
from cirlab.prompts.registry import Registry, read_registry

__all__ = [
    "FixedPrompt",
    "NoPrompt",
    "OwnPrompt",
    "PromptByFacet",
    "PromptChooser",
    "Registry",
    "read_registry",
]
