"""Fashion-IQ: composed retrieval of garments, three categories (Wu et al., arXiv 1905.12794).

Papers differ in three things that move its numbers, so each is an argument and stands in the
protocol: the pool, how the two captions of a query become one text, and whether the reference may
be ranked. CLIP4Cir, Pic2Word, SEARLE, MagicLens and CoVR rank the original split; of these CoVR
alone removes the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from cirlab.benchmarks.base import Benchmark, TargetRanks
from cirlab.benchmarks.captions import blip_text
from cirlab.errors import UserError
from cirlab.metrics import recalls
from cirlab.reading.files import missing_files
from cirlab.reading.json_files import JsonArray, read_names
from cirlab.reading.jsonl import Row, unique
from cirlab.reading.official import DataRoot, check_choice, check_size, tell_size
from cirlab.records import FileImage, Query

log = logging.getLogger(__name__)

Category = Literal["dress", "shirt", "toptee"]
Pool = Literal["original", "union"]
CaptionTemplate = Literal["and", "clip4cir", "searle", "covr"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
#: Official files below the root.
CAPTIONS = "captions/cap.{category}.{split}.json"
LIST = "image_splits/split.{category}.{split}.json"


class Published(NamedTuple):
    """Sizes of one category of a split.

    Attributes:
        images: of the original pool.
        union: different references and targets of all queries.
    """

    queries: int
    images: int
    union: int


#: By split and category; counted in the files of https://github.com/XiaoxiaoGuo/fashion-iq.
PUBLISHED = {
    ("val", "dress"): Published(2017, 3817, 2628),
    ("val", "shirt"): Published(2038, 6346, 3089),
    ("val", "toptee"): Published(1961, 5373, 2902),
    ("train", "dress"): Published(5985, 11_452, 7757),
    ("train", "shirt"): Published(5988, 19_036, 8988),
    ("train", "toptee"): Published(6027, 16_121, 8695),
}


class FashionIQRules(Benchmark):
    """Recall in each category's own pool; the plain mean of the categories is the headline."""

    kind = "composed"
    breakdowns = ("category",)
    average_over = "category"

    def choose(
        self, caption_template: CaptionTemplate, both_orders: bool, exclude_reference: bool
    ) -> None:
        """Set what papers differ in, see `FashionIQ`."""
        self.caption_template: CaptionTemplate = caption_template
        self.both_orders = both_orders
        self.exclude_reference = exclude_reference
        self.exclusion = "the reference image" if exclude_reference else "none"
        self.query_template = f"{caption_template}: {TEMPLATES[caption_template].pattern}"
        #: Texts of the queries with their captions in the other order.
        self.reversed: list[str] = []

    @property
    def wordings(self) -> int:
        return 2 if self.both_orders else 1

    def asked(self) -> Sequence[Query]:
        if not self.both_orders:
            return self.queries
        pairs = zip(self.queries, self.reversed, strict=True)
        return [asked for query, text in pairs for asked in (query, replace(query, text=text))]

    def score(self, ranks: TargetRanks, queries: Sequence[Query]) -> dict[str, float]:
        """Recall@10/50."""
        return recalls(ranks.targets[:, :1], (10, 50))


