"""The parts of a multimodal LLM, whatever its layout calls them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from cirlab.errors import UserError

#: Everything but the language model's own layers: an image tower and its connector keep their
#: weights, whatever they are called.
OUTSIDE_LANGUAGE_MODEL = r"(?!.*\blanguage_model\.).*"
#: Parts that stay in their own precision where the language model is in 4 bits.
NEVER_QUANTISED = ["model.vision_tower", "model.visual", "model.multi_modal_projector", "lm_head"]


def language_model(model: PreTrainedModel) -> nn.Module:
    """The decoder, without its head."""
    found = getattr(model.base_model, "language_model", None)
    if found is None:
        raise UserError(
            f"{type(model).__name__} has no part called language_model; use a model of LLaVA's or "
            "Qwen-VL's layout"
        )
    assert isinstance(found, nn.Module)
    return found


def image_tower(model: PreTrainedModel) -> Callable[..., Any] | None:
    """What makes the language model's tokens of pixels; None where the model takes pixels only."""
    backbone = model.base_model
    if "mm_encoder_outputs" not in signature(backbone.forward).parameters:
        return None
    # Its type is lost in transformers' modules.
    found: Any = backbone.get_image_features
    assert callable(found)
    return found


def connector(model: PreTrainedModel) -> nn.Module:
    """What leads from the image tower to the language model.

    Raises:
        UserError: this model has none of a known name.
    """
    for name in ("multi_modal_projector", "visual.merger"):
        try:
            return model.base_model.get_submodule(name)
        except AttributeError:
            continue
    raise UserError(
        f"{type(model).__name__} has no connector of a known name; set llm.tune_connector to false"
    )
