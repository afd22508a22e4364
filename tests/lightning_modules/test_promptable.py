"""Promptable embeddings: what is read, how galleries are looked at, and what the map is told by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning_modules.question_maps import LinearSample, QuestionMaps

from callbacks import RetrievalEvaluation
from cirlab.benchmarks import COCOFacet, WorldFacet
from cirlab.benchmarks.base import Benchmark
from cirlab.benchmarks.coco_facet import PLACES
from cirlab.encoders.adapters import Lora
from cirlab.encoders.mllm.processor import Prompt
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.errors import UserError
from cirlab.prompts import FixedPrompt, PromptByFacet
from cirlab.records import PromptedPair, SampleKey
from datamodules import WorldData
from lightning_modules.promptable import PrefixBudget, Promptable, PromptableTemplates
from tests.benchmarks.encoders import write_json
from tests.tiny_mllm import write_tiny_mllm

QUESTION = "what is the weather?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("promptable") / "mllm"
    write_tiny_mllm(path)
    return path


def method(folder: Path, llm: dict[str, Any] | None = None, **options: Any) -> Promptable:
    torch.manual_seed(0)
    settings = {"lora": Lora(rank=4, alpha=8), "max_length": 256, "group_size": 3} | (llm or {})
    llm = MLLMSettings(str(folder), **settings)
    module = Promptable(llm, **options)
    module.configure_model()
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return module


def data(**options: Any) -> WorldData:
    settings: dict[str, Any] = {"samples": 8, "batch_size": 4, "eval_batch_size": 16}
    settings["benchmarks"] = [WorldFacet(families=8, queries_per_facet=2, negatives=5)]
    return WorldData(records="prompted", series_size=1, **(settings | options))


def fit(module: Promptable, **options: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=2,
        callbacks=[RetrievalEvaluation()],
    )
    trainer.fit(module, data(**options))


def evaluate(
    module: Promptable, benchmark: Benchmark | None = None, on_error: str = "raise", **options: Any
) -> dict[str, Any]:
    """Results of one benchmark; `options` are the trainer's."""
    retrieval = RetrievalEvaluation()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[retrieval],
        **options,
    )
    settings = {} if benchmark is None else {"benchmarks": [benchmark]}
    trainer.validate(module, data(on_error=on_error, **settings), verbose=False)
    (results,) = retrieval.results.values()
    return results


@contextmanager
def pictures_read(module: Promptable) -> Iterator[list[int]]:
    """Notes how many pictures pass the image tower at once within the block."""
    counts: list[int] = []

    def note(_: object, args: object, inputs: dict[str, Any]) -> None:
        if "pixel_values" in inputs:
            counts.append(len(inputs["input_ids"]))

    handle = module.llm.backbone.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def images(count: int) -> list[Any]:
    records = data().train_dataset()
    return [records[SampleKey(0, number)].image for number in range(count)]


def test_each_way_of_looking_gives_the_vector_of_its_whole_prompt(folder: Path) -> None:
    pictures = images(5)
    templates = PromptableTemplates()
    needed = torch.ones(2, len(pictures), dtype=torch.bool)
    needed[1, 3] = False
    found = {}
    for looking in ("whole", "prefix"):
        module = method(folder, looking=looking).eval()
        inputs = module.image_collator()(pictures)
        with torch.no_grad():
            found[looking] = module.encode_views(inputs, [None, QUESTION], needed)
            general = [Prompt(templates.image, image=picture.load()) for picture in pictures]
            asked = [Prompt(templates.prompted, QUESTION, p.load()) for p in pictures]
            expected = [module.llm(module.llm.processor(prompts)) for prompts in (general, asked)]
        torch.testing.assert_close(found[looking][0], expected[0], atol=1e-5, rtol=0)
        asked_for = needed[1]
        torch.testing.assert_close(
            found[looking][1][asked_for], expected[1][asked_for], atol=1e-5, rtol=0
        )
        assert (found[looking][1][3] == 0).all()
    assert (expected[0] - expected[1]).norm() > 0.1


