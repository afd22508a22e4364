"""Python that loads an exported BLIP by transformers alone."""

from __future__ import annotations

from cirlab.encoders.export_code import BLIP_IMAGE, BLIP_TEXT, Snippet

_MATCH = '''\
@torch.inference_mode()
def match(image, text):
    """How sure it is that a PIL image and a text belong together, in [0, 1]."""
    pixels = processor.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    read = tokens(text)
    read["input_ids"][:, 0] = {first}  # reads the text together with an image
    hidden = clip.text_encoder(
        **read, encoder_hidden_states=clip.vision_model(pixel_values=pixels).last_hidden_state
    ).last_hidden_state
    return clip.itm_head(hidden[:, 0]).softmax(dim=-1)[:, 1].item()
'''


def blip_snippet(first: int, max_length: int) -> Snippet:
    """Lines that define `embed_image`, `embed_text` and `match`.

    Args:
        first: id of the token that begins a text which is read together with an image.
        max_length: tokens of a text.
    """
    imports = (
        "import torch",
        "from torch.nn.functional import normalize",
        "from transformers import AutoProcessor, BlipForImageTextRetrieval",
    )
    load = (
        "clip = BlipForImageTextRetrieval.from_pretrained(folder).eval()\n"
        "processor = AutoProcessor.from_pretrained(folder)"
    )
    text = BLIP_TEXT.format(max_length=max_length)
    match = _MATCH.format(first=first)
    return Snippet(imports, f"{load}\n\n\n{BLIP_IMAGE}\n\n{text}\n\n{match}")
