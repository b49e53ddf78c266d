"""The run that a redo or extend starts from: what is refused, and which frames are copied."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.settings import run_config

from vinfinity.config import RunConfig
from vinfinity.denoise.prompts import schedule_prompts
from vinfinity.errors import DamagedError, InputError
from vinfinity.models.geometry import LatentGeometry
from vinfinity.runs.earlier import EarlierRun, final_latents
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import COPIED_FRAMES, write_manifest, write_part

LATENT = (4, 3, 2)
SIZE = "16x24"
GEOMETRY = LatentGeometry(channels=4, downscale=8)


def save_latents(folder: Path, *, frames: int = 20) -> torch.Tensor:
    """Write the final latents of a run, (1, c, f, h, w)."""
    x = torch.randn(1, LATENT[0], frames, *LATENT[1:])
    part = write_part(folder / "latents", range(frames), {"x": x})
    write_manifest(folder / "latents", [part], step=2, settings="", tensors=("x",), seeds=[5] * frames)
    return x


def edit_config(folder: Path, *, frames: int = 20, size: str = SIZE, **settings: Any) -> RunConfig:
    return run_config(prompt="a", frames=frames, size=size, edit={"run": str(folder), **settings})


def test_a_new_video_has_no_earlier_run() -> None:
    assert EarlierRun.open(run_config(prompt="a"), GEOMETRY) is None


def test_a_run_without_latents_is_refused_with_how_to_compute_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"edit\.run: .*has no latents.*`vinfinity resume"):
        EarlierRun.open(edit_config(tmp_path, redo="2:4"), GEOMETRY)
    with pytest.raises(InputError, match=r"^run: .*has no latents"):
        final_latents(RunFolder(tmp_path))


def test_latents_of_another_size_are_refused(tmp_path: Path) -> None:
    save_latents(tmp_path)
    with pytest.raises(InputError, match=r"edit\.run: .*4x3x2; this video needs 4x3x5"):
        EarlierRun.open(edit_config(tmp_path, size="40x24", redo="2:4"), GEOMETRY)


def test_frames_beyond_the_earlier_run_are_refused(tmp_path: Path) -> None:
    save_latents(tmp_path)
    with pytest.raises(InputError, match=r"edit\.redo: 18:21.*goes beyond the run's 20 frames"):
        EarlierRun.open(edit_config(tmp_path, frames=24, redo="18:21"), GEOMETRY)


def test_fewer_frames_than_the_earlier_runs_are_refused(tmp_path: Path) -> None:
    save_latents(tmp_path)
    with pytest.raises(InputError, match=r"frames: 19.*is less than the run's 20 frames"):
        EarlierRun.open(edit_config(tmp_path, frames=19, redo="2:4"), GEOMETRY)


def test_spans_of_frames_become_spans_of_latent_frames(tmp_path: Path) -> None:
    """With four frames a latent frame, latent frame 0 holds frame 0, and latent frame i holds frames 4i-3 to 4i."""
    save_latents(tmp_path, frames=6)
    geometry = LatentGeometry(channels=4, downscale=8, time_downscale=4)
    config = edit_config(tmp_path, frames=29, redo="8:14", blend=2, context=5)
    earlier = EarlierRun.open(config, geometry)
    assert earlier is not None
    assert (earlier.redo, earlier.blend, earlier.context) == (range(2, 5), 1, 2)
    selection = earlier.select(config, schedule_prompts(config, geometry), steps=4)
    assert sorted(selection.generated) == [2, 3, 4, 6, 7]
    with pytest.raises(InputError, match=r"edit\.redo: 18:22.*goes beyond the run's 21 frames"):
        EarlierRun.open(edit_config(tmp_path, frames=29, redo="18:22"), geometry)
    with pytest.raises(InputError, match=r"frames: 17.*is less than the run's 21 frames"):
        EarlierRun.open(edit_config(tmp_path, frames=17, redo="2:4"), geometry)
    assert EarlierRun.open(edit_config(tmp_path, frames=18, redo="2:4"), geometry) is not None


def test_an_edit_that_changes_no_latent_frame_is_refused(tmp_path: Path) -> None:
    """Of a video of 18 frames, the last of six latent frames holds three frames more."""
    save_latents(tmp_path, frames=6)
    geometry = LatentGeometry(channels=4, downscale=8, time_downscale=4)
    for frames in (19, 21):
        with pytest.raises(
            InputError, match=rf"frames: {frames} adds nothing to the 21 frames .*; use at least 22 in"
        ):
            EarlierRun.open(edit_config(tmp_path, frames=frames), geometry)
    assert EarlierRun.open(edit_config(tmp_path, frames=22), geometry) is not None
    with pytest.raises(InputError, match=r"edit\.redo: 17:19.*goes beyond the run's 18 frames"):
        EarlierRun.open(edit_config(tmp_path, frames=18, redo="17:19"), geometry)


def test_latents_damaged_since_they_were_opened_are_refused(tmp_path: Path) -> None:
    from vinfinity.job import prepare

    save_latents(tmp_path)
    [part] = (tmp_path / "latents").glob("*.safetensors")
    earlier = EarlierRun.open(edit_config(tmp_path, redo="2:4"), GEOMETRY)
    assert earlier is not None
    sampler = prepare(run_config(prompt="a red ball", frames=1)).sampler
    earlier.sampler(sampler, range(20), LATENT, device=torch.device("cpu"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(DamagedError, match="SHA-256"):
        earlier.sampler(sampler, range(20), LATENT, device=torch.device("cpu"))


def test_kept_frames_are_copied_in_pieces_of_bounded_size(tmp_path: Path) -> None:
    frames = COPIED_FRAMES + 30
    x = save_latents(tmp_path, frames=frames)
    earlier = EarlierRun.open(edit_config(tmp_path, frames=frames, redo="10:20"), GEOMETRY)
    assert earlier is not None
    pieces = list(earlier.kept_pieces())
    assert [piece for piece, _ in pieces] == [
        range(0, 10),
        range(20, 20 + COPIED_FRAMES),
        range(20 + COPIED_FRAMES, frames),
    ]
    for piece, tensors in pieces:
        assert torch.equal(tensors["x"], x[:, :, piece.start : piece.stop])
