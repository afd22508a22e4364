from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cirlab.benchmarks.chatir import ChatIR
from cirlab.dialogue.files import CHATIR_DIALOGUES
from cirlab.errors import UserError
from tests.benchmarks.encoders import evaluated, ranking, write_json

REAL = Path(os.environ.get("DATA_ROOT", "/nowhere")) / "benchmarks"

PATHS = [f"unlabeled2017/{number:012d}.jpg" for number in range(1, 7)]
ROWS = [
    {"img": PATHS[4], "dialog": ["a red bus", "is it new? no", "any people? two"]},
    {"img": PATHS[1], "dialog": ["a dog on grass", "is it big? yes", "a ball? no"]},
]


def write(root: Path, rows: Any = ROWS, paths: Any = PATHS, name: str = "Human_BLIP2") -> Path:
    write_json(root / "ChatIR_Protocol" / "Search_Space_val_50k.json", paths)
    return write_json(root / "dialogues" / f"{name}.json", rows)


def chatir(root: Path, dialogues: str = "Human_BLIP2", **options: Any) -> ChatIR:
    benchmark = ChatIR(str(root), dialogues, **{"official": False, **options})
    benchmark.setup()
    return benchmark


def test_dialogues_look_for_their_image_in_the_search_space(tmp_path: Path) -> None:
    write(tmp_path)
    benchmark = chatir(tmp_path)
    assert [image.id for image in benchmark.gallery] == PATHS
    assert benchmark.gallery[2].path == tmp_path / PATHS[2]
    assert [query.id for query in benchmark.queries] == ["0#0", "0#1", "0#2", "1#0", "1#1", "1#2"]
    query = benchmark.queries[4]
    assert (query.text, query.targets) == ("a dog on grass, is it big? yes", (PATHS[1],))
    assert query.rounds == ("a dog on grass", "is it big? yes")
    assert benchmark.name == "chatir_Human_BLIP2"
    assert (benchmark.exclusion, benchmark.protocol().pool_size) == ("none", 6)


def test_hits_by_hand(tmp_path: Path) -> None:
    """The bus is first after the first answer, the dog never among the first two."""
    write(tmp_path)
    ahead = [3, 0, 5, 2, 2, 3]

    def best(row: int) -> list[str]:
        target = benchmark.queries[row].targets[0]
        return [*[path for path in PATHS if path != target][: ahead[row]], target]

    benchmark = chatir(tmp_path, hits_at=2)
    rounds = ranking(benchmark, best).results["breakdown"]["round"]
    assert [of["cumulative_hits_at_2"] for of in rounds.values()] == [0, 0.5, 0.5]
    assert [of["recall_at_2"] for of in rounds.values()] == [0, 0.5, 0]
    assert [of["mean_rank"] for of in rounds.values()] == [3.5, 2, 5]


def test_rewritten_dialogues_of_another_place(tmp_path: Path) -> None:
    write(tmp_path)
    rows = [{"img": PATHS[0], "dialog": ["a cup", "a blue cup on a table"]}]
    path = write_json(tmp_path / "elsewhere" / "v1_0.queries.json", rows)
    benchmark = chatir(tmp_path, str(path), history="current")
    below = chatir(tmp_path, "elsewhere/v1_0.queries.json", history="current")
    assert below.protocol() == benchmark.protocol(), "paths may be given below root, too"
    assert [query.text for query in benchmark.queries] == rows[0]["dialog"]
    assert benchmark.name == "chatir_v1_0.queries"
    assert chatir(tmp_path, str(path), name="dar").name == "dar"
    assert benchmark.gallery_id == chatir(tmp_path).gallery_id


def test_the_newest_of_rewritten_texts_asks_unless_told_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    texts = ["a cup", "a blue cup", "is it new? a blue cup", "a new blue cup"]
    rows = [{"img": PATHS[0], "dialog": texts}]
    path = str(write_json(tmp_path / "rewritten.json", rows))
    left_open, joined = chatir(tmp_path, path), chatir(tmp_path, path, history="concat")
    assert [query.text for query in left_open.queries] == texts
    assert left_open.protocol() == chatir(tmp_path, path, history="current").protocol()
    assert left_open.protocol().query_template == "{round t} alone"
    assert joined.queries[1].text == "a cup, a blue cup"
    assert joined.protocol().query_template != left_open.protocol().query_template
    assert caplog.text.count("history: concat joins rounds that are whole captions") == 1
    # Of dialogues, all that was said; also where the same benchmark is set up again.
    assert chatir(tmp_path).protocol() == chatir(tmp_path, history="concat").protocol()
    left_open.dialogues = "Human_BLIP2"
    left_open.setup()
    assert left_open.queries[1].text == "a red bus, is it new? no"


