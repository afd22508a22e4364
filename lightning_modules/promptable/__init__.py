"""Promptable embeddings: images are looked at for what a query asks about.

Paper: arXiv 2505.15877, over VLM2Vec (arXiv 2410.05160). One general vector of an image leaves
attributes out that are not what it shows first; with a question behind the picture, a multimodal
LLM's vector tells them. Queries are plain text. Gallery images are looked at

- `general`: without a question, once;
- `whole`: with the query's question, picture and question in one forward each;
- `prefix`: the same vectors, but the picture is encoded once and each question runs its own tokens
  alone (`cirlab.encoders.mllm.prompted_images`);
- `linear`: without a question, once; the query is moved by a linear map that a few images looked at
  both ways tell (the paper's approximation, `cirlab.retrieval.linear`).

Trained contrastively on images with and without questions, as VLM2Vec is with instructions.
"""

from __future__ import annotations

from lightning_modules.promptable.keeping import PrefixBudget
from lightning_modules.promptable.module import Promptable
from lightning_modules.promptable.question_maps import LinearSample
from lightning_modules.promptable.templates import PromptableTemplates

__all__ = ["LinearSample", "PrefixBudget", "Promptable", "PromptableTemplates"]
