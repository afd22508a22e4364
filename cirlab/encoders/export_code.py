"""Python that loads an export without this repository, as the model card shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cirlab.encoders.llm import Pooling


@dataclass(frozen=True)
class Snippet:
    """Lines of Python, and the imports that they need."""

    imports: tuple[str, ...]
    body: str


def script(*snippets: Snippet) -> str:
    """The snippets as one script: all imports, `folder`, then the bodies in order."""
    lines = {line for snippet in snippets for line in snippet.imports}
    head = ["from pathlib import Path", "", *_imports(lines), "", 'folder = Path(".")  # this one']
    text = "\n".join(head)
    for snippet in snippets:
        # Lines follow lines at once, and functions after two empty ones.
        between = "\n\n\n" if text.rpartition("\n")[2].startswith(" ") else "\n"
        text += between + snippet.body.rstrip("\n")
    return text + "\n"


def quoted(text: str) -> str:
    """A string as Python has it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _imports(lines: set[str]) -> list[str]:
    """Import lines in order, those from one module as one."""
    names: dict[str, list[str]] = {}
    for line in sorted(line for line in lines if line.startswith("from ")):
        module, _, name = line.removeprefix("from ").partition(" import ")
        names.setdefault(module, []).append(name)
    plain = sorted(line for line in lines if line.startswith("import "))
    return [
        *plain,
        *(f"from {module} import {', '.join(found)}" for module, found in names.items()),
    ]


def text_reader(part: str, max_length: int, pooling: Pooling) -> Snippet:
    """Lines that define `tokens` and `pooled`, for a language model `llm`.

    Args:
        part: where the tokenizer lies, as Python.
        max_length: tokens, the end token included.
        pooling: of the last layer's states.
    """
    read = "hidden[:, -1]" if pooling == "last" else "hidden.mean(dim=1)"
    body = TEXT_READER.format(part=part, kept=max_length - 1, read=read)
    return Snippet(("import torch", "from transformers import AutoTokenizer"), body)


TEXT_READER = '''\
tokenizer = AutoTokenizer.from_pretrained({part})


def tokens(text):
    """Token ids, closed by the end token, (1, L)."""
    ids = tokenizer(text)["input_ids"]
    ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    return torch.tensor([[*ids[:{kept}], tokenizer.eos_token_id]])


def pooled(embedded):
    """The last layer's states of token embeddings (1, L, H), pooled to (1, H)."""
    hidden = llm(inputs_embeds=embedded).last_hidden_state
    return {read}
'''

#: Of a language model without images.
EMBED_TEXT = '''\
@torch.inference_mode()
def embed_text(text):
    """A text to a unit vector, (1, H). The instruction stands before queries, not targets."""
    embedded = llm.get_input_embeddings()(tokens(text))
    return normalize(pooled(embedded).float(), dim=-1)
'''

OPEN_CLIP_IMAGE = '''\
@torch.inference_mode()
def embed_image(image):
    """A PIL image to a unit vector, (1, D)."""
    pixels = preprocess(image.convert("RGB"))[None]
    return normalize(clip.encode_image(pixels).float(), dim=-1)
'''

OPEN_CLIP_TEXT = '''\
@torch.inference_mode()
def embed_text(text):
    """A text to a unit vector, (1, D)."""
    return normalize(clip.encode_text(tokenizer([text])).float(), dim=-1)
'''

#: Longest text in tokens to be filled in.
BLIP_TEXT = '''\
def tokens(text):
    """Token ids and mask of a text, each (1, L)."""
    options = {{"truncation": True, "max_length": {max_length}, "return_tensors": "pt"}}
    read = processor.tokenizer(text, **options)
    return {{name: read[name] for name in ("input_ids", "attention_mask")}}


@torch.inference_mode()
def embed_text(text):
    """A text to a unit vector, (1, D)."""
    hidden = clip.text_encoder(**tokens(text)).last_hidden_state
    return normalize(clip.text_proj(hidden[:, 0]).float(), dim=-1)
'''

BLIP_IMAGE = '''\
@torch.inference_mode()
def embed_image(image):
    """A PIL image to a unit vector, (1, D)."""
    pixels = processor.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    hidden = clip.vision_model(pixel_values=pixels).last_hidden_state
    return normalize(clip.vision_proj(hidden[:, 0]).float(), dim=-1)
'''
