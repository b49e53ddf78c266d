"""The `vinfinity` command as a process: signals first, then the command, then the exit code.

It imports neither Typer nor torch, so that the process handles signals from the start.
"""

import os
import signal
import sys
from collections.abc import Sequence

from vinfinity.parallel.place import is_rank
from vinfinity.system.signals import Shutdown


def program() -> None:
    """Run the `vinfinity` command as a process of its own."""
    try:
        # after the command, a signal could only change the exit code
        main(signals_afterwards=signal.SIG_IGN)
    except SystemExit as ended:
        if is_rank(os.environ):
            # threads of torch.distributed can abort the process while the interpreter shuts down (seen once)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else 0)
        raise


def main(
    arguments: Sequence[str] | None = None, *, signals_afterwards: signal.Handlers | None = None
) -> None:
    """Run the command line (`sys.argv` if None) and exit the process with its exit code.

    signals_afterwards: the handler of shutdown signals after the command; None restores the earlier one.
    """
    # torchrun and srun may send a signal twice
    shutdown = Shutdown(repeatable=not is_rank(os.environ))
    with shutdown.handled(afterwards=signals_afterwards):
        from vinfinity.cli.app import run_command

        code = run_command(arguments, shutdown)
    sys.exit(code)
