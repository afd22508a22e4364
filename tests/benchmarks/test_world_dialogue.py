from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from cirlab.benchmarks.world_dialogue import WorldDialogue
from cirlab.errors import UserError
from cirlab.records import Query
from cirlab.world.scene import Scene
from tests.benchmarks.world_readers import scenes_of
from tests.world.reading import is_true


@pytest.fixture(scope="module")
def benchmark() -> WorldDialogue:
    made = WorldDialogue(families=20, dialogues=40)
    made.setup()
    return made


@pytest.fixture(scope="module")
def scenes(benchmark: WorldDialogue) -> dict[str, Scene]:
    return scenes_of(benchmark)


@pytest.fixture(scope="module")
def last(benchmark: WorldDialogue) -> list[Query]:
    return [query for query in benchmark.queries if query.tags["round"] == "10"]


def test_a_caption_and_ten_rounds_each_a_query_of_its_own(
    benchmark: WorldDialogue, last: list[Query]
) -> None:
    assert len(last) == 40 and len(benchmark.queries) == 440
    for number, query in enumerate(benchmark.queries):
        whole = last[number // 11].rounds
        assert query.rounds == whole[: number % 11 + 1]
        assert query.text == ", ".join(query.rounds)
        assert query.tags == {"round": str(number % 11)}
        assert query.image is None
    assert all("?" not in query.rounds[0] for query in last)
    assert all("? " in text for query in last for text in query.rounds[1:])


def test_targets_are_all_pictures_of_the_scene_that_is_meant(
    benchmark: WorldDialogue, scenes: dict[str, Scene], last: list[Query]
) -> None:
    for query in benchmark.queries:
        meant = scenes[query.targets[0]].signature()
        assert set(query.targets) == {n for n, s in scenes.items() if s.signature() == meant}
    assert len({query.targets[0] for query in last}) == 40
    assert any(len(query.targets) > 1 for query in last)


def test_rounds_narrow_down_and_never_rule_out_what_is_meant(
    scenes: dict[str, Scene], last: list[Query]
) -> None:
    """By a reader who believes every answer: how many scenes of the gallery are left."""
    left = []
    for query in last:
        possible = dict(scenes)
        numbers = []
        for text in query.rounds:
            answer = text.split("? ")[-1]
            possible = {name: s for name, s in possible.items() if is_true(answer, s)}
            numbers.append(len({s.signature() for s in possible.values()}))
        assert set(query.targets) <= set(possible), query.rounds
        left.append(numbers)
    mean = [sum(column) / len(left) for column in zip(*left, strict=True)]
    assert mean[0] > 5 and mean[5] < 4 and mean[10] < 2
    assert all(after <= before for before, after in pairwise(mean))
    assert sum(numbers[10] == 1 for numbers in left) > 0.35 * len(left)
    assert sum(numbers[0] == 1 for numbers in left) < 0.2 * len(left)


def test_rounds_and_separator_are_options() -> None:
    short = WorldDialogue(families=2, dialogues=5, rounds=3, separator=" [sep] ")
    short.setup()
    assert len(short.queries) == 20
    assert short.queries[3].text == " [sep] ".join(short.queries[3].rounds)
    assert short.protocol().query_template.count("[sep]") == 3


def test_the_newest_text_alone_can_be_asked(benchmark: WorldDialogue) -> None:
    newest = WorldDialogue(families=20, dialogues=40, history="current")
    newest.setup()
    assert [query.rounds for query in newest.queries] == [q.rounds for q in benchmark.queries]
    assert all(query.text == query.rounds[-1] for query in newest.queries)
    assert newest.protocol().query_template == "{round t} alone"
    with pytest.raises(UserError, match="history is 'last'; set it to concat, current or null"):
        WorldDialogue(history="last")  # type: ignore[arg-type]


def test_metrics_are_those_of_dialogues() -> None:
    short = WorldDialogue(families=2, dialogues=5, rounds=3, hits_at=5)
    short.setup()
    assert short.metric_names() == ["bri", "cumulative_hits_at_5", "mean_rank", "recall_at_5"]


def test_played_dialogues_of_too_few_rounds_or_other_pictures_are_told(tmp_path: Path) -> None:
    own = WorldDialogue(families=2, dialogues=3, rounds=2)
    own.setup()
    path = tmp_path / "played.json"
    rows = [{"img": q.targets[0], "dialog": list(q.rounds)} for q in own.queries[2::3]]

    def read(rounds: int, rows: list[dict[str, object]]) -> WorldDialogue:
        path.write_text(json.dumps(rows))
        played = WorldDialogue(families=2, dialogues=3, rounds=rounds, played=str(path))
        played.setup()
        return played

    assert [q.text for q in read(2, rows).queries] == [q.text for q in own.queries]
    assert len(read(1, rows).queries) == 9, "longer ones are read whole"
    short = [rows[0], {**rows[1], "dialog": ["a caption", "is it red? yes"]}]
    with pytest.raises(UserError) as caught:
        read(2, short)
    assert str(caught.value) == (
        f"{path}, record 2: the dialogue has 1 round after its caption, but rounds of "
        "world_dialogue is 2; set rounds to 1, or have longer ones played"
    )
    with pytest.raises(UserError, match=r"0 rounds after .* is 2; have longer ones played"):
        read(2, [{**rows[0], "dialog": ["a caption"]}])
    other = [{**rows[0], "img": "val-9-0"}]
    with pytest.raises(UserError, match=r"record 1: the image 'val-9-0' is not in the gallery; gi"):
        read(2, other)
