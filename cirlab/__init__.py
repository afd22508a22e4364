"""cirlab: retrieving images by richer queries, five published systems under one contract."""

from __future__ import annotations

__version__ = "0.1.0"
