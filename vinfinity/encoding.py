"""Encode the video and the images that a run starts from to latents in the run folder."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from vinfinity.denoise.state import State
from vinfinity.errors import DamagedError, InputError
from vinfinity.job import Job
from vinfinity.media.encode import encode_frames
from vinfinity.models.decoder import Encoder
from vinfinity.networks import Networks
from vinfinity.runs.parts import Parts, in_pieces, read_manifest, undamaged_parts
from vinfinity.runs.sources import Sources, encoded_before, open_input, open_pictures
from vinfinity.runs.together import write_together
from vinfinity.session import Session
from vinfinity.system.signals import Reaction
from vinfinity.weights.card import files_digest


def encode_input(
    job: Job, session: Session, networks: Networks, restored: State | None
) -> tuple[Parts | None, Parts | None]:
    """Return the latents of the video and of the images that a run starts from; None for what it does not have.

    Latents that are already in the run folder are not encoded again, and their files are then not needed. restored: the
    state that the run resumes from, which needs at most the images. Every rank must call this. Raises Stopped if a
    shutdown was requested, after every complete round of blocks is written, and InputError if a file is damaged or has
    changed.
    """
    config, folder = job.config, session.folder
    finished = restored is not None and restored.step == len(job.sampler.timesteps)
    encode = partial(_encode, job, session, networks)
    video = pictures = None
    if config.starts_from_video and restored is None:
        earlier = encoded_before(config)
        if earlier is not None:
            video = _copy(session, earlier)
        else:
            video = encode(
                folder.input,
                partial(open_input, config, folder),
                total=job.latent_frames,
                frames=config.frames,
            )
    if config.input.pictures and not finished:
        count = len(config.input.pictures)
        pictures = encode(folder.pictures, partial(open_pictures, config), total=count, frames=count)
    return video, pictures


def _encode(
    job: Job,
    session: Session,
    networks: Networks,
    folder: Path,
    sources: "partial[Sources]",
    *,
    total: int,
    frames: int,
) -> Parts:
    """Encode what `folder` does not have yet.

    sources: opens the files, on rank 0. total: the number of latent frames that their first `frames` frames give.
    """
    ranks, unit = session.ranks, "frames" if total == frames else "latent frames"
    done = ranks.on_first(lambda: _found(folder, session))
    if done is not None and done.frames == total:
        return done
    session.enter(f"after encoding {done.frames if done else 0} of {total} {unit}")
    opened = ranks.on_first(lambda: _opened(sources))
    if isinstance(opened, InputError):
        raise opened
    files, settings = opened
    if done is not None and done.settings != settings:
        if not job.config.overwrite:
            source = files.files[0]
            remedy = "restore it, or start over with `vinfinity generate --overwrite`"
            raise InputError(source.field, source.path, remedy, problem="was changed since the run started")
        # only these latents have been computed so far
        done = None
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
    if ranks.is_first:
        for concern in files.concerns():
            session.progress.warn(concern)
    encoder = networks.encoder(job)
    wanted = range(done.frames if done else 0, total)
    with ranks.shutdown.reacting(Reaction.WAIT):
        rounds = _rounds(
            job, session, encoder, files, folder, wanted=wanted, frames=frames, done=done, settings=settings
        )
        for done in session.progress.track(rounds, label="encoding", unit="block"):
            if done.frames < total:
                session.enter(f"after encoding {done.frames} of {total} {unit}")
    assert done is not None
    if ranks.is_first:
        session.folder.event("encoded", frames=total, folder=folder.name)
    return done


def _rounds(
    job: Job,
    session: Session,
    encoder: Encoder,
    files: Sources,
    folder: Path,
    *,
    wanted: range,
    frames: int,
    done: Parts | None,
    settings: str,
) -> Iterator[Parts]:
    """Encode the latent frames `wanted` of a video of `frames` frames; yield what is written after each round."""
    ranks = session.ranks
    blocks = encode_frames(
        encoder,
        files.read if ranks.is_first else None,
        latent_frames=wanted,
        frames=frames,
        latent=job.latent,
        size=files.size,
        ranks=ranks,
    )
    for block in blocks:
        pieces: list[tuple[range, Mapping[str, Tensor]]] = (
            [] if block is None else [(block[0], {"x": block[1]})]
        )
        done = write_together(
            folder,
            pieces,
            ranks=ranks,
            settings=settings,
            tensors=("x",),
            before=done.parts if done else (),
        )
        yield done


def _found(folder: Path, session: Session) -> Parts | None:
    """Return the latents that a folder holds, and delete damaged and unfinished ones."""

    def damaged(error: DamagedError) -> None:
        session.folder.event("damaged", message=error.message)
        session.progress.warn(f"{error.message}; encoding again")

    return undamaged_parts(folder, damaged=damaged)


def _opened(sources: "partial[Sources]") -> tuple[Sources, str] | InputError:
    """Return the files and their digest, which is recorded with the latents; or why they cannot be used."""
    try:
        files = sources()
        named = [(source.field, source.path) for source in files.files]
        digest = files_digest(named, field=files.files[0].field)
    except InputError as error:
        return error
    return files, hashlib.sha256(digest.encode()).hexdigest()


def _copy(session: Session, earlier: Path) -> Parts:
    """Copy the latents that the edited run has encoded, so that this run can be edited in turn."""
    ranks, folder = session.ranks, session.folder.input
    source = read_manifest(earlier)
    done = ranks.on_first(lambda: _found(folder, session))
    if done is not None and done.frames == source.frames:
        return done
    ranks.on_first(source.verify)

    own = in_pieces(range(source.frames)) if ranks.is_first else ()
    copied = ((piece, {"x": source.read(piece)[None]}) for piece in own)
    return write_together(folder, copied, ranks=ranks, settings=source.settings, tensors=source.tensors)
