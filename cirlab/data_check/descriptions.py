"""Where data sets come from, under which terms, and what a folder with them holds.

Sizes are given only where they could be verified against the files or their documentation; those
that benchmarks check are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cirlab.benchmarks import chatir, circo, cirr, coco_facet, fashioniq, genecis, karpathy
from cirlab.data_check import own_folder
from cirlab.dialogue.files import CHATIR_DIALOGUES
from cirlab.errors import UserError

#: Stands for the data folder in the arguments of a part.
ROOT = "{root}"


@dataclass(frozen=True)
class Part:
    """Something of a data set that can be read by itself: a split, a category, a task.

    Attributes:
        name: within the data set.
        class_path: of a `Benchmark`, or of another class with `setup()`, `gallery` and `queries`
            (`checking.Readable`). One that takes `images` can be told where these lie.
        arguments: of the class; `ROOT` in a text stands for the data folder.
        needs: files and folders below the root without which the part is passed over; patterns
            need one match.
        queries: their published number; None where none could be verified.
        pool: published number of gallery images.
        candidates: published number of images that each query ranks, where queries have their own.
        training: whether its `queries` are training records.
    """

    name: str
    class_path: str
    arguments: Mapping[str, Any]
    needs: tuple[str, ...]
    queries: int | None = None
    pool: int | None = None
    candidates: int | None = None
    training: bool = False


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from, under which terms, and what is expected of a folder with it.

    Attributes:
        title: name and paper.
        annotations: where a user gets them, and their terms.
        images: the same of the images.
        source: where these terms and the sizes of the parts are stated.
        layout: paths below the root, with what they hold.
        parts: what is read.
        optional: whether nothing of the layout has to be there, as in one's own folder.
        more_parts: of what a look into the folder finds beyond `parts`.
        unread: files of the folder that look like data but that no part reads, with the reason.
    """

    title: str
    annotations: str
    images: str
    source: str
    layout: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    optional: bool = False
    more_parts: Callable[[Path], tuple[Part, ...]] | None = None
    unread: Callable[[Path], tuple[tuple[str, str], ...]] | None = None

    def parts_in(self, root: Path) -> tuple[Part, ...]:
        """All parts that are looked for in a folder."""
        return self.parts + (self.more_parts(root) if self.more_parts else ())

    def expected(self, path: str) -> tuple[str, ...]:
        """The files that parts need of a path of the layout, which may be a pattern."""
        needed = dict.fromkeys(need for part in self.parts for need in part.needs)
        return tuple(n for n in needed if "*" not in n and PurePosixPath(n).match(path))


_COCO = "https://cocodataset.org/#download; Flickr's terms of use hold for the photographs"
_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/datasets"
_BENCHMARKS = "cirlab.benchmarks"
_READERS = "cirlab.data_check.readers"


def _cirr(split: Literal["val", "test1"]) -> Part:
    return Part(
        name=split,
        class_path=f"{_BENCHMARKS}.CIRR",
        arguments={"root": ROOT, "split": split, "official": False},
        needs=_files_of_cirr(split),
        queries=cirr.PUBLISHED[split].queries,
        pool=cirr.PUBLISHED[split].images,
    )


def _cirr_training() -> Part:
    return Part(
        name="train",
        class_path=f"{_READERS}.CIRRTraining",
        arguments={"root": ROOT},
        needs=_files_of_cirr("train"),
        pool=cirr.TRAIN_IMAGES,
        training=True,
    )


def _files_of_cirr(split: str) -> tuple[str, str]:
    return cirr.captions_file(split), f"image_splits/split.{cirr.VERSION}.{split}.json"


def _circo(split: circo.Split) -> Part:
    return Part(
        name=split,
        class_path=f"{_BENCHMARKS}.CIRCO",
        arguments={"root": ROOT, "split": split, "official": False},
        needs=(
            f"annotations/{split}.json",
            circo.IMAGE_INFO,
        ),
        queries=circo.QUERIES[split],
    )


def _fashioniq(category: fashioniq.Category, split: str) -> Part:
    training = split == "train"
    return Part(
        name=f"train/{category}" if training else category,
        class_path=f"{_READERS}.FashionIQTraining" if training else f"{_BENCHMARKS}.FashionIQ",
        arguments={"root": ROOT, "category": category} | ({} if training else {"official": False}),
        needs=tuple(
            template.format(category=category, split=split)
            for template in (fashioniq.CAPTIONS, fashioniq.LIST)
        ),
        queries=fashioniq.PUBLISHED[split, category].queries,
        pool=fashioniq.PUBLISHED[split, category].images,
        training=training,
    )


