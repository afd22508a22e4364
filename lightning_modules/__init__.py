"""How each method learns and encodes: a file or a folder per method, readable beside its paper."""

from __future__ import annotations

from lightning_modules.answer_matching import AnswerThenMatch
from lightning_modules.blip import Blip, BlipFromScratch
from lightning_modules.chat_language_model import ChatLanguageModel, LLMFromScratch
from lightning_modules.chatir import ChatIR
from lightning_modules.clip import CLIP, ClipFromScratch
from lightning_modules.collm import CoLLM
from lightning_modules.dar import DAR
from lightning_modules.instructcir import InstructCIR
from lightning_modules.language_model import EmbeddingLanguageModel
from lightning_modules.painter import Painter, PainterFromScratch
from lightning_modules.picture_autoencoder import PictureAutoencoder
from lightning_modules.promptable import Promptable
from lightning_modules.token_labelling import TokenLabelling
from lightning_modules.vision_language_model import MLLMFromScratch, VisionLanguageModel

__all__ = [
    "CLIP",
    "DAR",
    "AnswerThenMatch",
    "Blip",
    "BlipFromScratch",
    "ChatIR",
    "ChatLanguageModel",
    "ClipFromScratch",
    "CoLLM",
    "EmbeddingLanguageModel",
    "InstructCIR",
    "LLMFromScratch",
    "MLLMFromScratch",
    "Painter",
    "PainterFromScratch",
    "PictureAutoencoder",
    "Promptable",
    "TokenLabelling",
    "VisionLanguageModel",
]