def test_images_of_another_layout_are_another_gallery(tmp_path: Path) -> None:
    write(tmp_path)
    benchmark = chatir(tmp_path, images="coco/{file}")
    assert benchmark.gallery[0].path == tmp_path / "coco" / "000000000001.jpg"
    assert benchmark.gallery_id != chatir(tmp_path).gallery_id
    other = write_json(tmp_path / "other.json", PATHS)
    assert chatir(tmp_path, corpus=other.name).gallery_id != chatir(tmp_path).gallery_id


def test_it_is_cheap_until_it_is_set_up() -> None:
    assert pickle.loads(pickle.dumps(ChatIR("/no/such/folder"))).hits_at == 10
    with pytest.raises(UserError, match="root /no/such/folder is not a folder"):
        ChatIR("/no/such/folder").setup()


# ---- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"rows": [ROWS[0], {**ROWS[1], "img": "unlabeled2017/9.jpg"}]},
            r"Human_BLIP2\.json, record 2: the image 'unlabeled2017/9\.jpg' is not in the search "
            r"space ChatIR_Protocol/Search_Space_val_50k\.json",
        ),
        ({"rows": [{"img": PATHS[0]}]}, r"record 1: the field 'dialog' is missing"),
        ({"rows": [{**ROWS[0], "dialog": []}]}, r"record 1: the field 'dialog' is \[\]"),
        ({"rows": [{**ROWS[0], "dialog": ["a", " "]}]}, r"record 1: the field 'dialog' is "),
        ({"rows": [{**ROWS[0], "img": 0.5}]}, r"record 1: the field 'img' is 0\.5"),
        ({"rows": {"img": "x"}}, r"Human_BLIP2\.json holds no array at its top level"),
        ({"rows": []}, r"Human_BLIP2\.json holds no dialogue"),
        (
            {"paths": [*PATHS, PATHS[3]]},
            r"50k\.json, record 7: unlabeled2017/000000000004\.jpg stands already in record 4",
        ),
        ({"paths": {"a": 1}}, r"50k\.json: expected an array of strings, found dict"),
        ({"paths": [7]}, r"50k\.json, record 1: 7 is not a non-empty string"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    write(tmp_path, **change)
    with pytest.raises(UserError, match=problem) as caught:
        chatir(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["ChatIR_Protocol/Search_Space_val_50k.json", "dialogues/Human_BLIP2.json"]
)
def test_a_file_that_is_cut_off_is_told(tmp_path: Path, file: str) -> None:
    write(tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=rf"{path.name} is not a whole JSON document"):
        chatir(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, "holds 6 images of the search space, but 50,000 are published"),
        ({"paths": [*PATHS, *map(str, range(49_994))]}, "holds 2 dialogues, but 2,064 are publ"),
        (
            {"paths": [*PATHS, *map(str, range(49_994))], "rows": ROWS * 1032},
            "record 1: the dialogue has 3 texts, but 11 are published",
        ),
    ],
)
def test_other_sizes_than_the_published_are_refused(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    write(tmp_path, **change)
    with pytest.raises(UserError, match=problem):
        chatir(tmp_path, official=True)


def test_an_unknown_file_is_told_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path)
    problem = r"no dialogues 'Human': there is no file .*Human\.json.*one of: VisDial_v1\.0_quer"
    with pytest.raises(UserError, match=problem):
        chatir(tmp_path, "Human")
    with pytest.raises(UserError, match=r"there is no file /no/such\.json"):
        chatir(tmp_path, "/no/such.json")