def _genecis(task: genecis.Task) -> Part:
    return Part(
        name=task,
        class_path=f"{_BENCHMARKS}.GeneCIS",
        # `official`: the class counts a row's images, of which some are named twice.
        arguments={"root": ROOT, "task": task, "official": True},
        needs=(f"genecis/{task}.json",),
        queries=genecis.QUERIES.get(task),
        # A query of change_object has one less.
        candidates=genecis.CANDIDATES[task] if task == "focus_object" else None,
    )


def _facet(facet: str) -> Part:
    return Part(
        name=facet,
        class_path=f"{_BENCHMARKS}.COCOFacet",
        # `official`: the class counts a row's images, of which some are named twice.
        arguments={"root": ROOT, "facet": facet, "official": True},
        needs=(f"benchmark/{facet}_retrieval.json",),
    )


def _chatir(dialogues: str) -> Part:
    return Part(
        name=dialogues,
        class_path=f"{_BENCHMARKS}.ChatIR",
        arguments={"root": ROOT, "dialogues": dialogues, "official": False},
        needs=(f"dialogues/{dialogues}.json", "ChatIR_Protocol/Search_Space_val_50k.json"),
        queries=chatir.DIALOGUES * chatir.TEXTS_OF_A_DIALOGUE,
        pool=chatir.SEARCH_SPACE,
    )


def _karpathy(prefix: str, split: str, captions: int | None) -> Part:
    file = f"{prefix}_{split}.json"
    return Part(
        name=split,
        class_path=f"{_BENCHMARKS}.KarpathyTextToImage",
        arguments={"root": ROOT, "annotations": file, "official": False},
        needs=(file,),
        queries=captions,
        pool=karpathy.PUBLISHED_IMAGES.get(file),
    )


def _karpathy_training(prefix: str, captions: int | None, images: int | None) -> Part:
    return Part(
        name="train",
        class_path=f"{_READERS}.KarpathyTraining",
        arguments={"root": ROOT, "annotations": f"{prefix}_train.json"},
        needs=(f"{prefix}_train.json",),
        queries=captions,
        pool=images,
        training=True,
    )


def _images_of(reader: str, split: str, needs: tuple[str, ...]) -> Part:
    return Part(
        name=split,
        class_path=f"{_READERS}.{reader}",
        arguments={"root": ROOT, "split": split},
        needs=needs,
        training=True,
    )


#: The classes that read a split of one's own folder, and their files.
_OWN = (
    ("FolderTextToImage", "pairs.jsonl"),
    ("FolderImageToText", "pairs.jsonl"),
    ("FolderComposed", "composed.jsonl"),
    ("FolderDialogues", "dialogues.jsonl"),
    ("FolderFacets", "facets.jsonl"),
)


def _own(split: str, kind: str, file: str) -> Part:
    """Of one's own folder; only from images to texts the pool is not gallery.txt."""
    to_text = kind == "FolderImageToText"
    other = kind == "FolderComposed" and file != "composed.jsonl"
    return Part(
        name=f"{split}/{file}/image_to_text" if to_text else f"{split}/{file}",
        class_path=f"{_BENCHMARKS}.{kind}",
        arguments={"root": ROOT, "split": split, "name": split} | ({"file": file} if other else {}),
        needs=(f"{split}/{file}", *([] if to_text else [f"{split}/gallery.txt"])),
    )


def _more_of_ones_own(root: Path) -> tuple[Part, ...]:
    """Splits of other names, and composed queries in files of other names."""
    parts: list[Part] = []
    for split, files in own_folder.other_splits(root, ("train", "val", "test")):
        parts += [_own(split, kind, file) for kind, file in _OWN if file in files]
    composed = own_folder.composed_files(root)
    return (*parts, *(_own(split, "FolderComposed", file) for split, file in composed))


