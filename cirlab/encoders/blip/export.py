"""Python that loads an exported BLIP by transformers alone, or with timm for its image tower."""

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


_TIMM = """\
class Tower(torch.nn.Module):
    '''A network of timm's as BLIP's image tower: the mean of its last map, then its cells.'''

    def __init__(self, architecture, model_args, grid):
        super().__init__()
        self.network = timm.create_model(architecture, num_classes=0, **model_args)
        self.grid = grid

    def forward(self, pixel_values):
        last = self.network.forward_features(pixel_values)
        cells = last if self.grid is None else adaptive_avg_pool2d(last, self.grid)
        mean = last.mean(dim=(2, 3))
        return BaseModelOutput(torch.cat([mean[:, None], cells.flatten(2).mT], dim=1))


config = BlipConfig.from_pretrained({folder})
vision = config.vision_config
config.vision_config = BlipVisionConfig(hidden_size=vision.hidden_size, num_hidden_layers=0)
clip = BlipForImageTextRetrieval(config)
clip.vision_model = Tower(vision.architecture, vision.model_args, vision.grid)
weights = load_file(Path({folder}) / "model.safetensors")
decoder = "text_decoder."  # may lie beside it
clip.load_state_dict({{k: v for k, v in weights.items() if not k.startswith(decoder)}})
clip.eval()\
"""


def blip_loading(folder: str, timm: bool) -> Snippet:
    """Lines that load a BLIP as `clip`.

    Args:
        folder: where it lies, as Python.
        timm: whether its image tower is a network of timm's, which transformers' class has not.
    """
    transformers = "from transformers import BlipForImageTextRetrieval"
    if not timm:
        load = f"clip = BlipForImageTextRetrieval.from_pretrained({folder}).eval()"
        return Snippet((transformers,), load)
    imports = (
        "import timm",
        "import torch",
        "from safetensors.torch import load_file",
        "from torch.nn.functional import adaptive_avg_pool2d",
        "from transformers import BlipConfig",
        transformers,
        "from transformers import BlipVisionConfig",
        "from transformers.modeling_outputs import BaseModelOutput",
    )
    return Snippet(imports, _TIMM.format(folder=folder))


def blip_snippet(first: int, max_length: int, timm: bool) -> Snippet:
    """Lines that define `embed_image`, `embed_text` and `match`.

    Args:
        first: id of the token that begins a text which is read together with an image.
        max_length: tokens of a text.
        timm: whether its image tower is a network of timm's.
    """
    loading = blip_loading("folder", timm)
    imports = (
        *loading.imports,
        "import torch",
        "from torch.nn.functional import normalize",
        "from transformers import AutoProcessor",
    )
    load = f"{loading.body}\nprocessor = AutoProcessor.from_pretrained(folder)"
    text = BLIP_TEXT.format(max_length=max_length)
    match = _MATCH.format(first=first)
    return Snippet(imports, f"{load}\n\n\n{BLIP_IMAGE}\n\n{text}\n\n{match}")
