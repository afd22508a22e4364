"""An adapted LLM learns the same under every strategy, and checkpoints fit any other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import PIL.Image
import pytest
import torch
from lightning.pytorch.strategies import Strategy, model_parallel
from torch.distributed.checkpoint import save
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from callbacks import AtomicCheckpointIO
from cirlab.checkpoints import METADATA, is_checkpoint, read_checkpoint
from cirlab.command.checkpoint_config import read_metadata
from cirlab.distributed import leave
from cirlab.encoders.adapters import Lora
from cirlab.errors import UserError
from cirlab.records import DecodedImage, Pair
from lightning_modules import CoLLM
from lightning_modules.collm import LLMSettings, Synthesis
from lightning_modules.sharding import layers
from lightning_modules.strategies import FSDP1Strategy, FSDP2Strategy
from tests.distributed.processes import WORLD, run_in_processes
from tests.tiny import write_tiny_clip, write_tiny_llm

COLOURS = ("red", "green", "blue", "black")
GLOBAL_BATCH, EPOCH, END = 8, 2, 4

#: Each with the norm that it clips gradients to; FSDP1 cannot.
STRATEGIES: dict[str, tuple[Callable[[], Strategy | str], float | None]] = {
    "alone": (lambda: "auto", 0.5),
    "unclipped": (lambda: "auto", None),
    "ddp": (lambda: "ddp", 0.5),
    "fsdp2": (FSDP2Strategy, 0.5),
    "fsdp2_folder": (lambda: FSDP2Strategy(save_distributed_checkpoint=True), 0.5),
    "fsdp1": (FSDP1Strategy, None),
}
TOGETHER = ("ddp", "fsdp2", "fsdp2_folder", "fsdp1")


def optimizer(parameters: Any) -> SGD:
    # Momentum is state that a checkpoint has to hold; Adam would blow rounding errors up.
    return SGD(parameters, lr=0.1, momentum=0.9)


def method(models: Path, dtype: Any = "float32", **options: Any) -> CoLLM:
    L.seed_everything(0, verbose=False)
    lora = Lora(rank=4, alpha=8, dropout=0.0)
    return CoLLM(
        clip=f"local-dir:{models / 'clip'}",
        llm=LLMSettings(str(models / "llm"), lora=lora, dtype=dtype),
        optimizer=optimizer,
        synthesis=Synthesis(image=False, text=False, rotation=0.0),
        **options,
    )


class Pairs(L.LightningDataModule):
    """The same pairs in the same global batches, whatever the number of processes."""

    def train_dataloader(self) -> DataLoader[Any]:
        pairs = [
            Pair(
                DecodedImage(id=str(i), pixels=PIL.Image.new("RGB", (32, 32), COLOURS[i % 4])),
                (f"a {COLOURS[i % 4]} {'circle' if i % 3 else 'square'}",),
            )
            for i in range(GLOBAL_BATCH * EPOCH)
        ]
        trainer = self.trainer
        assert trainer is not None and isinstance(trainer.lightning_module, CoLLM)
        kwargs = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        dataset = cast("Dataset[Pair]", pairs)
        sampler: DistributedSampler[Pair] = DistributedSampler(dataset, shuffle=False, **kwargs)
        return DataLoader(
            dataset,
            batch_size=GLOBAL_BATCH // kwargs["num_replicas"],
            sampler=sampler,
            collate_fn=trainer.lightning_module.train_collator(),
        )


def train(
    module: CoLLM,
    name: str,
    to: Path,
    steps: int,
    resume: Path | None = None,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> CoLLM:
    """Train up to a step and leave the checkpoint `to`."""
    strategy, clip = STRATEGIES[name]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=WORLD if name in TOGETHER else 1,
        strategy=strategy(),
        precision=precision,
        max_steps=steps,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(module, Pairs(), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(to)
    return module


def train_and_resume(models: Path, name: str, folder: Path) -> None:
    train(method(models), name, folder / name / "half.ckpt", EPOCH)
    train(method(models), name, folder / name / "end.ckpt", END, folder / name / "half.ckpt")


class Killed(BaseException):
    """Ends a checkpoint as a kill does."""


def save_and_be_killed(trainer: L.Trainer, to: Path) -> None:
    """All parts are written, but not what else a checkpoint holds."""

    def write_parts(*args: Any) -> None:
        save_parts(*args)
        raise Killed

    save_parts = model_parallel._distributed_checkpoint_save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(model_parallel, "_distributed_checkpoint_save", write_parts)
        trainer.save_checkpoint(to)


def train_and_be_killed(models: Path, folder: Path, rank: int) -> None:
    """Leaves half a checkpoint, and two that were written where half of one was."""
    half, parts, file = (folder / "killed" / f"{name}.ckpt" for name in ("half", "parts", "file"))
    trainer = train(method(models), "fsdp2_folder", half, EPOCH).trainer
    save_and_be_killed(trainer, half)
    if rank == 0:
        for path in (parts, file):
            shutil.copytree(half, path)
            # Of a process that is no more.
            (path / "__9_0.distcp").touch()
    trainer.strategy.barrier()
    trainer.save_checkpoint(parts)
    train(method(models), "fsdp2", file, EPOCH)


def train_together(rank: int, models: Path, folder: Path) -> list[str]:
    """What is only seen inside a process; the rest lies in files."""
    # Lightning then takes this process as one that was started for it.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    for name in TOGETHER:
        train_and_resume(models, name, folder)
    train_and_be_killed(models, folder, rank)
    alone = folder / "alone" / "half.ckpt"
    train(method(models), "fsdp2", folder / "fsdp2" / "from_alone.ckpt", END, alone)
    chunked = method(models, chunk_size=2)
    train(chunked, "fsdp2", folder / "fsdp2" / "chunks.ckpt", EPOCH)
    if rank == 0:
        save({"state_dict": {}}, checkpoint_id=folder / "half_precision.ckpt", no_dist=True)
        torch.save({}, folder / "half_precision.ckpt" / METADATA)
    sharded = train(method(models, "bfloat16"), "fsdp2", folder / "half_precision.ckpt", EPOCH)
    seen = [type(sharded).__name__, type(layers(sharded)[0]).__name__]
    for strategy, dtype, lora in (("fsdp1", "bfloat16", True), ("fsdp2", "bfloat16", False)):
        broken = method(models, dtype)
        broken.llm_settings.lora = broken.llm_settings.lora if lora else None
        with pytest.raises(UserError) as caught:
            train(broken, strategy, folder / "never.ckpt", 1, precision="bf16-mixed")
        seen.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        other = Lora(rank=2, alpha=8, dropout=0.0)
        broken = method(models)
        broken.llm_settings.lora = other
        train(broken, "fsdp2", folder / "never.ckpt", END, folder / "fsdp2" / "half.ckpt")
    return [*seen, str(caught.value)]


def train_and_leave(rank: int, models: Path, folder: Path, name: str) -> int:
    """Threads of gloo that are left."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(WORLD))
    train(method(models), name, folder / "left.ckpt", steps=1)
    leave()
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return names.count("pt_gloo_runloop")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny_clip(root / "clip")
    write_tiny_llm(root / "llm")
    return root


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `half.ckpt` and, resumed from it, `end.ckpt` of every strategy."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("alone", "unclipped"):
        train_and_resume(models, name, folder)
    seen = run_in_processes(train_together, folder, models, folder)
    torch.save(seen, folder / "seen.pt")
    return folder


