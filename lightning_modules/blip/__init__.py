"""BLIP for retrieval: contrast against slow encoders, and matching of hard pairs.

Li et al., arXiv 2201.12086, sections 3 and 4.1; figures of the training from
github.com/salesforce/BLIP, train_retrieval.py and its configurations. Image and text are searched
by their vectors (ITC); the best of a search are put in order again by the encoder that reads both
together (ITM). From scratch it also learns to describe pictures (LM), as in BLIP's pretraining, and
makes the zoo's tiny BLIP.
"""

from __future__ import annotations

from lightning_modules.blip.module import Blip
from lightning_modules.blip.settings import BlipFromScratch, Contrast

__all__ = ["Blip", "BlipFromScratch", "Contrast"]
