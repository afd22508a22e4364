"""What was learned, in the layouts that transformers, peft and open_clip load by themselves.

Every function here writes files and returns the Python that loads them without this repository
(`cirlab.encoders.export_code`); a method puts such snippets together for the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from cirlab.encoders.adapters import SECOND_ADAPTER
from cirlab.encoders.blip.checkpoint import is_checkpoint_file
from cirlab.encoders.blip.export import blip_loading
from cirlab.encoders.blip.tower import TimmTower
from cirlab.encoders.dual.blip import BlipEncoder
from cirlab.encoders.dual.encoder import DualEncoder
from cirlab.encoders.dual.open_clip_models import OpenClipEncoder
from cirlab.encoders.export_code import (
    BLIP_IMAGE,
    BLIP_TEXT,
    OPEN_CLIP_IMAGE,
    OPEN_CLIP_TEXT,
    Snippet,
    quoted,
)
from cirlab.encoders.names import resolve_folder
from cirlab.errors import UserError

#: peft's name of the adapters that are there first, and of a wrapped model's prefix.
FIRST_ADAPTER, PREFIX = "default", "base_model.model."
#: Weights that were learned beside the adapters, by transformers' names.
BESIDE = "beside_adapters.safetensors"
#: peft's own file names.
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Exported:
    """What a method has written, for the model card.

    Attributes:
        what: one or two sentences for people who do not know this repository.
        code: Python that loads it with `folder`, the path of the folder, and defines `embed_*`.
    """

    what: str
    code: str


def has_adapters(module: nn.Module) -> bool:
    """Whether any layer has LoRA."""
    return any(isinstance(layer, BaseTunerLayer) for layer in module.modules())


def check_merging(merged: bool, *, adapters: bool, four_bit: bool) -> None:
    """Refuse a merge that cannot be, before weights are read.

    Args:
        merged: whether it was asked for.
        adapters: whether the configuration has any.
        four_bit: whether the base weights are stored in 4 bits.

    Raises:
        UserError: there is nothing to merge, or nothing that it could be added to without loss.
    """
    if not merged:
        return
    if not adapters:
        raise UserError(
            "merged is true, but the configuration has no adapters to merge; leave merged out, "
            "the weights are whole"
        )
    if four_bit:
        raise UserError(
            "merged is true, but llm.four_bit holds the base weights in 4 bits, and a sum that is "
            "rounded to them is another model; leave merged out, adapters are loaded over that base"
        )


# ---- language models ----------------------------------------------------------------------


def save_language_model(
    model: nn.Module,
    root: Path,
    part: str,
    *,
    base: str,
    merged: bool,
    auto_class: str = "AutoModel",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Snippet:
    """Write what was learned of a transformers model, LoRA around it or not.

    Adapters and what was learned beside them, unless they are to be merged; all weights of a model
    that was trained without adapters; nothing of one that was not trained. Merging takes the
    adapters out of `model` itself.

    Args:
        model: a peft model, or a plain one.
        root: folder of the export.
        part: folder within it, "" for itself.
        base: what the configuration calls the base weights.
        merged: add the adapters to the base weights.
        auto_class: of transformers, that loads the base.
        dtype: that the configuration loads it in.
        trust_remote_code: run code that lies beside the base weights.

    Returns:
        Lines that load it as `llm`.
    """
    folder, here, there = root / part, _path(part), quoted(_location(base))
    folder.mkdir(exist_ok=True)
    kind = "auto" if dtype == "auto" else f"torch.{dtype}"
    options = ['dtype="auto"' if kind == "auto" else f"dtype={kind}"]
    options += ["trust_remote_code=True"] if trust_remote_code else []
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        learned = any(parameter.requires_grad for parameter in model.parameters())
        if learned:
            model.save_pretrained(folder)
        return _loading(auto_class, here if learned else there, options, four_bit=_four_bit(model))
    if merged:
        model.merge_and_unload().save_pretrained(folder)
        return _loading(auto_class, here, options)
    adapters = _save_adapters(model, folder, here, base)
    four_bit = _four_bit(model.get_base_model())
    return _loading(auto_class, there, options, adapters, four_bit)


def _save_adapters(model: PeftModel, folder: Path, where: str, base: str) -> Snippet:
    """Write adapters, and what was learned beside them; lines that put both onto `llm`."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = _location(base)
    # "auto" would ask the hub whether the vocabulary has grown; it never does here.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    # peft's form to be filled in; the card of the whole folder says what there is to say.
    (folder / "README.md").unlink()
    lines = []
    beside = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): value.detach().cpu().contiguous()
        for name, value in model.named_parameters()
        if value.requires_grad and ".lora_" not in name
    }
    imports = ["from peft import PeftModel"]
    if beside:
        save_file(beside, folder / BESIDE)
        imports.append("from safetensors.torch import load_file")
        lines.append(f'llm.load_state_dict(load_file({where} / "{BESIDE}"), strict=False)')
    lines.append(f"llm = PeftModel.from_pretrained(llm, {where})")
    if SECOND_ADAPTER in model.peft_config:
        lines.append(f'llm.load_adapter({where} / "{SECOND_ADAPTER}", "{SECOND_ADAPTER}")')
        # The wrapper takes one adapter at a time, the tuner within it several.
        lines.append(f'llm.base_model.set_adapter(["{FIRST_ADAPTER}", "{SECOND_ADAPTER}"])')
    return Snippet(tuple(imports), "\n".join(lines))


