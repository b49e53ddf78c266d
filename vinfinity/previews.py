"""Previews of the predicted video while a run denoises, which never hold up the run.

Every rank writes a few of its predicted latents into the run folder; rank 0 collects them, turns them into pictures and
writes an animation and a contact sheet. All of this happens in a background thread, which the run waits for after its
video is written. A preview that fails is skipped, with a warning.
"""

import contextlib
import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
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

# maximum number of latent frames in a preview, spread evenly
MAX_FRAMES = 64
# most parameters of a decoder that is fast enough for previews; TAESD has 2.4 million
MAX_DECODER_PARAMETERS = 5_000_000
# seconds that rank 0 waits for the latents of the other ranks, and between two looks for them
WAIT_SECONDS, POLL_SECONDS = 60.0, 0.1


@contextlib.contextmanager
def previews(job: Job, session: Session) -> Iterator["Previews | None"]:
    """Yield the previews of a run on this rank, or None if none are wanted.

    At the end of the block, a running preview is finished first, unless the block raises an error.
    """
    if not job.config.preview or not session.team.writes:
        yield None
        return
    maker = Previews(job, session)
    try:
        yield maker
    except BaseException:
        maker.close(wait=False)
        raise
    maker.close(wait=True)


class Previews:
    """Makes the previews of a run on one rank."""

    def __init__(self, job: Job, session: Session) -> None:
        self._job = job
        self._every, self._steps = job.config.preview, len(job.sampler.timesteps)
        self._folder, self._progress = session.folder, session.progress
        self._first, held = session.ranks.is_first, session.team.held
        count = len(job.selection.frames)
        # positions of the frames that are shown, and of those among them that this rank has
        self._shown = sorted({k * count // MAX_FRAMES for k in range(MAX_FRAMES)})
        self._own = [position for position in self._shown if position in held]
        self._at = [position - held.start for position in self._own]
        self._fps = Fraction(job.config.fps) * len(self._shown) / (count * job.card.geometry.time_downscale)
        self._pool = futures.ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="preview",
            initializer=enter_device,
            initargs=(session.ranks.device,),
        )
        self._pending: futures.Future[None] | None = None
        self._closed = threading.Event()
        self._paint: Callable[[Tensor], np.ndarray] | None = None
        self._warned = False
        if self._first:
            # left by ranks that ended early
            shutil.rmtree(self._folder.preview, ignore_errors=True)

    def watch(self, sampler: Sampler, state: State, prediction: Tensor) -> None:
        """Start a preview if one is due after this step, unless the previous one is still running.

        sampler: the sampler of the step. state: the state before it. prediction: the guided prediction (1, c, f, h, w).
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
        """Wait until this rank's latents for a running preview are written; rank 0 does not wait.

        Once every rank has returned, rank 0 finds the latents of all ranks.
        """
        if self._pending is not None and not self._first:
            futures.wait([self._pending])

    def close(self, *, wait: bool) -> None:
        """Start no more previews. wait: whether to wait for a running one, which otherwise ends in the background."""
        self._closed.set()
        if self._first:
            self._pool.submit(shutil.rmtree, self._folder.preview, ignore_errors=True)
        self._pool.shutdown(wait=wait)
        if self._pending is not None and self._pending.done():
            self._report(self._pending)

    def _report(self, ended: "futures.Future[None]") -> None:
        try:
            ended.result()
        except Exception as error:
            # a preview that fails must never end the run
            if not self._warned:
                self._warned = True
                self._progress.warn(f"cannot make a preview ({described(error).message}); the run continues")

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
        """Write latents (c, f, h, w) fp16 to a file named after the first frame's number and the number of frames."""
        data = io.BytesIO()
        np.save(data, latents.numpy())
        name = f"step-{step:04d}-{self._own[0]:06d}-{len(self._own):03d}.npy"
        write_whole(self._folder.preview / name, data.getvalue())

    def _files(self, step: int) -> list[Path]:
        return sorted(self._folder.preview.glob(f"step-{step:04d}-*.npy"))

    def _all_there(self, step: int) -> bool:
        """Wait for the latents of all ranks, and return whether they have arrived."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            ending = self._closed.is_set() or time.monotonic() > deadline
            if sum(int(path.stem.split("-")[-1]) for path in self._files(step)) == len(self._shown):
                return True
            if ending:
                return False
            self._closed.wait(POLL_SECONDS)

    def _painter(self, latents: Tensor) -> Callable[[Tensor], np.ndarray]:
        """Return what turns latents (f, c, h, w) into pictures: the user's decoder, if small, or a colour map."""
        if self._job.config.decoder is not None:
            decoder = load_decoder(self._job.decoder, device="cpu", dtype=torch.float32)
            if sum(parameter.numel() for parameter in decoder.parameters()) <= MAX_DECODER_PARAMETERS:
                return partial(decoded, decoder)
        colours = self._colour_map(latents)
        return lambda latents: enlarged(colours(latents))

    def _colour_map(self, latents: Tensor) -> ColourMap:
        """Return the colour map for this decoder: cached from an earlier run, or fitted to some of these latents."""
        kept = data_folder() / "previews" / f"{self._job.decoder_digest}.json"
        found = ColourMap.load(kept)
        if found is None:
            decoder = load_decoder(self._job.decoder, device="cpu", dtype=torch.float32)
            some = [k * len(latents) // FITTED_FRAMES for k in range(FITTED_FRAMES)]
            found = ColourMap.fit(decoder, latents[sorted({*some})])
            with contextlib.suppress(VinfinityError):
                found.save(kept)
        return found
