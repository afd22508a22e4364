"""`python -m cirlab fit|validate|test|predict|export -c experiments/collm.yaml`."""

from __future__ import annotations

import sys

from cirlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
