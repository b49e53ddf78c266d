"""What the scripts that test GPUs share: their options, the machine, and a way to rehearse them on a CPU."""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vinfinity.bench.stages import Figure, Skipped, Stage, equals, figure, run_stages
from vinfinity.doctor.facts import Facts, gather
from vinfinity.doctor.faults import Fault, diagnose
from vinfinity.doctor.report import as_json, here, used
from vinfinity.errors import InputError
from vinfinity.machine.engine import Engine
from vinfinity.machine.nvidia import Nvidia
from vinfinity.machine.probe import Failed
from vinfinity.parallel.devices import select_device
from vinfinity.system.pytorch import prefer_expandable_segments

# ranks of a rehearsal on the CPU
CPU_RANKS = 2


@dataclass(frozen=True)
class Trial:
    """What the stages work with.

    ranks: the number of GPUs, or of ranks on the CPU. quick: whether everything is as small as possible. folder: for
    files; it is deleted at the end.
    """

    device: str
    ranks: int
    quick: bool
    folder: Path
    facts: Facts
    faults: tuple[Fault, ...]

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The first device."""
        return torch.device(self.device)

    @property
    def gpu_name(self) -> str:
        """The name of the first GPU, "" on the CPU."""
        return torch.cuda.get_device_name(0) if self.on_gpu else ""

    def several(self, count: int = 2) -> int:
        """Return the number of ranks. Raises Skipped if there are fewer than `count`."""
        if self.ranks < count:
            raise Skipped(f"needs {count} GPUs" if self.on_gpu else f"needs {count} ranks")
        return self.ranks

    def needs_gpu(self, why: str) -> None:
        """Raise Skipped on the CPU."""
        if not self.on_gpu:
            raise Skipped(f"needs a GPU: {why}")


def look(trial: Trial) -> Iterator[Figure]:
    """Yield what is on this machine, and whether anything would stop a run."""
    for name, text in (*here(trial.facts), *used(trial.facts)):
        yield figure(name, text)
    for fault in trial.faults:
        yield figure("error" if fault.stops else "warning", fault.line)
    yield equals("errors", sum(fault.stops for fault in trial.faults), 0)
    if trial.on_gpu:
        # the stages compute in this process, too
        select_device(torch.device("cuda", 0))


def run_script(title: str, description: str, stages: Sequence[Stage[Trial]], *, out: Path) -> int:
    """Run the command line of a script that tests GPUs. out: the file for the figures. Returns the exit code.

    Without a GPU there is one line that says so, and the exit code is 0.
    """
    known = {stage.name: stage for stage in stages}
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="[%(default)s]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: try the script, not the machine")
    parser.add_argument("--gpus", type=int, metavar="N", help="use the first N GPUs [all]")
    names = f"only this stage; may be repeated [{', '.join(known)}]"
    parser.add_argument("--stage", action="append", choices=known, metavar="NAME", help=names)
    parser.add_argument("--keep-going", action="store_true", help="go on after a stage that failed")
    parser.add_argument("--out", type=Path, default=out, help="JSON file for the figures [%(default)s]")
    options = parser.parse_args()
    prefer_expandable_segments(os.environ)
    facts = gather(device=options.device)
    found = len(facts.engine.gpus) if isinstance(facts.engine, Engine) else 0
    if options.device == "cuda" and not found and not _signs_of_a_gpu(facts):
        print(f"{title}: skipped: no CUDA GPU here (--device cpu --quick rehearses the stages)")
        return 0
    if options.device == "cuda" and (exclusive := _exclusive(facts)):
        print(f"{title}: {exclusive}")
        return InputError.exit_code
    faults = diagnose(facts)
    ranks = min(found, options.gpus or found) if options.device == "cuda" else options.gpus or CPU_RANKS
    chosen = [known[name] for name in options.stage] if options.stage else list(stages)
    machine = Stage("machine", "nothing that stops a run", look)
    with tempfile.TemporaryDirectory(prefix="vinfinity-gpu-") as folder:
        trial = Trial(
            device=options.device,
            ranks=ranks,
            quick=options.quick,
            folder=Path(folder),
            facts=facts,
            faults=tuple(faults),
        )
        report = run_stages(
            [machine, *chosen],
            trial,
            title=title,
            settings={"device": options.device, "ranks": ranks, "quick": options.quick},
            machine=as_json(facts, faults),
            out=options.out,
            keep_going=options.keep_going,
        )
    return int(report.failed)


def _exclusive(facts: Facts) -> str:
    """Return one line if a GPU allows only one process, else "": this process and the stages use it together."""
    cards = facts.nvidia.cards if isinstance(facts.nvidia, Nvidia) else ()
    for card in cards:
        if card.compute_mode.lower().startswith("exclusive"):
            gpu = f"GPU {card.index} ({card.name}) is in compute mode {card.compute_mode}"
            remedy = f"ask for a job with mode Default (sudo nvidia-smi -i {card.index} -c DEFAULT)"
            return f"{gpu}, and stages use it from several processes; {remedy}"
    return ""


def _signs_of_a_gpu(facts: Facts) -> bool:
    """Return whether there is a GPU that torch does not see, which is a fault, not a reason to skip."""
    nvidia = facts.nvidia
    return isinstance(nvidia, Failed) or (isinstance(nvidia, Nvidia) and nvidia.usable > 0)
