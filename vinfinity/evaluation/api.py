"""`vinfinity.evaluate` and `vinfinity.compare`: they import what they need when they are called."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from vinfinity.evaluation.extras import check_extras
from vinfinity.evaluation.result import Evaluation
from vinfinity.evaluation.subject import FramesInMemory, find_subject


def evaluate(
    video: str | Path | np.ndarray | FramesInMemory,
    *,
    fps: Fraction | int | None = None,
    borders: Sequence[int] = (),
    every: int | None = None,
    prompt: str | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Measure a video: motion, flicker, seams, cuts, drift, repetition, frozen spans, and VBench's consistency.

    video: a video file, a run folder, a folder of PNG, the result of `vinfinity.generate`, or an array (f, height,
    width, 3) uint8. fps: of an array or a folder of PNG. borders: frames at which to look for seams, beside those that
    the run knows; every: look there every so many frames. clip, dino: folders of weights in transformers' layout, for
    the figures `consistency`. prompt: what a video without a run shows. device: of CLIP and DINO.

    Needs the extra `vinfinity[evaluate]`, and `vinfinity[consistency]` for weights. Frames are read one at a time.
    Raises InputError, and DamagedError where the file cannot be decoded.
    """
    check_extras()
    from vinfinity.evaluation.consistency import Networks
    from vinfinity.evaluation.evaluate import measure

    subject = find_subject(video, fps=fps, borders=borders, every=every)
    networks = Networks.open(clip=clip, dino=dino, device=device)
    return measure(subject, networks=networks, prompt=prompt)