# ---- the published files --------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "chatir").is_dir(), reason="DATA_ROOT has no benchmarks/chatir")
@pytest.mark.parametrize("dialogues", CHATIR_DIALOGUES)
def test_published_dialogues(dialogues: str) -> None:
    benchmark = chatir(REAL / "chatir", dialogues, official=True)
    pool = {image.id for image in benchmark.gallery}
    assert len(pool) == len(benchmark.gallery) == 50_000
    assert len(benchmark.queries) == len({query.id for query in benchmark.queries}) == 2064 * 11
    assert all(query.targets[0] in pool for query in benchmark.queries)
    assert len({query.targets for query in benchmark.queries}) == 2064
    assert [len(query.rounds) for query in benchmark.queries[:22]] == [*range(1, 12)] * 2
    assert benchmark.queries[0].targets == ("unlabeled2017/000000185565.jpg",)


@pytest.mark.skipif(not (REAL / "dar").is_dir(), reason="DATA_ROOT has no benchmarks/dar")
def test_published_rewritten_dialogues() -> None:
    """About the same images in the same order; joined, late rounds are longer than 254 words."""
    path = str(REAL / "dar" / "dialogues" / "VisDial_v1_0_queries_val.json")
    people, joined, newest = (
        chatir(REAL / "chatir", dialogues, history=history, official=True)
        for dialogues, history in (
            ("VisDial_v1.0_queries_val", "concat"),
            (path, "concat"),
            (path, "current"),
        )
    )
    assert [q.targets for q in newest.queries] == [q.targets for q in people.queries]
    assert [q.text for q in newest.queries[::11]] == [q.text for q in people.queries[::11]]
    last = range(10, 22_704, 11)
    words = {b: [len(b.queries[row].text.split()) for row in last] for b in (joined, newest)}
    assert max(words[joined]) == 525
    assert sum(count > 254 for count in words[joined]) / 2064 == pytest.approx(0.53, abs=0.005)
    assert max(words[newest]) < 254
    assert joined.protocol().annotations != newest.protocol().annotations


@pytest.mark.skipif(not (REAL / "dar").is_dir(), reason="DATA_ROOT has no benchmarks/dar")
def test_published_rewritten_dialogues_score_as_counted_by_hand() -> None:
    """Random vectors in which targets show more with every round, ranked by other code.

    Of a part of the dialogues: all take a minute.
    """
    dialogues = 300
    path = str(REAL / "dar" / "dialogues" / "VisDial_v1_0_queries_val.json")
    benchmark = chatir(REAL / "chatir", path, official=True)
    assert benchmark.protocol().query_template == "{round t} alone"
    benchmark.queries = benchmark.queries[: 11 * dialogues]
    rng = np.random.default_rng(0)
    gallery = unit(rng.normal(size=(50_000, 16)))
    row_of = {image.id: row for row, image in enumerate(benchmark.gallery)}
    targets = np.array([row_of[query.targets[0]] for query in benchmark.queries])
    shown = 0.1 * np.array([len(query.rounds) for query in benchmark.queries])[:, None]
    asked = unit(shown * gallery[targets] + 0.1 * rng.normal(size=(len(targets), 16)))
    found = evaluated(benchmark, torch.from_numpy(gallery), torch.from_numpy(asked)).results

    ranks = np.concatenate([ranks_of(gallery, *part) for part in batches(asked, targets)])
    ranks = ranks.reshape(dialogues, 11)
    hits = np.maximum.accumulate(ranks <= 10, axis=1).mean(axis=0)
    rounds = list(found["breakdown"]["round"].values())
    close = {"abs": 2 / dialogues}
    assert [of["cumulative_hits_at_10"] for of in rounds] == pytest.approx(hits, **close)
    recalls = (ranks <= 10).mean(axis=0)
    assert [of["recall_at_10"] for of in rounds] == pytest.approx(recalls, **close)
    assert [of["mean_rank"] for of in rounds] == pytest.approx(ranks.mean(axis=0), rel=1e-4)
    logs = np.log(np.minimum.accumulate(ranks, axis=1)).mean(axis=0)
    bri = ((logs[:-1] + logs[1:]) / 2).mean()
    assert found["metrics"]["bri"] == pytest.approx(bri, rel=1e-4)
    assert len(set(hits)) > 5 and hits[-1] > 0.5


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def batches(asked: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    starts = range(0, len(asked), 512)
    return [(asked[start : start + 512], targets[start : start + 512]) for start in starts]


def ranks_of(gallery: np.ndarray, asked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    scores = asked @ gallery.T
    own = scores[np.arange(len(asked)), targets]
    return np.asarray((scores >= own[:, None]).sum(axis=1))
