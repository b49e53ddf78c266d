"""A library under torchrun: `torchrun -m oracles.launched WORKER` carries out a worker of fault_work on each rank."""

import sys

from oracles import fault_work

from vinfinity.parallel.launch import launch

if __name__ == "__main__":
    print(launch(getattr(fault_work, sys.argv[1]), None, gpus=None, device="cpu", timeout=60.0), flush=True)