class FashionIQ(FashionIQRules):
    """Reference garment and two captions of the change to target, ranked within the category.

    The gallery holds every image of the split, each once, whatever the pool: so both pools share
    one encoding of it. An empty caption (three queries of val have one) is left out of the text.

    Refined Fashion-IQ (CoLLM, arXiv 2503.19910, section 4.2) has reworded and fewer queries for
    the same pools: give its files as `captions`.

    Args:
        root: the data folder, laid out as Fashion-IQ's repository.
        pool: what a query ranks. "original" is the category's list of the split, which most
            papers use; "union" the smaller set of all references and targets of the category's
            official queries (the VAL protocol), whose numbers are visibly higher.
        category: one of the three, or null for all, each ranked within its own pool; `macro_`
            metrics are the mean of the categories.
        split: part of the file names: val; or train, to see what was learned by heart.
        name: in the results; null: fashioniq_<pool>, then _<category>, _<split> unless val, and
            _refined with `captions`.
        caption_template: how captions become one text. "and" joins them by that word; "clip4cir"
            does so without .?, at their ends, the first capitalised; "searle" writes "a photo
            that ... and ...", without the word that stands for the reference there (methods that
            have such a word put it in by themselves); "covr" joins in lower case, without most
            punctuation, and keeps 30 words.
        both_orders: ask with the captions in either order and average the vectors, as SEARLE.
        exclude_reference: never rank the reference itself, as CoVR.
        images: path of an image below root; {name} is Fashion-IQ's id, {category} the (first)
            category of the image. Mirrors differ in suffix: png or jpg.
        captions: other files of queries in the same format, below root or absolute; {category}
            and {split} are filled in. null: the official ones.
        official: refuse pools or, without `captions`, numbers of queries that are not the
            published ones; false accepts any.

    Raises:
        UserError: a choice that does not exist, or `captions` is no template.
    """

    gallery: list[FileImage]

    def __init__(
        self,
        root: str,
        pool: Pool = "original",
        category: Category | None = None,
        split: str = "val",
        name: str | None = None,
        caption_template: CaptionTemplate = "and",
        both_orders: bool = False,
        exclude_reference: bool = False,
        images: str = "images/{name}.png",
        captions: str | None = None,
        official: bool = True,
    ) -> None:
        check_choice("pool of Fashion-IQ", pool, get_args(Pool))
        check_choice("category of Fashion-IQ", category, (*CATEGORIES, None))
        check_choice("caption_template of Fashion-IQ", caption_template, tuple(TEMPLATES))
        if split == "test":
            raise UserError("the targets of Fashion-IQ's test split are not public; use split: val")
        self.root = root
        self.pool = pool
        self.categories: tuple[Category, ...] = CATEGORIES if category is None else (category,)
        check_captions(captions, self.categories)
        self.split = split
        self.name = name or _name(pool, category, split, refined=captions is not None)
        self.choose(caption_template, both_orders, exclude_reference)
        self.images = images
        self.captions = captions
        self.official = official

    @property
    def gallery_id(self) -> str:
        of = self.categories[0] if len(self.categories) == 1 else "all"
        return self._folder.identity("fashioniq", self.split, of)

    @property
    def _folder(self) -> DataRoot:
        return DataRoot(self.root, self.images, fields=("name", "category"))

    def setup(self) -> None:
        folder = self._folder
        images: dict[str, FileImage] = {}
        self.queries, self.reversed = [], []
        for category in self.categories:
            listed = listed_images(folder.folder, category, self.split)
            for name in listed:
                if name not in images:  # some images are of two categories
                    images[name] = folder.image(name, name=name, category=category)
            pool, rows = self._read(folder.folder, category, listed)
            # The whole gallery is ranked faster where it is the pool.
            candidates = pool if self.pool == "union" or len(self.categories) > 1 else None
            self.queries += [self._query(category, row, images, candidates) for row in rows]
            self.reversed += [self._text(row.captions[::-1]) for row in rows]
        self.gallery = list(images.values())
        self._tell_missing()

    def _read(
        self, root: Path, category: Category, listed: Sequence[str]
    ) -> tuple[tuple[str, ...], list[FashionIQRow]]:
        """One category's pool, and the queries that are asked of it."""
        names = frozenset(listed)
        official = captions_file(root, category, self.split)
        path = captions_file(root, category, self.split, self.captions)
        rows = fashioniq_rows(JsonArray(path), names)
        pool = tuple(listed)
        if self.pool == "union":
            asked = rows
            if self.captions is not None:
                asked = fashioniq_rows(JsonArray(official), names)
            pool = tuple(dict.fromkeys(name for row in asked for name in row.images))
            _check_within(rows, frozenset(pool), official)
        self._check_sizes(root, category, path, Published(len(rows), len(listed), len(pool)))
        return pool, rows

    def _check_sizes(self, root: Path, category: Category, path: Path, found: Published) -> None:
        published = PUBLISHED.get((self.split, category))
        if published is None:
            return
        if self.captions is not None:
            tell_size("queries", found.queries, published.queries, path)
        if not self.official:
            return
        check_published(root, category, self.split, found, own_queries=self.captions is not None)
        if self.pool == "union":
            official = captions_file(root, category, self.split)
            what = f"references and targets of Fashion-IQ's {category} {self.split}"
            check_size(what, found.union, published.union, official)

    def _query(
        self,
        category: Category,
        row: FashionIQRow,
        images: Mapping[str, FileImage],
        candidates: tuple[str, ...] | None,
    ) -> Query:
        return Query(
            id=f"{category}/{row.reference}>{row.target}",
            text=self._text(row.captions),
            image=images[row.reference],
            targets=(row.target,),
            exclude=(row.reference,) if self.exclude_reference else (),
            candidates=candidates,
            tags={"category": category},
        )

    def _text(self, captions: Sequence[str]) -> str:
        return TEMPLATES[self.caption_template].joined(captions)

    def _tell_missing(self) -> None:
        """Many addresses of the images are dead, and what is missing changes the numbers."""
        missing = missing_files(self.gallery)
        if not missing:
            return
        gone = {image.id for image in missing}
        lost = sum(not gone.isdisjoint((q.image.id, *q.targets)) for q in self.queries if q.image)
        log.warning(
            "%s: %d of %d images are missing, the first is %s; they are reference or target of "
            "%d of %d queries",
            *(self.name, len(missing), len(self.gallery), missing[0].path, lost, len(self.queries)),
        )


@dataclass(frozen=True)
class FashionIQRow:
    """One query as Fashion-IQ's captions files hold it; empty captions are left out."""

    reference: str
    target: str
    captions: tuple[str, ...]
    where: str

    @property
    def images(self) -> tuple[str, str]:
        return self.reference, self.target


