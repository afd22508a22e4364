from __future__ import annotations

from pathlib import Path

import pytest

from cirlab.chat.llm import Decoding, InstructionLLM
from cirlab.dialogue.faults import Fault
from cirlab.dialogue.prompt import read_dialogue_prompt, read_list_prompt
from cirlab.dialogue.questioners import (
    ListQuestioner,
    LLMQuestioner,
    UnansweredQuestioner,
    read_list,
)
from cirlab.errors import UserError
from tests.dialogue.players import REGISTRY, Chats, Tells, image_of, talk
from tests.triplets.talkers import write_tiny_chat_model

FEW_SHOT = read_dialogue_prompt("few_shot")
LIST = read_list_prompt("unanswered")
THREE = "1. is it red?\n2. who is there?\n\n3. where is it?"


def test_a_list_is_asked_in_its_order_without_what_was_asked_or_refused() -> None:
    questioner = ListQuestioner(REGISTRY)
    begun = talk((REGISTRY[0], "a dog"), ("what is the weather?", "fog"))
    refused = talk().refusing(REGISTRY[0], Fault.LONG)
    over = talk(*((question, "yes") for question in REGISTRY))
    assert questioner.ask([talk(), begun, refused, over]) == [
        REGISTRY[0],
        REGISTRY[2],
        REGISTRY[1],
        "",
    ]


def test_an_llm_reads_the_whole_dialogue_and_is_asked_again_by_sampling() -> None:
    llm = Chats(lambda text, _: f"is it like {len(text.split())}?")
    questioner = LLMQuestioner(llm, FEW_SHOT, seed=3)
    begun = talk(("is it red?", "no"), number=4)
    (question,) = questioner.ask([begun])
    assert question.startswith("is it like ")
    assert llm.chats[0][-1]["content"].endswith("Question: is it red?\nAnswer: no")
    questioner.ask([begun.refusing(question, Fault.REPEATED)])
    questioner.ask([begun.refusing(question, Fault.REPEATED).refusing("a", Fault.NONE)])
    assert [decoding.temperature > 0 for decoding in llm.decodings] == [False, True, True]
    assert len(set(llm.seeds)) == 3
    LLMQuestioner(llm, FEW_SHOT, seed=4).ask([begun])
    assert llm.seeds[-1] not in llm.seeds[:-1]


def test_the_oldest_rounds_are_left_out_where_a_dialogue_is_too_long() -> None:
    long = talk(("is it red?", "word " * 50), ("who is there?", "a dog"))
    room = Chats(lambda text, _: "where is it?", room=150)
    LLMQuestioner(room, FEW_SHOT).ask([long])
    content = room.chats[0][-1]["content"]
    assert "who is there?" in content and "is it red?" not in content
    with pytest.raises(UserError, match=r"'a photo of thing 0' makes \d+ tokens even without"):
        LLMQuestioner(Chats(lambda text, _: "", room=50), FEW_SHOT).ask([long])


def test_an_llm_is_shown_what_the_best_images_are() -> None:
    llm = Chats(lambda text, _: "who is there?")
    describer = Tells(lambda image, question: f"{image} shown")
    prompt = read_dialogue_prompt("candidates")
    questioner = LLMQuestioner(llm, prompt, describer=describer, looks_at=2)
    questioner.ask([talk(best=[image_of(1), image_of(2)]), talk(best=[image_of(3)])])
    assert "- images/1.jpg shown\n- images/2.jpg shown\n" in llm.chats[0][-1]["content"]
    assert "- images/3.jpg shown\n" in llm.chats[1][-1]["content"]
    for wrong in (
        lambda: LLMQuestioner(llm, prompt),
        lambda: LLMQuestioner(llm, FEW_SHOT, describer=describer, looks_at=2),
    ):
        with pytest.raises(UserError, match=r"a prompt with \{candidates\} needs a retriever"):
            wrong()


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        (THREE, ("is it red?", "who is there?", "where is it?")),
        ("is it red?\nwho is there?", ()),
        (f"{THREE}\nwhat is it?", ()),
        (f"Here are three questions:\n{THREE}", ()),
        ("is it red?\nis it red?\nwho is there?", ()),
        ("is it red? yes\nwho is there?\nwhere is it?", ()),
        ("", ()),
    ],
)
def test_a_list_of_questions_is_read_strictly(text: str, questions: tuple[str, ...]) -> None:
    assert read_list(text, count=3) == questions


def test_all_questions_come_from_the_caption_and_are_written_once() -> None:
    llm = Chats(lambda text, _: THREE)
    questioner = UnansweredQuestioner(llm, LIST, count=3)
    begun, asked = talk(), []
    for _ in range(3):
        (question,) = questioner.ask([begun])
        asked.append(question)
        begun = begun.told(question, "yes")
    assert asked == ["is it red?", "who is there?", "where is it?"]
    assert questioner.ask([begun]) == [""]
    assert len(llm.chats) == 1 and "Write 3 short questions" in llm.chats[0][-1]["content"]


def test_a_list_of_no_use_is_asked_for_again_by_sampling() -> None:
    llm = Chats(lambda text, decoding: THREE if decoding.temperature else "no idea")
    questioner = UnansweredQuestioner(llm, LIST, count=3)
    assert questioner.ask([talk(), talk(number=1)]) == ["", ""]
    refused = [talk(number=number).refusing("", Fault.EMPTY) for number in (0, 1)]
    assert questioner.ask(refused) == ["is it red?"] * 2
    with pytest.raises(UserError, match="and 256 are kept for 3 questions, more than the LLM can"):
        UnansweredQuestioner(Chats(lambda *_: "", room=3), LIST, count=3).ask([talk()])


def test_a_real_llm_asks_the_same_in_any_batch(tmp_path: Path) -> None:
    llm = InstructionLLM(str(write_tiny_chat_model(tmp_path, positions=2048)))
    questioner = LLMQuestioner(llm, FEW_SHOT, decoding=Decoding(max_new_tokens=8))
    talks = [talk(number=1), talk(("is it red?", "a large red ball"), number=2)]
    together = questioner.ask(talks)
    assert together == [questioner.ask([each])[0] for each in talks]
    assert any(together)
