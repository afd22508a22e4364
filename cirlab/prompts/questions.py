"""What a question may not hold: the marks that stand for a picture and for words in templates."""

from __future__ import annotations

from cirlab.encoders.mllm.processor import IMAGE_MARK, TEXT_MARK
from cirlab.errors import UserError
from cirlab.reading.jsonl import shown


def check_question(question: str, where: str) -> None:
    """Refuse a question that is a template.

    Within a question a mark would be read as letters.

    Args:
        question: what images are looked at for.
        where: it stands, for errors, e.g. "query 'q1'".

    Raises:
        UserError: it holds a mark.
    """
    for mark in (IMAGE_MARK, TEXT_MARK):
        if mark in question:
            raise UserError(
                f"{where}: the prompt {shown(question)} holds {mark}, which belongs in the "
                "method's templates; write the question alone"
            )
