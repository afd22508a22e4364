"""cirlab: retrieving images by richer queries, five published systems under one contract."""

from __future__ import annotations

import logging

__version__ = "0.1.0"

# It warns of an optional CPU kernel whenever it is imported, by whatever module comes first.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
