"""Weight files that users name, checked as far as possible without torch: a wrong file is refused at once."""

import math
import os
from pathlib import Path

from vinfinity.errors import InputError, WeightsError
from vinfinity.system.files import missing_problem
from vinfinity.system.folders import expanded
from vinfinity.system.numbers import read_number
from vinfinity.system.output import check_folder
from vinfinity.system.safetensors import read_header

PICKLES = (".ckpt", ".bin", ".pth", ".pt")
# the first bytes of torch.save's files: a ZIP archive, or the pickle of older versions
MAGIC = (b"PK", b"\x80")
# the file in a LoRA's folder, as PEFT and diffusers name it
LORA_FILES = tuple(
    f"{stem}.{suffix}"
    for suffix in ("safetensors", "bin")
    for stem in ("adapter_model", "pytorch_lora_weights")
)
# the longest path inside a model folder
LONGEST_NAME = "text_encoder/diffusion_pytorch_model.safetensors"


def split_weight(text: str) -> tuple[Path, float]:
    """Return file and weight of `FILE[:WEIGHT]`. Raises InputError for a weight that is no finite decimal number."""
    name, colon, number = text.rpartition(":")
    if not colon:
        return expanded(text, field="lora"), 1.0
    try:
        float(number)
    except ValueError:
        # the colon is part of the file's name
        return expanded(text, field="lora"), 1.0
    weight = read_number(number)
    if weight is None or not math.isfinite(weight):
        problem = "has a weight that is not a finite decimal number"
        raise InputError("lora", text, "write it as FILE:0.8", problem=problem)
    return expanded(name, field="lora"), weight


def find_lora(path: Path) -> Path:
    """Return the file of factors that `path`, a file or a folder, names. Raises InputError."""
    if os.path.isdir(path):
        found = next((path / name for name in LORA_FILES if (path / name).is_file()), None)
        if found is None:
            problem = f"is a folder without {' or '.join(LORA_FILES[:2])}"
            raise InputError("lora", path, "name the file", problem=problem)
        return found
    # a path with a name that is too long does not exist either
    if not os.path.exists(path):
        raise InputError("lora", path, "check the path", problem=missing_problem(path))
    if path.suffix not in (".safetensors", *PICKLES):
        problem = f"does not end in .safetensors, {', '.join(PICKLES)}"
        raise InputError("lora", path, "use a LoRA file, or a folder that has one", problem=problem)
    return path


def check_lora(text: str) -> None:
    """Raise InputError if `FILE[:WEIGHT]` names no file of tensors, judging by its first bytes."""
    path = find_lora(split_weight(text)[0])
    if path.suffix not in PICKLES:
        read_header(path, field="lora")
        return
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise WeightsError("lora", path, "check its permissions", problem=problem) from None
    if not start.startswith(MAGIC):
        problem = "is damaged or not a PyTorch file"
        raise WeightsError("lora", path, "fetch the file again", problem=problem)


def check_conversion(source: Path, target: Path) -> None:
    """Raise InputError if there is nothing to convert, or if the target folder exists or cannot be created."""
    if os.path.lexists(target):
        raise InputError("target", target, "use a folder that does not exist yet", problem="already exists")
    check_folder("target", target, inside=LONGEST_NAME)
    if not os.path.exists(source):
        raise InputError("source", source, "check the path", problem="does not exist")
