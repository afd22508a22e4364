"""Methods of each kind, and one optimiser step of theirs through a real trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import PIL.Image
import torch
from lightning.pytorch.strategies import Strategy
from torch.optim import SGD
from torch.utils.data import DataLoader, DistributedSampler

from cirlab.encoders.adapters import Lora, TowerLora
from cirlab.encoders.mllm.settings import MLLMSettings
from cirlab.recall_surrogate import RecallSurrogate
from cirlab.records import CaptionTriplet, DecodedImage, Pair, TextPair, Triplet
from lightning_modules import CLIP, ChatIR, CoLLM, EmbeddingLanguageModel, InstructCIR
from lightning_modules.collm import LLMSettings, Synthesis
from lightning_modules.learner import Learner
from lightning_modules.sharding import gathered
from tests.tiny import write_tiny_clip, write_tiny_llm
from tests.tiny_blip import write_tiny_blip
from tests.tiny_mllm import write_tiny_mllm

Kind = Literal["clip", "chatir", "pairs", "triplets", "texts", "caption_triplets"]
KINDS: tuple[Kind, ...] = ("clip", "chatir", "pairs", "triplets", "texts", "caption_triplets")
#: Records of an optimiser step, of which half are a batch.
RECORDS = 20
CLIP_NORM = 0.05

COLOURS = ("red", "green", "blue", "black")
SHAPES = ("circle", "square")


def _image(i: int) -> DecodedImage:
    picture = PIL.Image.new("RGB", (32, 32), COLOURS[i % 4])
    picture.paste((10 * i, 40, 200), (i, 0, i + 6, 12))
    return DecodedImage(id=str(i), pixels=picture)


def _text(i: int) -> str:
    return f"a {COLOURS[i % 4]} {SHAPES[i % 2]}" + " now" * (i % 3)


def write_models(folder: Path) -> Path:
    """The pretrained models that the methods stand on."""
    write_tiny_clip(folder / "clip")
    write_tiny_blip(folder / "blip")
    write_tiny_llm(folder / "llm")
    write_tiny_mllm(folder / "mllm")
    return folder


def records(kind: Kind) -> Sequence[Any]:
    """Texts of several lengths."""
    if kind == "texts":
        return [TextPair(_text(i), _text(i + 4)) for i in range(RECORDS)]
    if kind == "caption_triplets":
        return [
            CaptionTriplet(_image(i), _text(i), f"make it {_text(i)}", f"{_text(i + 1)} {i}")
            for i in range(RECORDS)
        ]
    if kind == "triplets":
        return [Triplet(_image(i), (_text(i),), _image(i + RECORDS)) for i in range(RECORDS)]
    return [Pair(_image(i), (_text(i),)) for i in range(RECORDS)]


def method(kind: Kind, models: Path, dropout: float = 0.0, **options: Any) -> Learner:
    """Freshly made, its weights always the same.

    Args:
        kind: what it learns from, CLIP aside.
        models: folder of what `write_models` writes.
        dropout: a fraction, wherever the method has any.
        options: of the method; `gradient_checkpointing` and `four_bit` of its LLM.
    """
    torch.manual_seed(0)
    clip = f"local-dir:{models / 'clip'}"
    if kind == "clip":
        module: Learner = CLIP(model=clip, optimizer=_sgd, **options)
        module.configure_model()
        return _patch_dropout(module, dropout)
    if kind == "chatir":
        blip, loss = f"blip:{models / 'blip'}", RecallSurrogate(temperature=0.2)
        return ChatIR(blip, loss=loss, dropout=dropout, optimizer=_sgd, **options)
    if kind == "texts":
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        heads |= {"max_position_embeddings": 64}
        config = {"model_type": "mistral", "attention_dropout": dropout, **sizes, **heads}
        export_to = str(models / "exported")
        return EmbeddingLanguageModel(config, export_to, optimizer=_sgd, **options)
    if kind == "caption_triplets":
        checkpointing = options.pop("gradient_checkpointing", False)
        lora = Lora(rank=2, alpha=8, dropout=dropout)
        llm = MLLMSettings(
            str(models / "mllm"), lora, gradient_checkpointing=checkpointing, max_length=200
        )
        return InstructCIR(llm, optimizer=_sgd, **options)
    settings = LLMSettings(
        str(models / "llm"),
        lora=Lora(rank=2, alpha=8, dropout=dropout),
        gradient_checkpointing=options.pop("gradient_checkpointing", False),
        four_bit=options.pop("four_bit", None),
    )
    return CoLLM(
        clip=clip,
        llm=settings,
        tower_lora=TowerLora(rank=2, alpha=8, dropout=dropout),
        synthesis=Synthesis(rotation=10.0),
        optimizer=_sgd,
        **options,
    )


def _patch_dropout(module: Learner, dropout: float) -> Learner:
    from open_clip.transformer import PatchDropout

    assert isinstance(module, CLIP) and module.encoder is not None
    if dropout:
        module.encoder.model.visual.patch_dropout = PatchDropout(dropout)
    return module


def _sgd(parameters: Any) -> SGD:
    # One step is the gradient, as it was clipped; Adam would blow rounding errors up.
    return SGD(parameters, lr=1.0)


class Records(L.LightningDataModule):
    """The same global batches in the same order, whatever the number of processes."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> DataLoader[Any]:
        trainer: Any = self.trainer
        data: Any = records(self.kind)
        where = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        return DataLoader(
            data,
            batch_size=RECORDS // 2 // where["num_replicas"],
            sampler=DistributedSampler(data, shuffle=False, **where),
            collate_fn=trainer.lightning_module.train_collator(),
        )


def one_step(
    kind: Kind,
    make: Callable[[], Learner],
    strategy: Strategy | str = "auto",
    devices: int = 1,
) -> torch.Tensor:
    """How all learned weights move in a step of two accumulated batches, clipped. Shape (N,)."""
    L.seed_everything(0, verbose=False)
    module = make()
    module.configure_model()
    before = _learned(module)
    L.seed_everything(1, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=1,
        accumulate_grad_batches=2,
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, Records(kind))
    moved = _learned(module) - before
    torch.testing.assert_close(moved.norm(), torch.tensor(CLIP_NORM), rtol=1e-3, atol=0.0)
    return moved


def _learned(module: Learner) -> torch.Tensor:
    named = sorted((n, p) for n, p in module.named_parameters() if p.requires_grad)
    return torch.cat([gathered(p.detach()).flatten() for _, p in named])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative."""
    return float((one - other).norm() / one.norm())
