"""`python -m vinfinity` is the `vinfinity` command; torchrun starts ranks this way."""

from vinfinity.cli import program

if __name__ == "__main__":
    program()