def reference(name: str) -> str:
    return "unclipped" if name == "fsdp1" else "alone"


def assert_equal_states(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Weights and momentum, which is the sum of the gradients so far, of two checkpoints."""
    assert one["state_dict"].keys() == two["state_dict"].keys()
    pairs = [(name, value, two["state_dict"][name]) for name, value in one["state_dict"].items()]
    first, second = one["optimizer_states"][0], two["optimizer_states"][0]
    assert first["param_groups"][0]["params"] == second["param_groups"][0]["params"]
    for place, moments in first["state"].items():
        pairs.append((place, moments["momentum_buffer"], second["state"][place]["momentum_buffer"]))
    for name, expected, found in pairs:
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("when", ["half", "end"])
def test_two_processes_learn_as_one(name: str, when: str, runs: Path) -> None:
    path = runs / name / f"{when}.ckpt"
    assert path.is_dir() == (name == "fsdp2_folder")
    alone = read_checkpoint(runs / reference(name) / f"{when}.ckpt")
    together = read_checkpoint(path)
    assert_equal_states(alone, together)
    assert alone["frozen_fingerprint"] == together["frozen_fingerprint"]
    assert read_metadata(path)["global_step"] == (EPOCH if when == "half" else END)


def test_a_batch_in_chunks_has_the_same_gradient_when_layers_are_sharded(runs: Path) -> None:
    expected = read_checkpoint(runs / "alone" / "half.ckpt")
    assert_equal_states(expected, read_checkpoint(runs / "fsdp2" / "chunks.ckpt"))


def test_only_what_is_learned_is_written(runs: Path) -> None:
    half, end = (
        read_checkpoint(runs / "alone" / f"{n}.ckpt")["state_dict"] for n in ("half", "end")
    )
    assert {name.split(".")[0] for name in half} == {"llm", "adapter", "projection"}
    assert all(".lora_" in name for name in half if name.startswith("llm."))
    assert all((half[name] != end[name]).any() for name in half)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_folder", "fsdp1"])
def test_one_process_goes_on_where_two_have_stopped(name: str, models: Path, runs: Path) -> None:
    to, half = runs / name / "alone.ckpt", runs / name / "half.ckpt"
    train(method(models), reference(name), to, END, half)
    assert_equal_states(read_checkpoint(runs / reference(name) / "end.ckpt"), read_checkpoint(to))


def test_what_a_kill_leaves_of_a_folder_is_no_checkpoint_and_makes_way(runs: Path) -> None:
    folder = runs / "killed"
    assert (folder / "half.ckpt" / ".metadata").is_file()
    assert not is_checkpoint(folder / "half.ckpt")
    expected = read_checkpoint(runs / "alone" / "half.ckpt")
    for name, in_parts in (("parts", True), ("file", False)):
        path = folder / f"{name}.ckpt"
        assert path.is_dir() == in_parts and not list(path.glob("__9*"))
        assert_equal_states(expected, read_checkpoint(path))


def test_a_run_in_parts_goes_on_under_its_name_in_one_file(
    models: Path, runs: Path, tmp_path: Path
) -> None:
    last = shutil.copytree(runs / "fsdp2_folder" / "half.ckpt", tmp_path / "last.ckpt")
    train(method(models), "alone", last, END, resume=last)
    assert list(tmp_path.iterdir()) == [last] and last.is_file()
    assert_equal_states(read_checkpoint(runs / "alone" / "end.ckpt"), read_checkpoint(last))


def test_two_processes_go_on_where_one_has_stopped(runs: Path) -> None:
    expected = read_checkpoint(runs / "alone" / "end.ckpt")
    assert_equal_states(expected, read_checkpoint(runs / "fsdp2" / "from_alone.ckpt"))


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_folder"])
def test_another_run_starts_from_it(name: str, models: Path, runs: Path) -> None:
    path = runs / name / "half.ckpt"
    module = method(models, init_from=str(path))
    module.configure_model()
    state = module.state_dict()
    for key, value in read_checkpoint(path)["state_dict"].items():
        assert torch.equal(state[key], value)


def test_what_a_process_sees(runs: Path) -> None:
    for seen in torch.load(runs / "seen.pt"):
        method_name, layer, flat, mixed, other = seen
        assert (method_name, layer) == ("CoLLM", "FSDPMistralDecoderLayer")
        assert "torch.bfloat16 and torch.float32" in flat and "overlays/fsdp2.yaml" in flat
        assert "torch.bfloat16 and torch.float32" in mixed and "llm.dtype: float32" in mixed
        assert other.startswith("the checkpoint is of another architecture")
    # It stands where a folder of another run was.
    assert (runs / "half_precision.ckpt").is_file()
    half = read_checkpoint(runs / "half_precision.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in half.values())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_no_thread_of_gloo_outlives_the_groups(name: str, models: Path, tmp_path: Path) -> None:
    """One that lets go of a tensor while the interpreter ends would abort the process."""
    assert run_in_processes(train_and_leave, tmp_path, models, tmp_path, name) == [0, 0]
