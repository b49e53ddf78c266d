"""The `vinfinity` command.

No module imports torch or OmegaConf at the top, which keeps `--help` and completion instant; a command imports what it
needs when it runs. An error is one line on stderr and an exit code (see vinfinity/errors.py).

process   the process: signals, the command, its exit code
app       the command line, and its messages about unknown options and commands
make      generate, plan, config
batch     batch
runs      resume, decode, redo, extend
evaluate  evaluate, compare
measured  what these two print
doctor    doctor
models    list, show, fetch, convert
bench     measurements
options   the options of a run, generated from the declarations of its settings
output    what is printed, and how errors are reported
"""

from vinfinity.cli.process import main, program

__all__ = ["main", "program"]
