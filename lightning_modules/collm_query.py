"""CoLLM's query without this repository: what its export's model card shows."""

from __future__ import annotations

from cirlab.encoders.export_code import Snippet, quoted
from cirlab.encoders.llm import IMAGE_PLACEHOLDER, QueryTemplate

#: File of the adapter and the projection.
CONNECTOR = "connector.safetensors"


def query_snippet(template: QueryTemplate, *, width: int, dim: int) -> Snippet:
    """Lines that define `embed_query`, after the lines that load `llm` and its `tokens`.

    Args:
        template: of the query.
        width: of the language model.
        dim: of the vectors.
    """
    imports = (
        "import torch",
        "from safetensors.torch import load_file",
        "from torch import nn",
        "from torch.nn.functional import normalize",
    )
    body = QUERY.format(
        connector=CONNECTOR,
        width=width,
        dim=dim,
        placeholder=IMAGE_PLACEHOLDER,
        start=quoted(template(image=False, text=None)),
    )
    return Snippet(imports, body)


QUERY = '''\
connector = nn.ModuleDict({{
    "adapter": nn.Sequential(
        nn.Linear({dim}, {width}), nn.GELU(), nn.Linear({width}, {width})
    ),
    "projection": nn.Linear({width}, {dim}),
}})
connector.load_state_dict(load_file(folder / "{connector}"))
PLACEHOLDER = "{placeholder}"  # where the picture stands, one token


@torch.inference_mode()
def embed_query(image=None, text=None):
    """A PIL image, a text, or an image and how it is to change, to a unit vector (1, {dim})."""
    if image is None and not text:
        raise ValueError("embed_query takes an image, a text, or both")
    prompt = {start}
    prompt += f" Image: {{PLACEHOLDER}}" if image is not None else ""
    prompt += f" Text: {{text}}" if text else ""
    ids = tokens(prompt)
    picture = ids == tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    embedded = llm.get_input_embeddings()(ids.masked_fill(picture, 0))
    if image is not None:
        embedded[picture] = connector["adapter"](embed_image(image)).to(embedded.dtype)
    return normalize(connector["projection"](pooled(embedded).float()), dim=-1)
'''
