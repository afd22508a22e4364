"""What pretrained models can do with one image: describe it, answer, embed it, match it with texts.

    from cirlab.demo import Abilities

    able = Abilities(captioner="zoo:tiny_mllm", answerer="zoo:tiny_mllm", matcher="zoo:tiny_clip")
    able.caption(image)
    able.answer(image, "what is on the left?")
    able.image_features([image]), able.text_features(["a red circle"])
    able.match(image, ["a red circle", "a blue square"])

Images are records (`cirlab.records.Image`). A model is loaded when it is first asked.
"""

from __future__ import annotations

from cirlab.demo.abilities import Abilities, Match

__all__ = ["Abilities", "Match"]