def captions_file(root: Path, category: str, split: str, template: str | None = None) -> Path:
    """Where the queries of one category of a split lie; without template the official ones."""
    return root / _filled(template or CAPTIONS, category, split)


def listed_images(root: Path, category: str, split: str) -> list[str]:
    """The images of one category of a split, in its order.

    Raises:
        UserError: the list is missing, cut off, malformed, or names an image twice.
    """
    return read_names(root / _filled(LIST, category, split))


def fashioniq_rows(rows: JsonArray, pool: Container[str]) -> list[FashionIQRow]:
    """All queries of a captions file.

    Args:
        rows: the file.
        pool: the images of the category's split.

    Raises:
        UserError: a query is malformed, or contradicts the pool.
    """
    return [fashioniq_row(row, pool) for row in unique(rows, _pair, "remove one of them")]


def _pair(row: Row) -> str:
    candidate, target = row.text("candidate"), row.text("target")
    return f"the pair of candidate {candidate} and target {target}"


def fashioniq_row(row: Row, pool: Container[str]) -> FashionIQRow:
    """One query of a captions file; see `fashioniq_rows`."""
    parsed = FashionIQRow(row.text("candidate"), row.text("target"), _captions(row), row.where)
    for field, name in (("candidate", parsed.reference), ("target", parsed.target)):
        if name not in pool:
            raise row.error(
                f"its {field} {name} is not in the category's image_splits file; captions and "
                "image_splits must be of one category and split"
            )
    if parsed.reference == parsed.target:
        raise row.error(f"{parsed.target} is both candidate and target; correct one")
    return parsed


def _captions(row: Row) -> tuple[str, ...]:
    found = row.get("captions")
    texts = found if isinstance(found, list) else []
    if not all(isinstance(text, str) for text in texts) or not any(map(str.strip, texts)):
        wanted = "a list of texts of which one is not empty; Fashion-IQ's have two"
        raise row.wrong("captions", wanted)
    return tuple(text.strip() for text in texts if text.strip())


def check_published(
    root: Path, category: Category, split: str, found: Published, *, own_queries: bool
) -> None:
    """Refuse a list of images or, but for queries of one's own, a number of queries.

    Raises:
        UserError: it is not the published one.
    """
    published = PUBLISHED[split, category]
    of = f"Fashion-IQ's {category} {split}"
    list_file = root / _filled(LIST, category, split)
    check_size(f"images of {of}", found.images, published.images, list_file)
    if not own_queries:
        path = captions_file(root, category, split)
        check_size(f"queries of {of}", found.queries, published.queries, path)


def _check_within(rows: Sequence[FashionIQRow], pool: Container[str], official: Path) -> None:
    for row in rows:
        for name in row.images:
            if name not in pool:
                raise UserError(
                    f"{row.where}: {name} is no reference or target of {official}, of which the "
                    "pool is made; ask these queries with pool: original"
                )


def _filled(template: str, category: str, split: str) -> str:
    return template.format(category=category, split=split)


def _name(pool: str, category: str | None, split: str, refined: bool) -> str:
    parts = ["fashioniq", pool, category, None if split == "val" else split]
    return "_".join([*filter(None, parts), *(["refined"] if refined else [])])


def check_captions(template: str | None, categories: Sequence[str]) -> None:
    """Refuse a path template that does not lead to a file for each category.

    Raises:
        UserError: it names something unknown, or is the same for several categories.
    """
    try:
        paths = {_filled(template or CAPTIONS, category, "val") for category in categories}
    except (LookupError, ValueError, AttributeError) as error:
        raise UserError(
            f"captions of Fashion-IQ is {template!r}, which is no path template ({error!r}); it "
            "can use {category} and {split}"
        ) from error
    if len(paths) < len(categories):
        raise UserError(
            f"captions of Fashion-IQ is {template!r}, the same file for every category; write "
            "{category} into it, or choose one category"
        )


# ---- how captions become one text -----------------------------------------------------------


class Template(NamedTuple):
    """A way to join captions, and what the protocol says of it."""

    joined: Callable[[Sequence[str]], str]
    pattern: str


def _plain(captions: Sequence[str]) -> str:
    return " and ".join(captions)


def _clip4cir(captions: Sequence[str]) -> str:
    first, *others = _bare(captions) or [""]
    return " and ".join((first.capitalize(), *others))


def _searle(captions: Sequence[str]) -> str:
    return f"a photo that {' and '.join(_bare(captions))}"


def _covr(captions: Sequence[str]) -> str:
    return blip_text(" and ".join(captions))


def _bare(captions: Sequence[str]) -> list[str]:
    return [bare for caption in captions if (bare := caption.strip(".?, "))]


TEMPLATES: Mapping[str, Template] = {
    "and": Template(_plain, "{0} and {1}"),
    "clip4cir": Template(_clip4cir, "{0} and {1}, first capitalised, no .?, at their ends"),
    "searle": Template(_searle, "a photo that {0} and {1}, no .?, at their ends"),
    "covr": Template(_covr, "{0} and {1}, lower case, no punctuation, at most 30 words"),
}
