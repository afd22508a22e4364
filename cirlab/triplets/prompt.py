"""What an instruction LLM is asked, and how it answers: a caption, changed.

InstructCIR (arXiv 2412.05756) has its triplets written by a large model from captions alone; its
prompt was not released, and this wording is this project's own.
"""

from __future__ import annotations

import json

#: Stands for the caption in a prompt.
CAPTION_MARK = "{caption}"

#: Asks for a change to a caption.
PROMPT = (
    "Invent a change to the image with this caption. Answer in JSON with the keys instruction and "
    f"modified_caption. Caption: {CAPTION_MARK}"
)


def answer(instruction: str, modified_caption: str) -> str:
    """The answer that is asked for, one line of JSON."""
    return json.dumps({"instruction": instruction, "modified_caption": modified_caption})
