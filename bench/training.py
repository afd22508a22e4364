"""A training step on photographs, with and without cached features of the frozen image tower."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from bench.measure import Row, in_turns
from cirlab.command.cpu import tune_for_cpu
from cirlab.encoders.dual.collate import ImageReader
from cirlab.encoders.feature_cache import cached_features
from cirlab.encoders.pair_collator import PairCollator
from cirlab.records import FileImage, Image, Pair
from lightning_modules import CLIP, ClipFromScratch

BATCH, IMAGES, STEPS, REPEATS = 32, 64, 2, 3
WORDS = "a photo of something red green blue".split()


def run() -> list[Row]:
    """Pairs per second, reading and decoding the files included."""
    tune_for_cpu("32-true")
    with tempfile.TemporaryDirectory() as folder:
        pairs = photographs(Path(folder))
        module = photo_clip(Path(folder))
        encoder = module.encoder
        assert encoder is not None
        images = [pair.image for pair in pairs]
        plain = ImageReader(encoder.processor)

        def features(images: Sequence[Image]) -> Any:
            with torch.inference_mode():
                yield encoder.backbone_features(plain(images)["pixels"])

        cache = cached_features(Path(folder), "bench", images, features)
        cached = ImageReader(encoder.processor, cache)
        ours, reference = in_turns(
            lambda: rate(module, PairCollator(cached), pairs),
            lambda: rate(module, PairCollator(plain), pairs),
            REPEATS,
        )
    return [
        Row(
            "training step, MobileNetV2 frozen, features cached",
            ours,
            reference,
            unit="pairs/s",
            reference_name="features computed in each step",
            less_is_better=False,
        )
    ]


def rate(
    module: CLIP, collate: Callable[[list[Pair]], Mapping[str, Any]], pairs: list[Pair]
) -> float:
    """Pairs per second of loading, forward, backward and update."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
    start = time.perf_counter()
    for step in range(STEPS):
        batch = collate(pairs[step * BATCH : (step + 1) * BATCH])
        loss = torch.stack(list(module.losses(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return STEPS * BATCH / (time.perf_counter() - start)


def photographs(folder: Path) -> list[Pair]:
    """JPEG files of noise, 224 pixels, with captions."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(IMAGES):
        path = folder / f"{i}.jpg"
        PIL.Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)).save(path)
        caption = " ".join(rng.choice(WORDS, 8))
        pairs.append(Pair(FileImage(id=path.name, path=path), (caption,)))
    return pairs


def photo_clip(folder: Path) -> CLIP:
    """The architecture of experiments/real/photo_clip.yaml, without its weights."""
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    np.save(folder / "vectors.f32.npy", np.ones((len(WORDS), 4), dtype=np.float32))
    module = CLIP(
        from_scratch=ClipFromScratch(
            embed_dim=256,
            vocabulary=str(folder),
            vision={"image_size": 224, "timm_model_name": "mobilenetv2_100_same"},
            text={"context_length": 40, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"},
            text_transformer={
                "model_type": "bert",
                "hidden_size": 300,
                "num_hidden_layers": 1,
                "num_attention_heads": 6,
                "intermediate_size": 600,
                "max_position_embeddings": 64,
            },
        ),
        export_to=str(folder / "model"),
        freeze_backbone=True,
    )
    module.configure_model()
    return module
