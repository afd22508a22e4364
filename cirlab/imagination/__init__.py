"""Pictures drawn from words: what a text asks for, seen before it is searched (DAR, 2501.15379).

`Drawer` draws by a text-to-image pipeline of diffusers, and keeps what it has drawn;
`GivenPictures` takes pictures that were made elsewhere. Both give what any image encoder reads.
"""

from __future__ import annotations

from cirlab.imagination.drawer import Drawer
from cirlab.imagination.given import GivenPictures
from cirlab.imagination.request import Imagination, Request

__all__ = ["Drawer", "GivenPictures", "Imagination", "Request"]
