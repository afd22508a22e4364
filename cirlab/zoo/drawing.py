"""How well the zoo's painter draws: does the zoo's CLIP tell its pictures by their captions?

`python -m cirlab.zoo.drawing` measures, `--sheet drawn.png` shows pictures as well. Captions of the
validation split, which no training sees, each drawn once; beside it the same figures of the world's
own pictures of these scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tqdm import tqdm

from cirlab.benchmarks import WorldTextToImage
from cirlab.encoders.dual.loading import load_dual_encoder
from cirlab.errors import UserError
from cirlab.imagination.pipeline import Pipeline, Settings
from cirlab.metrics import mean_rank, recalls
from cirlab.reporting.sheet import Row
from cirlab.reporting.sheet import draw as draw_sheet

PAINTER, JUDGE = "zoo:tiny_painter", "zoo:tiny_clip"
#: How the painter is asked to draw.
SETTINGS = Settings(steps=20, guidance=3.0)
_BATCH = 50
#: Rows of a sheet, and pictures of each text in it.
_ROWS, _COLUMNS = 10, 4


def measure(
    name: str = PAINTER, captions: int = 1000, settings: Settings = SETTINGS, seed: int = 0
) -> dict[str, Any]:
    """Recall of the caption that a picture was drawn from, among all of them.

    Args:
        name: of the pipeline.
        captions: full ones of as many held-out scenes; each is drawn once.
        settings: of the drawing.
        seed: of the noise.

    Returns:
        `recall_at_1`, `_5`, `_10` in [0, 1] and `mean_rank`; the same of `world_pictures`; and
        what was measured.
    """
    benchmark = WorldTextToImage(scenes=captions)
    benchmark.setup()
    texts = [query.text for query in benchmark.queries]
    drawn = draw(name, texts, settings, seed)
    shown = [image.load() for image in benchmark.gallery]
    return {
        **_figures(ranks(drawn, texts)),
        "world_pictures": _figures(ranks(shown, texts)),
        "captions": captions,
        "judge": JUDGE,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "seed": seed,
    }


def draw(
    name: str, texts: Sequence[str], settings: Settings = SETTINGS, seed: int = 0
) -> list[PIL.Image.Image]:
    """One picture of each text, the noise of which its position decides."""
    pipeline = Pipeline(name, "float32", torch.device("cpu"))
    drawn: list[PIL.Image.Image] = []
    for start in tqdm(range(0, len(texts), _BATCH), desc="pictures", delay=2, disable=None):
        part = texts[start : start + _BATCH]
        seeds = [seed * 1_000_003 + start + number for number in range(len(part))]
        drawn += pipeline.draw(part, seeds, settings)
    return drawn


def ranks(pictures: Sequence[PIL.Image.Image], texts: list[str]) -> torch.Tensor:
    """The rank of each picture's own text among all, by the judge.

    Args:
        pictures: N of them.
        texts: of each.

    Returns:
        1-based, ties counted against it. Shape (N,).
    """
    judge = load_dual_encoder(JUDGE).eval()
    processor = judge.processor
    starts = range(0, len(texts), _BATCH)
    with torch.inference_mode():
        parts = [pictures[start : start + _BATCH] for start in starts]
        images = torch.cat([judge.encode_images(processor.images(part)) for part in parts])
        tokens = [processor.tokenize(texts[start : start + _BATCH]) for start in starts]
        scores = images @ torch.cat([judge.encode_texts(part) for part in tokens]).T
    return (scores >= scores.diagonal()[:, None]).sum(dim=1)


def _figures(found: torch.Tensor) -> dict[str, float]:
    return recalls(found[:, None], (1, 5, 10)) | {"mean_rank": mean_rank(found[:, None])}


def sheet(name: str, settings: Settings) -> PIL.Image.Image:
    """Captions, the world's own pictures of them, and what the pipeline draws."""
    benchmark = WorldTextToImage(scenes=_ROWS)
    benchmark.setup()
    texts = [query.text for query in benchmark.queries]
    columns = [draw(name, texts, settings, seed) for seed in range(_COLUMNS)]
    places = torch.stack([ranks(column, texts) for column in columns]).min(dim=0).values
    rows = [
        Row(None, text, image.load(), drawn, [False] * _COLUMNS, int(rank))
        for text, image, drawn, rank in zip(
            texts, benchmark.gallery, zip(*columns, strict=True), places, strict=True
        )
    ]
    return draw_sheet(rows, f"{name}: captions, the world's pictures of them, and its own")


def main() -> None:
    """Print what is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pipeline", default=PAINTER, help="a text-to-image pipeline")
    parser.add_argument("--captions", type=int, default=1000, help="drawn and ranked")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=SETTINGS.guidance, help="by the text")
    parser.add_argument("--sheet", type=Path, help="a PNG file to show some pictures in")
    options = parser.parse_args()
    try:
        settings = Settings(options.steps, options.guidance)
        figures = measure(options.pipeline, options.captions, settings)
        if options.sheet is not None:
            sheet(options.pipeline, settings).save(options.sheet)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{json.dumps(figures, indent=2)}\n")


if __name__ == "__main__":
    main()
