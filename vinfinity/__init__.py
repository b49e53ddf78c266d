"""Long videos from text, on any number of GPUs, from diffusion models trained on short clips.

    import vinfinity

    video = vinfinity.generate("a red ball bouncing over green grass", frames=96)
    video.save("ball.mp4")

The public names are imported when they are first used, so that importing the package is instant.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # for type checkers, for which `as` exports a name; a test compares these imports with _MODULES
    from vinfinity.api import generate as generate
    from vinfinity.api import generate_batch as generate_batch
    from vinfinity.api import generate_file as generate_file
    from vinfinity.batch.make import BatchSummary as BatchSummary
    from vinfinity.batch.make import Failure as Failure
    from vinfinity.config import AttentionConfig as AttentionConfig
    from vinfinity.config import Prompt as Prompt
    from vinfinity.config import RunConfig as RunConfig
    from vinfinity.denoise.state import State as State
    from vinfinity.errors import BatchError as BatchError
    from vinfinity.errors import BusyError as BusyError
    from vinfinity.errors import DamagedError as DamagedError
    from vinfinity.errors import InputError as InputError
    from vinfinity.errors import LimitError as LimitError
    from vinfinity.errors import NotFiniteError as NotFiniteError
    from vinfinity.errors import OutOfMemoryError as OutOfMemoryError
    from vinfinity.errors import OutputError as OutputError
    from vinfinity.errors import RankError as RankError
    from vinfinity.errors import Stopped as Stopped
    from vinfinity.errors import UnexpectedError as UnexpectedError
    from vinfinity.errors import VinfinityError as VinfinityError
    from vinfinity.errors import WeightsError as WeightsError
    from vinfinity.evaluation.api import compare as compare
    from vinfinity.evaluation.api import evaluate as evaluate
    from vinfinity.evaluation.compare import Comparison as Comparison
    from vinfinity.evaluation.result import Evaluation as Evaluation
    from vinfinity.pipeline import Pipeline as Pipeline
    from vinfinity.resolve import load_config as load_config
    from vinfinity.task import Summary as Summary
    from vinfinity.video import Video as Video

__version__ = "0.1.0"

# the public names, by the module that has them
_MODULES = {
    "api": ["generate", "generate_batch", "generate_file"],
    "batch.make": ["BatchSummary", "Failure"],
    "config": ["AttentionConfig", "Prompt", "RunConfig"],
    "denoise.state": ["State"],
    "errors": [
        *("BatchError", "BusyError", "DamagedError", "InputError", "LimitError", "NotFiniteError"),
        *("OutOfMemoryError", "OutputError", "RankError", "Stopped", "UnexpectedError", "VinfinityError"),
        "WeightsError",
    ],
    "evaluation.api": ["compare", "evaluate"],
    "evaluation.compare": ["Comparison"],
    "evaluation.result": ["Evaluation"],
    "pipeline": ["Pipeline"],
    "resolve": ["load_config"],
    "task": ["Summary"],
    "video": ["Video"],
}
_NEED_TORCH = {
    "api",
    "batch.make",
    "denoise.state",
    "evaluation.api",
    "evaluation.result",
    "pipeline",
    "task",
    "video",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vinfinity' has no attribute {name!r}")
    module = _MODULE_OF[name]
    if module in _NEED_TORCH:
        # fail with one clear line if the installed torch is too old
        importlib.import_module("vinfinity.system.pytorch").require_torch()
    return getattr(importlib.import_module(f"vinfinity.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
