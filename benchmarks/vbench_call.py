"""Call the package vbench; run by vbench_scores.py with the Python of an environment that has it.

    python benchmarks/vbench_call.py OUTCOME DEVICE DIMENSION... [--clips FOLDER]

Imports vbench and what it brings, and nothing of vinfinity: vbench pins versions of transformers, tokenizers and NumPy
that are too old for vinfinity. Without --clips, it only checks that all that was asked for is there. With it, each
dimension is scored by itself, so that one whose weights are missing does not take the others with it; vbench writes
DIMENSION_eval_results.json next to OUTCOME. OUTCOME is a JSON object: `refused`, why nothing can be scored, or null;
`failed`, what went wrong by dimension.
"""

import argparse
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

INSTALL = "in an environment of its own, pip install vbench torchvision 'setuptools<81'"


class Refused(Exception):
    """Nothing can be scored."""

    def __init__(self, field: str, value: str, remedy: str, problem: str) -> None:
        self.reasons = {"field": field, "value": value, "remedy": remedy, "problem": problem}
        super().__init__(problem)


def import_package(device: str) -> Any:
    """Return the package vbench, from version 0.1.2 on. Raises Refused if it or the device is missing."""
    try:
        import vbench
    except ImportError as error:
        if error.name == "vbench":
            raise Refused(
                "package", "vbench", f"{INSTALL}, and name its Python by --python", "is not installed"
            ) from None
        raise Refused("package", "vbench", INSTALL, f"cannot be imported ({error})") from None
    if "mode" not in inspect.signature(vbench.VBench.evaluate).parameters:
        problem = "is older than 0.1.2, which has no mode for custom input"
        raise Refused("package", "vbench", "pip install --upgrade vbench", problem)
    import torch

    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        remedy = "use a machine with a GPU; for temporal_flickering, --device cpu will do"
        raise Refused("--device", device, remedy, "is not there")
    return vbench


def check_dimensions(dimensions: list[str]) -> None:
    """Raise Refused if the module of one cannot be imported."""
    for dimension in dimensions:
        try:
            importlib.import_module(f"vbench.{dimension}")
        except Exception as error:
            # not only ImportError: packages of other versions fail in many ways
            remedy = f"{INSTALL}; or leave it out by --dimensions"
            raise Refused("--dimensions", dimension, remedy, f"cannot be imported ({error})") from None


def score(package: Any, device: str, dimensions: list[str], clips: Path, folder: Path) -> dict[str, str]:
    """Score clips as the package's own evaluate.py does, with its defaults. Returns what failed, by dimension."""
    import torch

    info = Path(package.__file__).parent / "VBench_full_info.json"
    # a device, not its name: to motion smoothness, they are different
    bench = package.VBench(torch.device(device), str(info), str(folder))
    failed = {}
    for dimension in dimensions:
        try:
            bench.evaluate(
                videos_path=str(clips),
                name=dimension,
                dimension_list=[dimension],
                local=False,
                read_frame=False,
                mode="custom_input",
            )
        except Exception as error:
            # whatever the package raises, such as a download that failed, is of this dimension alone
            failed[dimension] = f"{type(error).__name__}: {error}"
    return failed


def main() -> None:
    """Return the command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outcome", type=Path)
    parser.add_argument("device")
    parser.add_argument("dimensions", nargs="+")
    parser.add_argument("--clips", type=Path)
    options = parser.parse_args()
    outcome: dict[str, Any] = {"refused": None, "failed": {}}
    try:
        package = import_package(options.device)
        if options.clips is None:
            check_dimensions(options.dimensions)
        else:
            outcome["failed"] = score(
                package, options.device, options.dimensions, options.clips, options.outcome.parent
            )
    except Refused as error:
        outcome["refused"] = error.reasons
    options.outcome.write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