def _loading(
    auto_class: str,
    source: str,
    options: Sequence[str],
    adapters: Snippet | None = None,
    four_bit: Any = None,
) -> Snippet:
    """Lines that load a model, and its adapters.

    Args:
        auto_class: of transformers.
        source: folder or name, as Python.
        options: of the call, as Python.
        adapters: lines that follow.
        four_bit: quantisation of the base, transformers' object.
    """
    imports = ["import torch", f"from transformers import {auto_class}"]
    lines = [f"llm = {auto_class}.from_pretrained({source}, {', '.join(options)})"]
    if four_bit is not None:
        imports.append("from transformers import BitsAndBytesConfig")
        lines[0] = lines[0][:-1] + ", quantization_config=four_bit)"
        lines.insert(0, _four_bit_line(four_bit))
    if four_bit is not None and adapters is not None:
        imports.append("from peft import prepare_model_for_kbit_training")
        lines.append("llm = prepare_model_for_kbit_training(llm, use_gradient_checkpointing=False)")
    if adapters is not None:
        imports += adapters.imports
        lines.append(adapters.body)
    return Snippet(tuple(imports), "\n".join([*lines, "llm.eval()"]))


def _four_bit(model: nn.Module) -> Any:
    return getattr(getattr(model, "config", None), "quantization_config", None)


def _four_bit_line(config: Any) -> str:
    """The quantisation of a model as the call that makes it."""
    options = {
        "load_in_4bit": "True",
        "bnb_4bit_quant_type": repr(config.bnb_4bit_quant_type),
        "bnb_4bit_use_double_quant": str(config.bnb_4bit_use_double_quant),
        "bnb_4bit_compute_dtype": str(config.bnb_4bit_compute_dtype),
    }
    if config.llm_int8_skip_modules:
        options["llm_int8_skip_modules"] = repr(list(config.llm_int8_skip_modules))
    inside = "".join(f"    {key}={value},\n" for key, value in options.items())
    return f"four_bit = BitsAndBytesConfig(\n{inside})"


# ---- dual encoders ------------------------------------------------------------------------


def save_dual_encoder(encoder: DualEncoder, root: Path, part: str, *, merged: bool) -> Snippet:
    """Write what was learned of a dual encoder whose image tower may have LoRA.

    Adapters, unless they are to be merged; everything where towers were trained as they are;
    nothing of an encoder that was not trained. Merging takes the adapters out of `encoder` itself.

    Args:
        encoder: of either library.
        root: folder of the export.
        part: folder within it, "" for itself.
        merged: add the adapters to the tower's weights.

    Returns:
        Lines that load it as `clip` and define `embed_image`.
    """
    folder, tower = root / part, encoder.image_tower
    adapters = has_adapters(tower)
    learned = any(parameter.requires_grad for parameter in encoder.parameters())
    lines: tuple[str, ...] = ()
    if adapters and not merged and _is_of_file(encoder):
        raise UserError(
            f"adapters are loaded over a base by its name, but {encoder.name} is a file of BLIP's "
            "own code, which other libraries do not load; export it with merged (make: MERGED=1)"
        )
    if adapters and not merged:
        _save_tower_adapters(tower, folder, encoder.name)
        place = "clip.visual" if isinstance(encoder, OpenClipEncoder) else "clip.vision_model"
        lines = (f"PeftModel.from_pretrained({place}, {_path(part)})",)
    if adapters and merged:
        _merge(tower)
    whole = (adapters and merged) or (learned and not adapters) or _is_of_file(encoder)
    if whole:
        encoder.save(folder)
    return _dual_loading(encoder, part if whole else None, lines)


