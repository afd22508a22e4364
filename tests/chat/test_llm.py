from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cirlab.chat.llm import Decoding, InstructionLLM
from cirlab.encoders.adapters import FourBit
from cirlab.encoders.mllm.scratch import CHAT_TEMPLATE
from cirlab.errors import UserError
from cirlab.triplets.prompt import TripletPrompt
from tests.tiny_mllm import write_tiny_mllm
from tests.triplets.talkers import caption_of, write_tiny_chat_model

CHATS = [TripletPrompt().messages(caption_of(i)) for i in range(6)]
GREEDY = Decoding(max_new_tokens=12)

#: As LLaVA's and Qwen-VL's: a message's content is a list of parts.
PARTS_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}<|assistant|>"
)
#: As Qwen3's: unless told otherwise the model is to think aloud first.
THINKING_TEMPLATE = CHAT_TEMPLATE + "{% if enable_thinking != false %}<think>{% endif %}"
SILENT_TEMPLATE = "{% for message in messages %}<|user|>{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> InstructionLLM:
    return InstructionLLM(str(folder))


def test_answers_do_not_depend_on_what_else_is_in_the_batch(llm: InstructionLLM) -> None:
    together = llm.replies(CHATS, GREEDY, seed=0)
    assert len({len(llm.tokenizer.encode(chat[-1]["content"])) for chat in CHATS}) > 1
    assert together == [llm.replies([chat], GREEDY, seed=1)[0] for chat in CHATS]
    assert len({reply.text for reply in together}) > 1


def test_an_answer_is_what_the_model_adds_to_the_templates_text(llm: InstructionLLM) -> None:
    (reply,) = llm.replies(CHATS[:1], GREEDY, seed=0)
    text = llm.tokenizer.apply_chat_template(CHATS[0], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str) and text.endswith("<|assistant|>") and caption_of(0) in text
    ids = llm.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        for _ in range(12):
            following = llm.model(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
    new = ids[0, llm.length(CHATS[0]) :].tolist()
    end = llm.tokenizer.eos_token_id
    assert reply.finished == (end in new)
    assert reply.text == llm.tokenizer.decode(
        new[: new.index(end)] if end in new else new, skip_special_tokens=True
    )


def test_samples_depend_on_the_seed_alone(llm: InstructionLLM) -> None:
    sampling = Decoding(temperature=1.0, max_new_tokens=12)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = llm.replies(CHATS, sampling, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert llm.replies(CHATS, sampling, seed=3) == first
    assert llm.replies(CHATS, sampling, seed=4) != first
    assert llm.replies(CHATS, GREEDY, seed=3) != first


def test_how_the_model_prefers_to_be_sampled_does_not_count(folder: Path, tmp_path: Path) -> None:
    other = write_tiny_chat_model(tmp_path)
    (other / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.1, "top_k": 1, "max_length": 3})
    )
    plain, own = (InstructionLLM(str(path)) for path in (folder, other))
    for decoding in (GREEDY, Decoding(temperature=1.0, max_new_tokens=12)):
        assert own.replies(CHATS, decoding, 0) == plain.replies(CHATS, decoding, 0)


def test_room_is_what_the_model_has_positions_for(llm: InstructionLLM) -> None:
    assert llm.has_room(100, Decoding(max_new_tokens=28))
    assert not llm.has_room(101, Decoding(max_new_tokens=28))


def test_models_of_other_weights_or_precision_are_told_apart(
    llm: InstructionLLM, folder: Path, tmp_path: Path
) -> None:
    same = InstructionLLM(str(folder)).identity()
    assert same == llm.identity() == json.loads(json.dumps(same))
    other = InstructionLLM(str(write_tiny_chat_model(tmp_path, seed=1))).identity()
    assert other["weights"] != same["weights"]
    assert InstructionLLM(str(folder), dtype="bfloat16").identity() != same


@pytest.mark.parametrize("template", [PARTS_TEMPLATE, THINKING_TEMPLATE])
def test_templates_of_other_forms_give_the_same_chat(
    llm: InstructionLLM, tmp_path: Path, template: str
) -> None:
    other = InstructionLLM(str(write_tiny_chat_model(tmp_path, template)))
    assert other.replies(CHATS, GREEDY, 0) == llm.replies(CHATS, GREEDY, 0)


def test_the_language_half_of_a_multimodal_model_answers(tmp_path: Path) -> None:
    model = InstructionLLM(str(write_tiny_mllm(tmp_path)))
    assert "Llava" in type(model.model).__name__
    assert len(model.replies(CHATS, GREEDY, 0)) == len(CHATS)


def test_four_bit_weights_answer(folder: Path) -> None:
    model = InstructionLLM(str(folder), four_bit=FourBit(compute_dtype="float32"))
    assert len(model.replies(CHATS, GREEDY, 0)) == len(CHATS)
    assert model.identity()["four_bit"]["quant_type"] == "nf4"


@pytest.mark.parametrize(
    ("template", "problem"),
    [(None, "has no chat template; choose one"), (SILENT_TEMPLATE, "does not show what a user")],
)
def test_a_model_that_nobody_can_speak_to_is_refused(
    tmp_path: Path, template: str | None, problem: str
) -> None:
    folder = write_tiny_chat_model(tmp_path, template)
    # Before the weights are read, which may take minutes.
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=problem):
        InstructionLLM(str(folder))


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_chat_model(tmp_path, CHAT_TEMPLATE)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"\(--model\) lie in a local folder but cannot be read"):
        InstructionLLM(str(folder))
