"""`python -m cirlab.demo --image FILE`: what pretrained models say of an image.

A description, answers to questions, features, and how well texts match it, on the terminal and as a
picture. Without --image it is a scene of the built-in world, which the zoo's small models know; for
photographs name others, such as `--captioner Salesforce/blip-image-captioning-base --answerer
<multimodal LLM> --matcher ViT-B-32 --pretrained openai`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from cirlab.chat.llm import named_device
from cirlab.demo.abilities import ANSWERER, Abilities, default_captioner, default_matcher
from cirlab.demo.picture import Section, draw_sections
from cirlab.dialogue.pool import WORLD, read_pool
from cirlab.encoders.names import ZOO_PREFIX
from cirlab.errors import UserError
from cirlab.reading.atomic import whole_file
from cirlab.records import FileImage, Image
from cirlab.world.image import SceneImage
from cirlab.world.language import full_caption
from cirlab.world.scene import Scene, draw_scene, generator

log = logging.getLogger(__name__)

#: Questions that are put where none are given.
QUESTIONS = 4
#: Texts that every image is compared with beside its own description.
TEXTS = (
    "a photo of a person",
    "a photo of an animal",
    "a drawing of simple shapes",
    "an empty room",
)
#: Scenes whose descriptions a scene is compared with.
OTHERS = 3
#: Numbers of the features that are told.
TOLD = 6


def run(options: argparse.Namespace, console: Console) -> None:
    """Show all abilities as the command line says.

    Raises:
        UserError: an option, the image or a model is of no use.
    """
    if options.output.suffix.lower() != ".png":
        raise UserError(
            f"the output {options.output} would be a PNG file; let its name end in .png"
        )
    image, texts = _world(options.scene) if options.image is None else _own(options.image)
    picture = image.load()
    able = Abilities(
        options.captioner,
        options.answerer,
        options.matcher,
        options.pretrained,
        named_device(options.device),
    )
    if options.image is not None and able.captioner.startswith(ZOO_PREFIX):
        console.print(
            "The zoo's small models know the built-in world only; --help tells of others."
        )
    pool = read_pool(WORLD if options.image is None else "photographs")
    questions, texts = options.question or pool[:QUESTIONS], options.text or texts
    shown = []
    for section in _sections(able, image, questions, texts):
        _tell(section, console)
        shown.append(section)
    with whole_file(options.output) as unfinished:
        draw_sections(picture, shown).save(unfinished, format="PNG")
    console.print(f"\npicture: {options.output}", markup=False, highlight=False, soft_wrap=True)


def _sections(
    able: Abilities, image: Image, questions: Sequence[str], texts: Sequence[str]
) -> Iterator[Section]:
    """What each ability says, one after the other."""
    caption = able.caption(image)
    yield Section(f"description ({able.captioner})", [caption])
    answers = [f"{question} {able.answer(image, question)}" for question in questions]
    yield Section(f"answers ({able.answerer})", answers)
    features = able.image_features([image])[0]
    numbers = ", ".join(f"{number:.3f}" for number in features[:TOLD].tolist())
    told = f"{len(features)} numbers: {numbers}, .."
    yield Section(f"features ({able.matcher})", [told], features)
    matches = able.match(image, list(dict.fromkeys([caption, *texts])))
    lines = [
        f"{each.similarity:.3f}  {each.text}"
        if each.together is None
        else f"{each.similarity:.3f}  {100 * each.together:5.1f}%  {each.text}"
        for each in matches
    ]
    by = "cosine" if matches[0].together is None else "cosine, surety of the two read together"
    yield Section(f"texts by how they match, {by} ({able.matcher})", lines)


def _tell(section: Section, console: Console) -> None:
    console.print(f"\n{section.title}", style="bold", markup=False, highlight=False, soft_wrap=True)
    for line in section.lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _world(number: int) -> tuple[Image, list[str]]:
    """A scene, and descriptions of it and of others."""
    scenes = [_scene(number + step) for step in range(1 + OTHERS)]
    return SceneImage(f"scene {number}", scenes[0]), [full_caption(scene) for scene in scenes]


def _scene(number: int) -> Scene:
    return draw_scene(generator("val", 0, number))


def _own(path: Path) -> tuple[Image, list[str]]:
    return FileImage(id=str(path), path=path), list(TEXTS)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 if an option, the image or a model is of no use.
    """
    options = _parser().parse_args(args)
    # Libraries tell of every file that they read.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()
    try:
        run(options, Console())
    except UserError as error:
        log.error("error: %s", error)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cirlab.demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--image", type=Path, help="an image file; none: a scene of the built-in world")
    add("--scene", type=int, default=0, help="number of that scene")
    add("--question", action="append", default=[], help="about the image; may be given again")
    add("--text", action="append", default=[], help="to be matched; may be given again")
    add("--captioner", default=default_captioner(), help="multimodal LLM, BLIP or BLIP-2")
    add("--answerer", default=ANSWERER, help="multimodal LLM, or a BLIP that answers questions")
    add("--matcher", default=default_matcher(), help="open_clip model, zoo:name, or blip:name")
    add("--pretrained", help="open_clip's tag of the matcher's weights")
    add("--output", type=Path, default=Path("runs/demo.png"), help="the picture")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the models run",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