def _is_of_file(encoder: DualEncoder) -> bool:
    """Whether the weights lie where no other library would load them from."""
    return isinstance(encoder, BlipEncoder) and is_checkpoint_file(encoder.source)


def _save_tower_adapters(tower: nn.Module, folder: Path, base: str) -> None:
    """Adapters of a module that peft has not wrapped, as it would have written them."""
    folder.mkdir(exist_ok=True)
    weights = get_peft_model_state_dict(tower)
    state = {f"{PREFIX}{name}": value.cpu().contiguous() for name, value in weights.items()}
    save_file(state, folder / ADAPTER_WEIGHTS)
    configs: Any = tower.peft_config
    config = configs[FIRST_ADAPTER]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _merge(tower: nn.Module) -> None:
    """Add adapters to the layers they belong to, in place."""
    layers = {n: layer for n, layer in tower.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in layers.items():
        layer.merge()
        tower.set_submodule(name, layer.get_base_layer())


def _dual_loading(encoder: DualEncoder, part: str | None, lines: tuple[str, ...]) -> Snippet:
    """Lines that load an encoder from a part of the export, or else from where its base lies."""
    imports = ["import torch", "from torch.nn.functional import normalize"]
    imports += ["from peft import PeftModel"] if lines else []
    if isinstance(encoder, BlipEncoder):
        name = _path(part) if part is not None else quoted(_location(encoder.source))
        loading = blip_loading(name, timm=isinstance(encoder.image_tower, TimmTower))
        imports += ["from transformers import AutoProcessor", *loading.imports]
        load = [loading.body, f"processor = AutoProcessor.from_pretrained({name})"]
        read = BLIP_IMAGE
    else:
        assert isinstance(encoder, OpenClipEncoder)
        imports.append("import open_clip")
        name = _open_clip_arguments(encoder) if part is None else _open_clip_folder(part)
        load = [f"clip, _, preprocess = open_clip.create_model_and_transforms({name})"]
        read = OPEN_CLIP_IMAGE
    return Snippet(tuple(imports), "\n".join([*load, *lines, "clip.eval()", "\n", read]))


def dual_text(encoder: DualEncoder) -> Snippet:
    """Lines that define `embed_text`, for a dual encoder that is itself the export."""
    if isinstance(encoder, BlipEncoder):
        length = encoder.processor.tokenize.max_length
        return Snippet(("import torch",), BLIP_TEXT.format(max_length=length))
    return open_clip_text()


def open_clip_text() -> Snippet:
    """Lines that define `embed_text`, for an open_clip model that is itself the export."""
    tokenizer = f"tokenizer = open_clip.get_tokenizer({_open_clip_folder('')})"
    imports = ("import open_clip", "import torch", "from torch.nn.functional import normalize")
    return Snippet(imports, f"{tokenizer}\n\n\n{OPEN_CLIP_TEXT}")


def _open_clip_folder(part: str) -> str:
    return f'f"local-dir:{{folder}}/{part}"' if part else 'f"local-dir:{folder}"'


def _open_clip_arguments(encoder: OpenClipEncoder) -> str:
    if encoder.source.startswith("local-dir:"):
        folder = Path(encoder.source.removeprefix("local-dir:")).resolve()
        return quoted(f"local-dir:{folder}")
    if encoder.pretrained is None:
        return quoted(encoder.source)
    return f"{quoted(encoder.source)}, pretrained={quoted(encoder.pretrained)}"


# ---- names --------------------------------------------------------------------------------


def _location(name: str) -> str:
    """A hub name as it is, a local folder or the zoo's by its absolute path."""
    folder = resolve_folder(name)
    return str(Path(folder).resolve()) if Path(folder).is_dir() else folder


def _path(part: str) -> str:
    """A folder within the export, as Python."""
    return f'folder / "{part}"' if part else "folder"