def test_the_prefix_gives_the_ranks_of_whole_prompts_and_is_told_from_general(
    folder: Path,
) -> None:
    whole, prefix, general = (
        evaluate(method(folder, looking=looking)) for looking in ("whole", "prefix", "general")
    )
    assert whole == prefix
    assert whole["protocol"] != general["protocol"]


def test_each_question_has_a_map_of_its_own_that_the_seed_decides(folder: Path) -> None:
    module = method(folder, looking="linear", linear=LinearSample(count=8, method="least_squares"))
    results = evaluate(module)
    assert results["protocol"]["candidates"] == "own, 6"
    found = module._maps["world_facet"]
    assert set(found.chosen) == set(found.maps) and len(found.maps) == 10
    assert all(w.shape == (module.llm.dim, module.llm.dim) for w in found.maps.values())
    told = results["protocol"]["views"]
    assert told.startswith("least_squares from 8 benchmark images of seed 0, 10 prompts, ")
    other = method(folder, looking="linear", linear=LinearSample(count=8), prompts=FixedPrompt("?"))
    assert evaluate(other)["protocol"]["views"] != told
    assert evaluate(method(folder, looking="general"))["protocol"]["views"] == "none"
    again = evaluate(method(folder, looking="linear", linear=LinearSample(count=8)))
    assert again == results


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The ids of the images that each map is told from, in the order of the maps."""
    ids: list[tuple[str, ...]] = []
    draw = LinearSample.draw

    def noted(self: LinearSample, images: Any, question: str) -> Any:
        found = draw(self, images, question)
        ids.append(tuple(image.id for image in found))
        return found

    monkeypatch.setattr(LinearSample, "draw", noted)
    return ids


def test_a_map_leads_from_general_to_prompted_vectors_of_ranked_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = drawn(monkeypatch)
    module = method(folder, looking="linear", linear=LinearSample(count=8))
    evaluate(module)
    benchmark = WorldFacet(families=8, queries_per_facet=2, negatives=5)
    benchmark.setup()
    found = module._maps["world_facet"].maps
    ranked: dict[str, set[str]] = {question: set() for question in found}
    for query in benchmark.queries:
        ranked[str(query.prompt)] |= set(query.candidates or ())
    # Maps may be drawn before as well, to refuse what cannot be.
    samples = dict(zip(found, ids[-len(found) :], strict=True))
    templates, gallery = PromptableTemplates(), {image.id: image for image in benchmark.gallery}
    for question, sample in samples.items():
        assert set(sample) <= ranked[question]
        loaded = [gallery[name].load() for name in sample]
        with torch.no_grad():
            read = module.llm.processor
            general = module.llm(read([Prompt(templates.image, image=i) for i in loaded]))
            asked = module.llm(read([Prompt(templates.prompted, question, i) for i in loaded]))
        # Not exact: what lies within rounding of the tiny model's alike vectors is left out.
        moved = (general @ found[question].T.float() - asked).norm(dim=1).mean()
        assert moved < 0.5 * (general - asked).norm(dim=1).mean()
    assert len(set(ids)) > 1


def test_a_map_from_training_images_needs_none_of_the_benchmark(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = drawn(monkeypatch)
    sample = LinearSample(count=6, source="training")
    results = evaluate(method(folder, looking="linear", linear=sample))
    training = {image.id for image in images(8)}
    assert ids and all(set(chosen) <= training for chosen in ids)
    assert results["protocol"]["views"].startswith("least_squares from 6 training images of seed 0")


def test_a_query_is_moved_by_the_map_of_its_own_question() -> None:
    maps = {"a": 2 * torch.eye(2), "b": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    asked = QuestionMaps(("a", None, "b"), maps, wordings=2)
    moved = asked.moved(torch.tensor([[1.0, 3.0]] * 4), [1, 2, 3, 4])
    assert moved.tolist() == [[2, 6], [1, 3], [1, 3], [3, 1]]


def test_the_questions_are_the_choosers(folder: Path) -> None:
    module = method(folder, prompts=FixedPrompt("what is there?"))
    assert evaluate(module)["protocol"]["views"].startswith("1 prompt,")
    (views,) = module.views.values()
    assert views.prompts == ("what is there?",)


def test_an_unknown_way_of_looking_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="looking is 'deep'; choose one of general, whole"):
        method(folder, looking="deep")


def test_equal_words_for_one_question_are_one_target(folder: Path) -> None:
    first, second = images(2)
    module = method(folder)
    records = [
        PromptedPair(first, "at night", "what time is it?"),
        PromptedPair(second, "at night", "what time is it?"),
        PromptedPair(second, "at night"),
    ]
    batch = module.train_collator()(records)
    ids = batch["ids"].tolist()
    assert ids[0] == ids[1] != ids[2]
    loss = module.losses(batch)["prompted"]
    loss.backward()
    grads = [p.grad for p in module.parameters() if p.requires_grad]
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_it_learns(folder: Path) -> None:
    module = method(folder, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    batch = module.train_collator()([data().train_dataset()[SampleKey(0, i)] for i in range(8)])
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = module.losses(batch)["prompted"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image": "Represent the given image."}, "image is .* must hold <image> once"),
        ({"prompted": "<image> look"}, "prompted is .* must hold {text} once"),
        ({"text": "<image>{text}"}, "text is .* must hold <image> not at all"),
    ],
)
def test_templates_hold_what_they_need(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PromptableTemplates(**options)


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"linear\.count is 0"):
        LinearSample(count=0)


ARMS: dict[str, dict[str, Any]] = {
    "general": {"looking": "general"},
    "whole": {"looking": "whole"},
    "prefix": {"looking": "prefix"},
    "kept prefixes": {"looking": "prefix", "prefixes": PrefixBudget(0.1)},
    "linear": {"looking": "linear", "linear": LinearSample(count=8)},
    "ridge": {"looking": "linear", "linear": LinearSample(count=8, method="ridge")},
    "procrustes": {"looking": "linear", "linear": LinearSample(count=8, method="procrustes")},
}


@pytest.mark.parametrize("arm", ARMS)
def test_a_constant_encoder_is_never_above_chance(
    folder: Path, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = method(folder, **ARMS[arm])
    one = torch.nn.functional.normalize(torch.ones(module.llm.dim), dim=0)
    monkeypatch.setattr(module.llm, "unit", lambda pooled: one.expand(len(pooled), -1))
    metrics = evaluate(module)["metrics"]
    assert metrics["recall_at_1"] == metrics["macro_recall_at_5"] == 0


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_an_encoder_of_nan_never_passes(
    folder: Path, arm: str, keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = method(folder, **ARMS[arm], store=str(tmp_path) if keeps else None)
    monkeypatch.setattr(
        module.llm, "unit", lambda pooled: torch.full((len(pooled), module.llm.dim), torch.nan)
    )
    with pytest.raises(UserError):
        evaluate(module)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("arm", ["general", "whole", "prefix", "linear"])
def test_kept_vectors_rank_alike_and_are_not_encoded_again(
    folder: Path, arm: str, tmp_path: Path
) -> None:
    plain = evaluate(method(folder, **ARMS[arm]))
    kept = ARMS[arm] | {"store": str(tmp_path)}
    first = method(folder, **kept)
    with pictures_read(first) as read:
        assert evaluate(first) == plain
    assert read
    second = method(folder, **kept)
    with pictures_read(second) as read:
        assert evaluate(second) == plain
    assert read == []


def test_a_gallery_is_encoded_again_for_a_new_question_alone(folder: Path, tmp_path: Path) -> None:
    evaluate(method(folder, looking="general", store=str(tmp_path)))
    module = method(folder, looking="whole", prompts=FixedPrompt("how many?"), store=str(tmp_path))
    with pictures_read(module) as read:
        evaluate(module)
    size = int(evaluate(module)["protocol"]["pool_size"])
    assert 0 < sum(read) <= size + 2
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(files) == 2
    evaluate(module)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == files


def test_a_changed_weight_makes_everything_new(folder: Path, tmp_path: Path) -> None:
    module = method(folder, store=str(tmp_path))
    before = evaluate(module)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.mul_(-20)
    with pictures_read(module) as read:
        after = evaluate(module)
    assert read
    assert after == evaluate(_with_weights(method(folder), module)) != before


def _with_weights(module: Promptable, of: Promptable) -> Promptable:
    module.load_state_dict(of.state_dict())
    return module


def test_what_skips_images_keeps_no_vectors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="store keeps vectors of all images and skips none"):
        evaluate(method(folder, store=str(tmp_path)), on_error="skip")


def test_prefixes_of_one_evaluation_serve_the_next_with_other_questions(
    folder: Path, tmp_path: Path
) -> None:
    budget = PrefixBudget(0.5, str(tmp_path))
    evaluate(method(folder, looking="prefix", prefixes=budget))
    other = method(folder, looking="prefix", prefixes=budget, prompts=FixedPrompt("how many?"))
    with pictures_read(other) as read:
        found = evaluate(other)
    assert read == []
    assert found == evaluate(method(folder, looking="whole", prompts=FixedPrompt("how many?")))


def test_training_keeps_nothing(folder: Path, tmp_path: Path) -> None:
    budget = PrefixBudget(0.5, str(tmp_path / "prefixes"))
    module = method(folder, store=str(tmp_path / "store"), prefixes=budget)
    fit(module)
    assert list(tmp_path.iterdir()) == []


LONG = "is there a red circle? " * 100
LINEAR: dict[str, Any] = {"looking": "linear", "linear": LinearSample(count=8)}


@pytest.mark.parametrize("run", [fit, evaluate])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"looking": "linear", "linear": LinearSample(count=5000)},
            r"linear.count is 5000, but there are \d+ benchmark images .* \"what .*at most \d+",
        ),
        (LINEAR | {"prompts": PromptByFacet("gpt")}, "'gpt' have no question for the facet"),
        (LINEAR | {"prompts": FixedPrompt(LONG)}, r"chosen by model\.init_args\.prompts \(FixedP"),
        (
            {"prompts": FixedPrompt(LONG), "llm": {"long_text": "cut"}},
            r"question \"is there .*chosen by .*FixedPrompt\), .*max_length 256, .*never cut",
        ),
    ],
)
def test_what_an_evaluation_would_refuse_is_refused_before_any_work(
    folder: Path, run: Any, arguments: dict[str, Any], sentence: str
) -> None:
    module = method(folder, **arguments)
    with pictures_read(module) as read, pytest.raises(UserError, match=sentence):
        run(module)
    assert read == []


@pytest.mark.parametrize("run", [fit, evaluate])
def test_a_map_skips_no_image(folder: Path, run: Any) -> None:
    module = method(folder, **LINEAR)
    with pictures_read(module) as read, pytest.raises(UserError, match="on_error is skip: set it"):
        run(module, on_error="skip")
    assert read == []


def test_a_folder_that_cannot_be_is_refused_before_pictures_are_read(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "within", Path("/proc/x")):
        for key, arguments in (
            ("store", {"store": str(path)}),
            ("prefixes.folder", {"prefixes": PrefixBudget(0.1, str(path))}),
        ):
            module = method(folder, **arguments)
            sentence = f"{key} {path} cannot be made a folder"
            with pictures_read(module) as read, pytest.raises(UserError, match=sentence):
                evaluate(module)
            assert read == []


def test_a_folder_without_a_name_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="store is ''; name a folder, or set it to null"):
        method(folder, store="")
    with pytest.raises(UserError, match=r"prefixes\.folder is ' '; name a folder, or set it to"):
        PrefixBudget(1.0, " ")


def test_prefixes_are_kept_of_one_way_of_looking(folder: Path) -> None:
    with pytest.raises(UserError, match="looking is 'whole'; set prefixes to null, or looking to"):
        method(folder, looking="whole", prefixes=PrefixBudget())


@pytest.mark.parametrize("looking", ["general", "whole", "linear"])
def test_what_needs_no_prefix_pools_as_it_likes(folder: Path, looking: str) -> None:
    module = method(folder, {"pooling": "mean"}, looking=looking).eval()
    pictures, templates = images(3), PromptableTemplates()
    with torch.no_grad():
        found = module.encode_views(
            module.image_collator()(pictures), [QUESTION], torch.ones(1, 3, dtype=torch.bool)
        )[0]
        asked = [Prompt(templates.prompted, QUESTION, picture.load()) for picture in pictures]
        expected = module.llm(module.llm.processor(asked))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"llm\.pooling is mean.*needs llm\.pooling: last"):
        method(folder, {"pooling": "mean"})


def test_layers_without_a_cache_are_read_in_one_forward(folder: Path) -> None:
    module = method(folder, looking="whole")
    layers = ["linear_attention", "full_attention"]
    module.llm.speaker.config.get_text_config().layer_types = layers
    module.on_weights_read()
    module.looking = "prefix"
    with pytest.raises(UserError, match=r"layers of kind linear.*\(looking: whole\)"):
        module.on_weights_read()


@pytest.mark.parametrize("looking", ["whole", "prefix", "linear"])
def test_templates_that_begin_differently_serve_general_alone(folder: Path, looking: str) -> None:
    templates = PromptableTemplates(prompted="Look: <image> {text}")
    sentence = r"templates\.prompted is 'Look: .* and templates\.image is .*; write the same before"
    with pytest.raises(UserError, match=sentence):
        method(folder, looking=looking, templates=templates)
    method(folder, looking="general", templates=templates)


@pytest.mark.parametrize("looking", ["whole", "prefix", "linear"])
def test_words_before_the_picture_are_refused_with_the_model(folder: Path, looking: str) -> None:
    templates = PromptableTemplates(prompted="{text}<image>")
    with pytest.raises(UserError, match=r"'{text}<image>' has {text} before <image>"):
        method(folder, looking=looking, templates=templates)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"prefixes\.gib is inf; set it above 0 and below infinity"):
        PrefixBudget(float("inf"))
    with pytest.raises(UserError, match=r"prefixes\.gib is 0\.0; set it above 0"):
        PrefixBudget(0.0)


def test_coco_facet_is_looked_at_with_the_questions_of_its_facets(
    folder: Path, tmp_path: Path
) -> None:
    """The published layout: texts, and images by path or by number, the right one first."""
    pictures = images(9)
    for place in ("val2017/{:012d}.jpg", "visual7w/images/v7w_{}.jpg", "{:012d}.jpg"):
        for number, picture in enumerate(pictures, start=1):
            path = tmp_path / place.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.load().save(path)
    for facet in PLACES:
        numbers = [[1, 2, 3], [5, 4, 3], [7, 8, 9]]
        rows = [
            {"qry_text": f"Find me an image that contains any {n}.\n", "tgt_img_path": str(n)}
            for n in numbers
        ]
        write_json(tmp_path / "benchmark" / f"{facet}_retrieval.json", rows)
    found = {}
    for looking in ("general", "whole", "prefix"):
        module = method(folder, looking=looking, prompts=PromptByFacet("gpt"))
        benchmark = COCOFacet(str(tmp_path), official=False)
        found[looking] = evaluate(module, benchmark)
        if looking == "prefix":
            (views,) = module.views.values()
    assert found["prefix"] == found["whole"] != found["general"]
    assert len(found["prefix"]["breakdown"]["facet"]) == len(PLACES) == len(views.prompts)
    # Of each facet's images, those that its queries rank and no others.
    assert views.needed.sum(dim=1).tolist() == [len({n for row in numbers for n in row})] * 8


def test_vectors_of_another_precision_are_others(folder: Path, tmp_path: Path) -> None:
    evaluate(method(folder, looking="general", store=str(tmp_path)))
    module = method(folder, looking="general", store=str(tmp_path))
    with pictures_read(module) as read:
        evaluate(module, precision="bf16-mixed")
    assert read


def test_galleries_that_share_ids_have_vectors_of_their_own(folder: Path, tmp_path: Path) -> None:
    def results(store: str | None) -> dict[str, Any]:
        retrieval = RetrievalEvaluation()
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[retrieval]
        )
        sizes = [
            WorldFacet(8, queries_per_facet=2, negatives=5, name=f"of_{size}", image_size=size)
            for size in (64, 16)
        ]
        module = method(folder, looking="general", store=store)
        trainer.validate(module, data(benchmarks=sizes), verbose=False)
        return retrieval.results

    assert results(None) == results(str(tmp_path)) == results(str(tmp_path))
