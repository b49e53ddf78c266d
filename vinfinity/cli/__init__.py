"""The `vinfinity` command.

No module here imports torch or OmegaConf at the top, so that `--help` and completion are instant; what a command
needs is imported when it runs. Errors that users can mend are one line on stderr and an exit code (see errors.py).

app      the program, and mistakes in its use        options   the options of a run, shared by its commands
run      generate, config                            runs      resume, decode, redo, extend
models   list, show, fetch, convert                  bench     measurements
output   what is printed, and how errors are reported
"""

from vinfinity.cli.app import main, program

__all__ = ["main", "program"]
