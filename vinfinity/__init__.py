"""Long videos from text, on any number of GPUs, from diffusion models trained on short clips.

    import vinfinity

    video = vinfinity.generate("a red ball bouncing over green grass", frames=96)
    video.save("ball.mp4")

The names below are imported when they are first used, so that importing the package is instant.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinfinity.api import generate, generate_batch, generate_file
    from vinfinity.batch.make import BatchSummary, Failure
    from vinfinity.config import AttentionConfig, Prompt, RunConfig
    from vinfinity.denoise.state import State
    from vinfinity.errors import (
        BatchError,
        BusyError,
        InputError,
        LimitError,
        NotFiniteError,
        OutOfMemoryError,
        OutputError,
        RankError,
        Stopped,
        UnexpectedError,
        VinfinityError,
        WeightsError,
    )
    from vinfinity.evaluation.api import compare, evaluate
    from vinfinity.evaluation.compare import Comparison
    from vinfinity.evaluation.result import Evaluation
    from vinfinity.pipeline import Pipeline
    from vinfinity.resolve import load_config
    from vinfinity.task import Summary
    from vinfinity.video import Video

__version__ = "0.1.0"

__all__ = [
    "AttentionConfig",
    "BatchError",
    "BatchSummary",
    "BusyError",
    "Comparison",
    "DamagedError",
    "Evaluation",
    "Failure",
    "InputError",
    "LimitError",
    "NotFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "Pipeline",
    "Prompt",
    "RankError",
    "RunConfig",
    "State",
    "Stopped",
    "Summary",
    "UnexpectedError",
    "Video",
    "VinfinityError",
    "WeightsError",
    "compare",
    "evaluate",
    "generate",
    "generate_batch",
    "generate_file",
    "load_config",
]

_HOMES = {
    "generate": "api",
    "generate_batch": "api",
    "generate_file": "api",
    "compare": "evaluation.api",
    "evaluate": "evaluation.api",
    "Comparison": "evaluation.compare",
    "BatchSummary": "batch.make",
    "Evaluation": "evaluation.result",
    "Failure": "batch.make",
    "Pipeline": "pipeline",
    "Video": "video",
    "State": "denoise.state",
    "AttentionConfig": "config",
    "Prompt": "config",
    "RunConfig": "config",
    "load_config": "resolve",
    "Summary": "task",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'vinfinity' has no attribute {name!r}")
    home = _HOMES.get(name, "errors")
    if home in (
        "api",
        "batch.make",
        "denoise.state",
        "evaluation.api",
        "evaluation.result",
        "pipeline",
        "task",
        "video",
    ):
        # before torch is imported, of which an older one lacks much
        importlib.import_module("vinfinity.system.pytorch").require_torch()
    return getattr(importlib.import_module(f"vinfinity.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
