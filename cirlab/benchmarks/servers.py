"""What the servers of CIRR and CIRCO want of a ranking of their test splits.

https://github.com/Cuberick-Orion/CIRR/blob/main/Test-split_server.md;
https://github.com/miccunifi/CIRCO#submission-format.
"""

from __future__ import annotations

#: Images that both servers want of each query.
LIST_SIZE = 50
#: Version of CIRR's annotations, in the names of its files and in submissions.
CIRR_VERSION = "rc2"
