"""What is refused of a multimodal LLM before it is used: templates, options, models of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils import is_flash_attn_2_available

from cirlab.errors import UserError
from tests.encoders.mllm.prompting import mllm
from tests.tiny import write_tiny_llm
from tests.tiny_mllm import write_tiny_mllm


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mllm")
    return {
        layout: write_tiny_mllm(root / layout, layout) for layout in ("llava-llama", "llava_next")
    }


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> Path:
    return folders["llava-llama"]


def test_a_model_without_chat_template_is_refused_and_takes_one_from_the_yaml(
    tmp_path: Path,
) -> None:
    folder = write_tiny_mllm(tmp_path / "bare")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template; set llm\.chat_template"):
        mllm(folder)
    mllm(folder, chat_template=template)
    file = tmp_path / "template.jinja"
    file.write_text(template)
    mllm(folder, chat_template=str(file))


def test_a_template_without_a_place_for_pictures_is_refused(llava: Path) -> None:
    words_only = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(UserError, match="writes no image token '<image>'"):
        mllm(llava, chat_template=words_only)


def test_a_model_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llm\.name\) is a mistral, which reads no pictures"):
        mllm(write_tiny_llm(tmp_path / "llm"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chat_template": "{% for m in messages %}"}, r"no Jinja template.*llm\.chat_template"),
        ({"chat_template": "missing.jinja"}, "neither a Jinja template nor a file"),
        ({"processor_options": {"pixels": 3}}, r"has 'pixels', .*it knows .*size"),
    ],
)
def test_settings_of_no_use_are_refused(llava: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mllm(llava, **settings)


def test_sizes_that_the_model_must_know_are_no_options_of_the_processor(
    folders: dict[str, Path],
) -> None:
    with pytest.raises(UserError, match=r"'image_grid_pinpoints', which the model .* told as well"):
        mllm(folders["llava_next"], processor_options={"image_grid_pinpoints": [[32, 32]]})


@pytest.mark.skipif(is_flash_attn_2_available(), reason="the package is there")
def test_attention_of_a_package_that_is_missing_is_refused(llava: Path) -> None:
    with pytest.raises(UserError, match="package that is not installed"):
        mllm(llava, attention="flash_attention_2")
