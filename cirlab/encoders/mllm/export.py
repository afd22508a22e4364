"""A multimodal LLM that embeds, as transformers and peft load it by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from cirlab.encoders.export import save_language_model
from cirlab.encoders.export_code import Snippet, quoted
from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK

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
    settings = encoder.settings
    options = settings.processor_options
    body = READER.format(
        prompts="".join(f"    {quoted(k)}: {quoted(v)},\n" for k, v in prompts.items()),
        image=IMAGE_MARK,
        text=TEXT_MARK,
        constants=f"OPTIONS = {options!r}  # of pictures\n" if options else "",
        max_length=settings.max_length,
        options=", **OPTIONS" if options else "",
        too_long=(CUT if settings.long_text == "cut" else REFUSE).rstrip(),
        pooled="hidden[:, -1]" if settings.pooling == "last" else "hidden.mean(dim=1)",
        head=" @ projection.T" if encoder.projection is not None else "",
    )
    return Snippet(("import torch", "from torch.nn.functional import normalize"), body)


READER = '''\
PROMPTS = {{
{prompts}}}
{constants}MAX_LENGTH = {max_length}  # tokens of a prompt, the picture's included
SPECIAL = [str(t) for t in processor.tokenizer.added_tokens_decoder.values() if t.special]


def words(text):
    """The text with no special token in it: "<image>" becomes "< image>"."""
    for token in sorted(SPECIAL, key=len, reverse=True):
        text = text.replace(token, f"{{token[0]}} {{token[1:]}}")
    return text


def ask(image, text):
    """The prompt by the model's chat template."""
    kind = "text" if image is None else "composed" if text else "image"
    before, mark, after = PROMPTS[kind].partition("{image}")
    content = [{{"type": "text", "text": before.replace("{text}", words(text))}}] if before else []
    content += [{{"type": "image"}}] if mark else []
    content += [{{"type": "text", "text": after.replace("{text}", words(text))}}] if after else []
    message = {{"role": "user", "content": content}}
    prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    begin = processor.tokenizer.bos_token
    again = begin and processor.tokenizer("a")["input_ids"][0] == processor.tokenizer.bos_token_id
    return prompt.removeprefix(begin) if again else prompt


def read(image, text):
    """What the model reads."""
    pictures = {{}} if image is None else {{"images": [image.convert("RGB")]{options}}}
    inputs = processor(text=[ask(image, text)], return_tensors="pt", **pictures)
    excess = inputs["input_ids"].shape[1] - MAX_LENGTH
    if excess <= 0:
        return inputs
{too_long}


@torch.inference_mode()
def embed(image=None, text=None):
    """A PIL image, a text, or an image with an instruction, to a unit vector (1, D)."""
    if image is None and not text:
        raise ValueError("embed takes an image, a text, or both")
    hidden = backbone(**read(image, text or ""), use_cache=False).last_hidden_state
    return normalize(({pooled}{head}).float(), dim=-1)
'''

#: What follows in `read` where a prompt is too long, as `MLLMProcessor` has it.
REFUSE = """\
    raise ValueError(f"{excess} tokens above {MAX_LENGTH}, picture included: {text[:60]!r}")
"""
CUT = """\
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if excess >= len(ids):
        raise ValueError(f"more than {MAX_LENGTH} tokens, even without its text")
    shorter = processor.tokenizer.decode(ids[:-excess], skip_special_tokens=True)
    return read(image, shorter if len(shorter) < len(text) else text[:-excess])
"""
