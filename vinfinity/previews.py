"""Previews while a run denoises: the video as predicted so far, for which nothing waits.

Every rank writes a few of its predicted latents into the run folder; rank 0 collects them, turns them into pictures and
writes an animation and a contact sheet. All of it happens in a background thread, which the run waits for after its
video is written. A preview that cannot be made is left out, with a warning.
"""

import contextlib
import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vinfinity.denoise.samplers import predicted_clean
from vinfinity.denoise.state import Sampler, State
from vinfinity.errors import VinfinityError, described
from vinfinity.job import Job
from vinfinity.media.preview import FITTED_FRAMES, ColourMap, decoded, enlarged, write_preview
from vinfinity.parallel.devices import enter_device
from vinfinity.session import Session
from vinfinity.system.files import write_whole
from vinfinity.system.folders import data_folder
from vinfinity.system.transfer import HostCopy, to_host
from vinfinity.weights.load import load_decoder

# latent frames of a preview at most, spread evenly
MOST_FRAMES = 64
# parameters of a decoder that is fast enough for previews, such as TAESD's 2.4 million
SMALL = 5_000_000
# seconds in which the latents of the other ranks must arrive, and between two looks at them
PATIENCE, POLL = 60.0, 0.1


@contextlib.contextmanager
def previews(job: Job, session: Session) -> Iterator["Previews | None"]:
    """The previews of a run on this rank; None if none are wanted.

    A preview in work at the end of the block is finished before it ends; an error does not wait for it.
    """
    if not job.config.preview or not session.team.writes:
        yield None
        return
    maker = Previews(job, session)
    try:
        yield maker
    except BaseException:
        maker.close(waits=False)
        raise
    maker.close(waits=True)


class Previews:
    """Makes the previews of a run on one rank."""

    def __init__(self, job: Job, session: Session) -> None:
        self._job = job
        self._every, self._steps = job.config.preview, len(job.sampler.timesteps)
        self._folder, self._progress = session.folder, session.progress
        self._first, held = session.ranks.first, session.team.held
        count = len(job.selection.frames)
        # positions of the frames that are shown, and of those that this rank has
        self._shown = sorted({k * count // MOST_FRAMES for k in range(MOST_FRAMES)})
        self._own = [position for position in self._shown if position in held]
        self._at = [position - held.start for position in self._own]
        self._fps = Fraction(job.config.fps) * len(self._shown) / (count * job.card.geometry.time_downscale)
        self._pool = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="preview",
            initializer=enter_device,
            initargs=(session.ranks.device,),
        )
        self._pending: Future[None] | None = None
        self._closed = threading.Event()
        self._paint: Callable[[Tensor], np.ndarray] | None = None
        self._warned = False
        if self._first:
            # of ranks that ended early
            shutil.rmtree(self._folder.preview, ignore_errors=True)

    def watch(self, sampler: Sampler, state: State, prediction: Tensor) -> None:
        """Begin a preview if one is due after this step, unless the last one is still in work.

        sampler: of the step. state: before it. prediction: the guided one (1, c, f, h, w).
        """
        step = state.step + 1
        # after the last step, the video itself is decoded
        if step % self._every or step == self._steps or not self._own:
            return
        if self._pending is not None:
            if not self._pending.done():
                return
            self._report(self._pending)
        shown = State(state.step, state.x[:, :, self._at])
        clean = predicted_clean(sampler, shown, prediction[:, :, self._at])[0]
        self._pending = self._pool.submit(self._make, step, to_host(clean.half()))

    def flush(self) -> None:
        """Wait until the latents that this rank gives to a preview in work are written; rank 0 waits for nothing.

        Once all ranks have done so, rank 0 finds all that there will be.
        """
        if self._pending is not None and not self._first:
            wait([self._pending])

    def close(self, *, waits: bool) -> None:
        """Begin no preview any more. waits: for one in work, which otherwise ends in the background."""
        self._closed.set()
        if self._first:
            self._pool.submit(shutil.rmtree, self._folder.preview, ignore_errors=True)
        self._pool.shutdown(wait=waits)
        if self._pending is not None and self._pending.done():
            self._report(self._pending)

    def _report(self, ended: "Future[None]") -> None:
        try:
            ended.result()
        except Exception as error:
            # whatever went wrong with a preview must not end the run
            if not self._warned:
                self._warned = True
                self._progress.warn(f"no preview could be made ({described(error).message}); the run goes on")

    # ---- in the background ----

    @torch.no_grad()
    def _make(self, step: int, clean: HostCopy) -> None:
        self._write_own(step, clean.wait())
        if not self._first or not self._all_there(step):
            return
        latents = torch.cat([torch.from_numpy(np.load(path)) for path in self._files(step)], dim=1)
        shutil.rmtree(self._folder.preview, ignore_errors=True)
        latents = latents.float().transpose(0, 1)
        if self._paint is None:
            self._paint = self._painter(latents)
        write_preview(self._folder.preview, self._paint(latents), fps=self._fps)
        self._folder.event("preview", step=step)

    def _write_own(self, step: int, latents: Tensor) -> None:
        """latents: (c, f, h, w) fp16. The file is named after the first frame's and the number of frames."""
        data = io.BytesIO()
        np.save(data, latents.numpy())
        name = f"step-{step:04d}-{self._own[0]:06d}-{len(self._own):03d}.npy"
        write_whole(self._folder.preview / name, data.getvalue())

    def _files(self, step: int) -> list[Path]:
        return sorted(self._folder.preview.glob(f"step-{step:04d}-*.npy"))

    def _all_there(self, step: int) -> bool:
        """Wait until the latents of all ranks are there; return whether they are."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ending = self._closed.is_set() or time.monotonic() > deadline
            if sum(int(path.stem.split("-")[-1]) for path in self._files(step)) == len(self._shown):
                return True
            if ending:
                return False
            self._closed.wait(POLL)

    def _painter(self, latents: Tensor) -> Callable[[Tensor], np.ndarray]:
        """What turns latents (f, c, h, w) into pictures: the decoder that the user chose if it is small, or a map."""
        if self._job.config.decoder is not None:
            decoder = load_decoder(self._job.decoder, device="cpu", dtype=torch.float32)
            if sum(parameter.numel() for parameter in decoder.parameters()) <= SMALL:
                return partial(decoded, decoder)
        colours = self._colour_map(latents)
        return lambda latents: enlarged(colours(latents))

    def _colour_map(self, latents: Tensor) -> ColourMap:
        """The map for this decoder: kept from an earlier run, or fitted to some of these latents (f, c, h, w)."""
        kept = data_folder() / "previews" / f"{self._job.decoder_digest}.json"
        found = ColourMap.load(kept)
        if found is None:
            decoder = load_decoder(self._job.decoder, device="cpu", dtype=torch.float32)
            some = [k * len(latents) // FITTED_FRAMES for k in range(FITTED_FRAMES)]
            found = ColourMap.fit(decoder, latents[sorted({*some})])
            with contextlib.suppress(VinfinityError):
                found.save(kept)
        return found
