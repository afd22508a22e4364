"""Run a command line: what the user can mend ends in one sentence and status 2."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from cirlab import distributed
from cirlab.cli.quiet import quiet_libraries
from cirlab.cli.retrieval_cli import RetrievalCLI
from cirlab.command.configuration import config_files, require_experiment, with_base
from cirlab.command.references import read_config
from cirlab.errors import UserError

log = logging.getLogger(__name__)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 2 for what the user can mend."""
    args = list(sys.argv[1:] if args is None else args)
    quiet_libraries()
    try:
        require_experiment(args)
        args = with_base(args)
        RetrievalCLI(args, [read_config(file) for file in config_files(args)])
    except UserError as error:
        return _refuse(error)
    except MisconfigurationException as error:
        return _refuse(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return _refuse(UserError(f"{error}; free space on that disk and resume"))
    finally:
        distributed.leave()
    return 0


def _refuse(error: Exception) -> int:
    text = str(error)
    # torch repeats the traceback of a loader's worker in the message; the last line is ours.
    sentence = text.strip().splitlines()[-1] if "Original Traceback" in text else text
    sentence = sentence.rpartition("UserError: ")[2]
    log.error("error: %s", " ".join(sentence.split()))
    return 2
