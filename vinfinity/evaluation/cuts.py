"""Cuts, by PySceneDetect's AdaptiveDetector, which StreamingT2V counts as well."""

from fractions import Fraction

from scenedetect import AdaptiveDetector, FrameTimecode

from vinfinity.evaluation.picture import Picture

# seconds between two cuts at least: PySceneDetect's own default
LEAST_SECONDS = 0.6


class CutMeasure:
    """Finds cuts, given the frames one at a time. fps: the video's frame rate."""

    def __init__(self, fps: Fraction) -> None:
        self._rate = float(fps)
        self._detector = AdaptiveDetector(min_scene_len=max(2, round(LEAST_SECONDS * self._rate)))
        self._cuts: list[int] = []
        self._last: FrameTimecode | None = None

    def add(self, picture: Picture) -> None:
        self._last = FrameTimecode(picture.index, fps=self._rate)
        self._note(self._detector.process_frame(self._last, picture.rgb[..., ::-1]))

    def result(self) -> tuple[int, ...]:
        """Return the first frame after each cut."""
        if self._last is not None:
            self._note(self._detector.post_process(self._last))
        return tuple(self._cuts)

    def _note(self, found: list[FrameTimecode]) -> None:
        self._cuts += [timecode.frame_num for timecode in found]
