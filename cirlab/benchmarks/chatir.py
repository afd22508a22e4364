"""ChatIR: 2,064 dialogues of VisDial's validation set, searched in 50,000 images of COCO.

Levy et al., NeurIPS 2023, arXiv 2305.20062; files of levymsn/ChatIR. Its evaluation (eval.py) joins
all texts up to a round by ", ", ranks the whole search space after each of the 11 rounds and counts
cumulative Hits@10; the cut-off that it takes as an argument is not used. DAR's rewritten dialogues
(arXiv 2501.15379) are about the same images in the same order, searched in the same space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from cirlab.benchmarks.dialogue import DialogueRules, History
from cirlab.dialogue.files import dialogue_of, dialogue_path, read_dialogues
from cirlab.reading.json_files import read_names
from cirlab.reading.official import DataRoot, check_size
from cirlab.records import Query

#: Counted in the files of levymsn/ChatIR.
DIALOGUES = 2064
TEXTS_OF_A_DIALOGUE = 11
SEARCH_SPACE = 50_000


class ChatIR(DialogueRules):
    """ChatIR's protocol with any of its dialogues, or others about images of its search space.

    A dialogue's id is its place in the file, from 0, by which DAR names generated images, too.

    Args:
        root: folder with `dialogues/`, `ChatIR_Protocol/` and the images.
        dialogues: name of a file in `dialogues/` without ".json": VisDial_v1.0_queries_val (people
            ask and answer), Human_BLIP2, ChatGPT_BLIP2, Unanswered_ChatGPT_BLIP2 or
            FLAN_ALPACA_XXL_BLIP2; or the path of another .json file in this format, as DAR's,
            below root or absolute.
        name: of the results; null makes it from `dialogues`.
        corpus: the search space, a JSON list of image paths, below root.
        separator: stands between the texts of a dialogue that a query joins.
        history: "concat" asks with all texts up to the round, "current" with the newest alone;
            null: "current" where the rounds of the file are rewritten captions, as DAR's are,
            else "concat".
        hits_at: cut-off of hits and recall.
        images: path of an image below root; `{path}` is the path in the search space, `{file}` its
            last part.
        official: the numbers of dialogues, texts and images must be the published ones.
    """

    def __init__(
        self,
        root: str,
        dialogues: str = "VisDial_v1.0_queries_val",
        name: str | None = None,
        corpus: str = "ChatIR_Protocol/Search_Space_val_50k.json",
        separator: str = ", ",
        history: History | None = None,
        hits_at: int = 10,
        images: str = "{path}",
        official: bool = True,
    ) -> None:
        super().__init__(separator, history, hits_at)
        self.root = root
        self.dialogues = dialogues
        self.name = name or f"chatir_{PurePosixPath(dialogues).name.removesuffix('.json')}"
        self.corpus = corpus
        self.images = images
        self.official = official

    @property
    def gallery_id(self) -> str:
        return self._data.identity("chatir", self.corpus)

    def setup(self) -> None:
        data = self._data
        names = self._search_space(data.folder / self.corpus)
        self.gallery = [data.image_at(name) for name in names]
        path = dialogue_path(data.folder, self.dialogues)
        self.queries = list(self._queries(path, {name: name for name in names}))

    @property
    def _data(self) -> DataRoot:
        return DataRoot(self.root, self.images, fields=("path", "file"))

    def _search_space(self, path: Path) -> list[str]:
        names = read_names(path)
        if self.official:
            check_size("images of the search space", len(names), SEARCH_SPACE, path)
        return names

    def _queries(self, path: Path, pool: Mapping[str, str]) -> Iterator[Query]:
        """The queries of all dialogues; targets are the very strings of the pool."""
        rows = read_dialogues(path)
        if self.official:
            check_size("dialogues", len(rows), DIALOGUES, path)
        parsed = [dialogue_of(row) for row in rows]
        self.heed([texts for _, texts in parsed])
        for number, (row, (image, texts)) in enumerate(zip(rows, parsed, strict=True)):
            if image not in pool:
                raise row.error(
                    f"the image {image!r} is not in the search space {self.corpus}; give dialogues "
                    "about its images, or another corpus"
                )
            if self.official and len(texts) != TEXTS_OF_A_DIALOGUE:
                raise row.error(
                    f"the dialogue has {len(texts)} texts, but {TEXTS_OF_A_DIALOGUE} are "
                    "published; get the official file, or set official: false"
                )
            yield from self.dialogue(str(number), texts, (pool[image],))
