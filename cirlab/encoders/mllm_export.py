"""A multimodal LLM that embeds, as transformers and peft load it by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from cirlab.encoders.export import save_language_model
from cirlab.encoders.export_code import Snippet, quoted
from cirlab.encoders.mllm import EmbeddingMLLM
from cirlab.encoders.mllm_processor import IMAGE_MARK, TEXT_MARK

#: File of the learned linear head, where there is one.
PROJECTION = "projection.safetensors"


def save_mllm(encoder: EmbeddingMLLM, root: Path, *, merged: bool) -> Snippet:
    """Write what was learned, and the processor with its chat template.

    Args:
        encoder: adapted or not; merging takes the adapters out of it.
        root: folder of the export.
        merged: add adapters to the base weights.

    Returns:
        Lines that load `llm`, `backbone`, `processor` and, where there is a head, `projection`.
    """
    settings = encoder.settings
    adapters = settings.lora is not None and not merged
    load = save_language_model(
        encoder.model,
        root,
        "",
        base=encoder.name,
        merged=merged,
        auto_class="AutoModelForImageTextToText",
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    encoder.processor.processor.save_pretrained(root)
    trust = ", trust_remote_code=True" if settings.trust_remote_code else ""
    lines = [
        # Without the head that makes words of it.
        f"backbone = {'llm.get_base_model()' if adapters else 'llm'}.base_model",
        f"processor = AutoProcessor.from_pretrained(folder{trust})",
    ]
    imports = [*load.imports, "from transformers import AutoProcessor"]
    if encoder.projection is not None:
        head = encoder.projection.weight.detach().cpu().contiguous()
        save_file({"weight": head}, root / PROJECTION)
        imports.append("from safetensors.torch import load_file")
        lines.append(f'projection = load_file(folder / "{PROJECTION}")["weight"]')
    return Snippet(tuple(imports), "\n".join([load.body, *lines]))


def prompt_reader(encoder: EmbeddingMLLM, prompts: Mapping[str, str]) -> Snippet:
    """Lines that define `embed`, after those of `save_mllm`.

    Args:
        encoder: says how the last layer's states become a vector.
        prompts: templates of an "image", of a "text", and of an image with a text ("composed").
    """
    last = encoder.settings.pooling == "last"
    body = READER.format(
        prompts="".join(f"    {quoted(k)}: {quoted(v)},\n" for k, v in prompts.items()),
        image=IMAGE_MARK,
        text=TEXT_MARK,
        options=", **OPTIONS" if encoder.settings.processor_options else "",
        constants=f"OPTIONS = {encoder.settings.processor_options!r}  # of pictures\n"
        if encoder.settings.processor_options
        else "",
        pooled="hidden[:, -1]" if last else "hidden.mean(dim=1)",
        head=" @ projection.T" if encoder.projection is not None else "",
    )
    return Snippet(("import torch", "from torch.nn.functional import normalize"), body)


READER = '''\
PROMPTS = {{
{prompts}}}
{constants}

def ask(image, text):
    """The prompt by the model's chat template."""
    kind = "text" if image is None else "composed" if text else "image"
    before, mark, after = PROMPTS[kind].partition("{image}")
    content = [{{"type": "text", "text": before.replace("{text}", text or "")}}] if before else []
    content += [{{"type": "image"}}] if mark else []
    content += [{{"type": "text", "text": after.replace("{text}", text or "")}}] if after else []
    message = {{"role": "user", "content": content}}
    prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    begin = processor.tokenizer.bos_token
    again = begin and processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    return prompt.removeprefix(begin) if again else prompt


@torch.inference_mode()
def embed(image=None, text=None):
    """A PIL image, a text, or an image with an instruction, to a unit vector (1, D)."""
    if image is None:
        inputs = processor(text=[ask(None, text)], return_tensors="pt")
    else:
        images = [image.convert("RGB")]
        inputs = processor(text=[ask(image, text)], images=images, return_tensors="pt"{options})
    hidden = backbone(**inputs, use_cache=False).last_hidden_state
    return normalize(({pooled}{head}).float(), dim=-1)
'''
