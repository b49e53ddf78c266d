"""Previews: colours by a linear map, animations and contact sheets."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vinfinity.media.preview import SIDE, ColourMap, decoded, enlarged, write_preview
from vinfinity.models.decoder import Framewise


@dataclass(frozen=True)
class LinearConfig:
    latent_channels: int = 4
    downscale: int = 2
    time_downscale: int = 1
    causal: bool = False
    peak_channels: int = 4
    widest_channels: int = 4


class LinearDecoder(Framewise):
    """A decoder whose pictures are a linear function of the latents, twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LinearConfig()
        self.to_rgb = nn.Conv2d(4, 3, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return self.to_rgb(latents).repeat_interleave(2, -1).repeat_interleave(2, -2)


@torch.no_grad()
def test_a_map_fitted_to_a_linear_decoder_gives_its_colours() -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder()
    latents = 0.3 * torch.randn(4, 4, 6, 5)
    colours = ColourMap.fit(decoder, latents)
    expected = decoder.to_rgb(latents).permute(0, 2, 3, 1).mul(127.5).add(127.5)
    assert colours(latents).shape == (4, 6, 5, 3)
    assert (colours(latents).float() - expected).abs().max() < 1.5


@torch.no_grad()
@pytest.mark.parametrize(("side", "shown"), [(6, 12), (128, 128), (200, 133)])
def test_pictures_of_a_decoder_are_shrunk_by_a_whole_factor(side: int, shown: int) -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder()
    latents = 0.3 * torch.randn(2, 4, side, side)
    pictures = decoded(decoder, latents)
    assert pictures.shape == (2, shown, shown, 3)
    if side == SIDE:
        expected = decoder.to_rgb(latents).clamp(-1, 1).permute(0, 2, 3, 1).add(1).mul(127.5)
        assert np.abs(pictures - expected.numpy()).max() < 1


def test_a_saved_map_is_the_same_and_a_damaged_one_is_no_map(tmp_path: Path) -> None:
    colours = ColourMap(torch.arange(15.0).reshape(5, 3) / 7)
    path = tmp_path / "previews" / "map.json"
    assert ColourMap.load(path) is None
    colours.save(path)
    again = ColourMap.load(path)
    assert again is not None
    assert torch.equal(again.weights, colours.weights)
    for damage in ("", "{}", '{"weights": 3}', '{"weights": [[1, 2]]}'):
        path.write_text(damage)
        assert ColourMap.load(path) is None


@pytest.mark.parametrize(("height", "width"), [(4, 8), (40, 64), (300, 200)])
def test_pictures_are_enlarged_by_a_whole_factor(height: int, width: int) -> None:
    pictures = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    pictures[:, :, width // 2 :] = 200
    large = enlarged(pictures)
    factor = max(1, SIDE // max(height, width))
    assert large.shape == (2, factor * height, factor * width, 3)
    assert large[0, 0, 0, 0] == 0
    assert large[0, 0, -1, 0] == 200


def test_an_animation_and_a_sheet_are_written_at_the_given_rate(tmp_path: Path) -> None:
    frames = np.zeros((10, 24, 32, 3), dtype=np.uint8)
    frames[:, :, :, 0] = 20 * np.arange(10)[:, None, None]
    write_preview(tmp_path / "preview", frames, fps=Fraction(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preview.png", "preview.webp"]
    with av.open(str(tmp_path / "preview.png")) as sheet:
        [picture] = sheet.decode(video=0)
    assert (picture.width, picture.height) > (32, 24)
    data = (tmp_path / "preview.webp").read_bytes()
    # chunks of a WebP (RFC 9649): one ANMF for each frame, with its duration in ms in 3 bytes; loops for ever
    durations = []
    at = 12
    while at < len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"ANIM":
            assert data[at + 12 : at + 14] == b"\0\0"
        if kind == b"ANMF":
            durations.append(int.from_bytes(data[at + 20 : at + 23], "little"))
        at += 8 + size + size % 2
    assert durations == [250] * 10
