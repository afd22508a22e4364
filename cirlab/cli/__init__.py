"""The command line: `python -m cirlab fit|validate|export|chat -c experiments/collm.yaml`.

LightningCLI with `experiments/_base.yaml` always read first, named runs that can be resumed,
and one sentence instead of a traceback where the user can mend what is wrong. Nothing else in
`cirlab` knows Lightning; what is checked before anything runs is in `cirlab.command`.
"""

from __future__ import annotations

from cirlab.cli.retrieval_cli import RetrievalCLI
from cirlab.cli.run import main

__all__ = ["RetrievalCLI", "main"]
