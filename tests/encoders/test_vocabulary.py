from __future__ import annotations

import json
from pathlib import Path

from cirlab.encoders.vocabulary import vocabulary_words


def test_frequent_words_of_captions_join_a_vocabulary(tmp_path: Path) -> None:
    captions = ["A kayak, a frisbee.", "kayak again", "one KAYAK and a frisbee"]
    row = {"image": "images/0.jpg", "captions": captions}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    alone = vocabulary_words("world")
    joined = vocabulary_words("world", [str(tmp_path / "pairs.jsonl")])
    assert joined == [*alone, "kayak"]
