"""A LLaVA put together from a CLIP and a language model."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
)

from cirlab.encoders.mllm.embedder import EmbeddingMLLM
from cirlab.encoders.mllm.llava import assemble, main
from cirlab.encoders.mllm.processor import Prompt
from cirlab.encoders.mllm.scratch import subword_tokenizer
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from lightning_modules.instructcir import Prompts
from tests.tiny_mllm import TEXT, TEXTS, VISION

#: Of the kind that takes messages as strings, with Phi-3.5's tokens and line breaks.
STRINGS_ONLY = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
    "+ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole CLIP, and a Phi-3 whose vocabulary has rows to spare."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    text = {k: TEXT[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    clip.save_pretrained(root / "clip")
    size = VISION["image_size"]
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(root / "clip")
    tokenizer = subword_tokenizer(TEXTS, size=320, max_length=256)
    tokenizer.chat_template = STRINGS_ONLY
    tokenizer.save_pretrained(root / "phi")
    config = AutoConfig.for_model(
        "phi3", **TEXT, vocab_size=384, pad_token_id=0, bos_token_id=None, eos_token_id=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "phi")
    return root / "clip", root / "phi"


@pytest.fixture(scope="module")
def folder(parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("made") / "llava"
    assert main(["--vision", str(parts[0]), "--language", str(parts[1]), "--output", str(at)]) == 0
    return at


def test_both_parts_keep_their_weights(parts: tuple[Path, Path], folder: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    clip = CLIPModel.from_pretrained(parts[0], dtype=torch.bfloat16)
    phi = AutoModelForCausalLM.from_pretrained(parts[1], dtype=torch.bfloat16)
    ours = model.model.vision_tower.state_dict()
    theirs = clip.vision_model.state_dict()
    assert len(ours) == len(theirs)
    for (name, own), other in zip(ours.items(), theirs.values(), strict=True):
        torch.testing.assert_close(own, other, msg=name, rtol=0, atol=0)
    for name, weight in phi.model.state_dict().items():
        torch.testing.assert_close(
            model.model.language_model.state_dict()[name], weight, rtol=0, atol=0
        )
    torch.testing.assert_close(model.lm_head.weight, phi.lm_head.weight, rtol=0, atol=0)
    assert model.model.multi_modal_projector.linear_1.weight.std() > 0
    assert model.config.image_token_id < model.config.get_text_config().vocab_size


def test_it_embeds_and_is_asked_in_the_released_words(folder: Path) -> None:
    model = EmbeddingMLLM(MLLMSettings(str(folder), frozen=True, max_length=200)).eval()
    prompts = Prompts(
        image="<image>\n Describe this image in one word:",
        composed='<image>Modify this image with "{text}", desribe modified image in one word:',
    )
    picture = PIL.Image.new("RGB", (40, 32), "red")
    gallery = Prompt(prompts.image, image=picture)
    composed = Prompt(prompts.composed, "make it blue", picture)
    assert model.processor.render(gallery) == (
        "<|user|>\n<image>\n Describe this image in one word:<|end|>\n<|assistant|>\n"
    )
    assert model.processor.render(composed) == (
        '<|user|>\n<image>Modify this image with "make it blue", desribe modified image in one '
        "word:<|end|>\n<|assistant|>\n"
    )
    vectors = model(model.processor([gallery, composed]))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_what_is_there_is_not_overwritten(parts: tuple[Path, Path], folder: Path) -> None:
    with pytest.raises(UserError, match="exists; name another folder"):
        assemble(str(parts[0]), str(parts[1]), folder)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"vision": "zoo:tiny_clip"}, "zoo:tiny_clip (--vision) is a model of open_clip; name a"),
        ({"vision": "hf-hub:org/model"}, "hf-hub:org/model (--vision) is a model of open_clip"),
        ({"vision": "zoo:tiny_llm"}, "zoo:tiny_llm (--vision) is a mistral; name a CLIP in transf"),
        ({"language": "zoo:tiny_mllm"}, "zoo:tiny_mllm (--language) is a llava; name a causal"),
    ],
)
def test_parts_of_another_kind_are_told_from_broken_ones(
    parts: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wrong: dict[str, str],
    says: str,
) -> None:
    given = {"vision": str(parts[0]), "language": str(parts[1]), "output": str(tmp_path / "made")}
    options = [word for name, value in (given | wrong).items() for word in (f"--{name}", value)]
    assert main(options) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert says in record.getMessage()
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"made \(--output\) cannot be written \(.*; name another"):
        assemble("nowhere/clip", "nowhere/llm", tmp_path / "file" / "made")


def test_help_shows_a_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    command = "python -m cirlab.encoders.mllm.llava --vision openai/clip-vit-large-patch14 \\\n"
    assert f"    {command}        --language microsoft/Phi-3.5-mini-instruct --output " in shown


def test_a_model_without_chat_template_is_refused(
    parts: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.tiny import write_tiny_llm

    plain = write_tiny_llm(tmp_path / "plain")
    output = tmp_path / "made"
    said = main(["--vision", str(parts[0]), "--language", str(plain), "--output", str(output)])
    assert said == 2 and "has no chat template" in caplog.text and not output.exists()