DATA_SETS: Mapping[str, DataSet] = {
    "cirr": DataSet(
        title="CIRR, composed retrieval on real-life images (arXiv 2108.04024)",
        annotations="git clone -b cirr_dataset https://github.com/Cuberick-Orion/CIRR; MIT",
        images="https://lil.nlp.cornell.edu/nlvr, by NLVR2's request form; its terms of service",
        source="README of Cuberick-Orion/CIRR; sizes are those of its files, version rc2",
        layout=(
            ("captions/cap.rc2.*.json", "queries of train, val and test1"),
            ("image_splits/split.rc2.*.json", "pools of train, val and test1"),
            ("img_raw", "NLVR2's images: train/<number>/*.png, dev/*.png, test1/*.png"),
        ),
        parts=(_cirr_training(), _cirr("val"), _cirr("test1")),
    ),
    "circo": DataSet(
        title="CIRCO, composed retrieval with several targets (arXiv 2303.15247)",
        annotations="https://github.com/miccunifi/CIRCO; CC BY-NC 4.0",
        images=f"2017 Unlabeled images at {_COCO}",
        source="README of miccunifi/CIRCO",
        layout=(
            ("annotations/*.json", "queries of val and test"),
            ("COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", "the pool"),
            ("COCO2017_unlabeled/unlabeled2017", "its images"),
        ),
        parts=(_circo("val"), _circo("test")),
    ),
    "fashioniq": DataSet(
        title="Fashion-IQ (arXiv 1905.12794)",
        annotations="https://github.com/XiaoxiaoGuo/fashion-iq; CDLA",
        images="addresses in https://github.com/hongwang600/fashion-iq-metadata, of which many "
        "are dead; no licence stated",
        source="README of XiaoxiaoGuo/fashion-iq; sizes are those of its files",
        layout=(
            ("captions/cap.*.json", "queries of dress, shirt and toptee, train and val"),
            ("image_splits/split.*.json", "their pools"),
            ("images", "<asin>.png or .jpg"),
        ),
        parts=tuple(
            _fashioniq(category, split)
            for split in ("train", "val")
            for category in fashioniq.CATEGORIES
        ),
    ),
    "genecis": DataSet(
        title="GeneCIS, conditional similarity (arXiv 2306.07969)",
        annotations="https://github.com/facebookresearch/genecis; CC BY-NC 4.0",
        images=f"2017 Val images at {_COCO}; Visual Genome 1.2 at https://visualgenome.org",
        source="README and DOWNLOAD.md of facebookresearch/genecis; sizes are those of its files",
        layout=(
            ("genecis/*.json", "focus_attribute, change_attribute, focus_object, change_object"),
            ("val2017", "COCO, for the object tasks"),
            ("VG_100K", "Visual Genome, for the attribute tasks"),
        ),
        parts=tuple(map(_genecis, genecis.TASKS)),
    ),
    "coco_facet": DataSet(
        title="COCO-Facet, retrieval by one attribute of an image (arXiv 2505.15877)",
        annotations="https://huggingface.co/datasets/lst627/COCO-Facet; no licence stated",
        images=f"2017 Val images at {_COCO}; Visual7W; VisDial's val2018 (see visdial)",
        source="README and construction notebooks of lst627/COCO-Facet",
        layout=(
            ("benchmark/*_retrieval.json", "queries of eight facets, each with 100 candidates"),
            ("val2017", "COCO"),
            ("visual7w/images", "Visual7W, for scene, time and number of people"),
            ("VisualDialog_val2018*.jpg", "VisDial, for weather, beside images of the other two"),
        ),
        parts=tuple(map(_facet, coco_facet.PLACES)),
    ),
    "chatir": DataSet(
        title="ChatIR, retrieval by dialogue (arXiv 2305.20062)",
        annotations="https://github.com/levymsn/ChatIR; MIT",
        images=f"2017 Unlabeled images at {_COCO}",
        source="README of levymsn/ChatIR; sizes are those of its files",
        layout=(
            (
                "dialogues/*.json",
                f"by five pairs of speakers, {chatir.DIALOGUES:,} dialogues of "
                f"{chatir.TEXTS_OF_A_DIALOGUE} texts (caption and ten rounds) = "
                f"{chatir.DIALOGUES * chatir.TEXTS_OF_A_DIALOGUE:,} queries each; your own",
            ),
            ("ChatIR_Protocol/Search_Space_val_50k.json", "the pool"),
            ("unlabeled2017", "its images"),
        ),
        parts=(
            *map(_chatir, CHATIR_DIALOGUES),
            Part(
                name="train/dialogues",
                class_path=f"{_READERS}.ChatIRTraining",
                arguments={"root": ROOT},
                needs=("dialogues/*.json",),
                training=True,
            ),
        ),
    ),
    "coco_karpathy": DataSet(
        title="COCO captions, Karpathy's split (arXiv 1412.2306)",
        annotations=f"{_BLIP}/coco_karpathy_{{train,val,test}}.json; BLIP's code is BSD-3",
        images=f"2014 Train and Val images at {_COCO}",
        source="configurations of salesforce/BLIP; sizes of tensorflow.org/datasets/catalog/"
        "coco_captions and huggingface.co/datasets/justram/COCO2014-Captions",
        layout=(
            ("coco_karpathy_*.json", "captions of train, val and test"),
            ("train2014", "COCO, for training"),
            ("val2014", "COCO, for all splits"),
        ),
        parts=(
            _karpathy_training("coco_karpathy", 566_747, 113_287),
            _karpathy("coco_karpathy", "val", 25_010),
            _karpathy("coco_karpathy", "test", 25_010),
        ),
    ),
    "flickr30k": DataSet(
        title="Flickr30k, Karpathy's split (TACL 2014; arXiv 1412.2306)",
        annotations=f"{_BLIP}/flickr30k_{{train,val,test}}.json; BLIP's code is BSD-3",
        images="https://shannon.cs.illinois.edu/DenotationGraph, by request; see the terms there",
        source="configurations of salesforce/BLIP",
        layout=(
            ("flickr30k_*.json", "captions of train, val and test"),
            ("flickr30k-images", "all images"),
        ),
        parts=(
            _karpathy_training("flickr30k", None, None),
            _karpathy("flickr30k", "val", None),
            _karpathy("flickr30k", "test", None),
        ),
    ),
    "visdial": DataSet(
        title="VisDial 1.0, dialogues about images (arXiv 1611.08669), trains ChatIR",
        annotations="https://visualdialog.org/data; see the terms there",
        images=f"2014 Train and Val images at {_COCO}; val2018 at https://visualdialog.org/data",
        source="README of batra-mlp-lab/visdial",
        layout=(
            ("visdial_1.0_*.json", "dialogues of train and val"),
            ("train2014", "COCO, of the training dialogues"),
            ("val2014", "COCO, of the training dialogues"),
            ("VisualDialog_val2018", "of the validation dialogues"),
        ),
        parts=tuple(
            _images_of("VisDialImages", split, needs=(f"visdial_1.0_{split}.json",))
            for split in ("train", "val")
        ),
    ),
    "mtcir": DataSet(
        title="MTCIR, 3.4 million pairs with several texts (CoLLM, arXiv 2503.19910)",
        annotations="https://huggingface.co/collections/chuonghm/"
        "collm-cvpr25-67fadfe01ddd3c74443a2b86; see the terms there",
        images="as the annotations: LLaVA-558k, from CC3M, LAION and SBU with terms of their own",
        source="supplement of the paper; the files' schema could not be read for this check",
        layout=(
            ("*.jsonl", "one pair a line: image, target_image, modifications"),
            ("**/*.tar", "or the images themselves, at the paths that the lines name"),
        ),
        parts=(
            Part(
                name="pairs",
                class_path=f"{_READERS}.MtcirFiles",
                arguments={"root": ROOT},
                needs=(),
                training=True,
            ),
        ),
    ),
    "folder": DataSet(
        title="your own images (docs/data.md)",
        annotations="your own",
        images="your own",
        source="docs/data.md",
        layout=(
            ("*/pairs.jsonl", "images with captions"),
            ("*/composed.jsonl", "reference, change and targets; or *.jsonl of other names"),
            ("train/caption_triplets.jsonl", "image, caption, change and the caption that results"),
            ("*/dialogues.jsonl", "rounds of a dialogue and targets"),
            ("*/facets.jsonl", "a property and all images that have it"),
            ("*/gallery.txt", "the pool of an evaluation"),
        ),
        parts=(
            _images_of("FolderTraining", "train", needs=("train",)),
            *(_own(split, kind, file) for split in ("val", "test") for kind, file in _OWN),
        ),
        optional=True,
        more_parts=_more_of_ones_own,
        unread=own_folder.unread_files,
    ),
}


def data_set(name: str) -> DataSet:
    """A description by its name.

    Raises:
        UserError: there is none; it names the closest, and all.
    """
    if name not in DATA_SETS:
        close = get_close_matches(name, DATA_SETS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        what = f"there is no description of a data set {name!r}" if name else "no data set is named"
        raise UserError(f"{what}; {hint}choose one of: {', '.join(DATA_SETS)}")
    return DATA_SETS[name]
