"""VBench's consistency by CLIP and DINO, from tiny models that transformers writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from oracles.command_line import Cli
from oracles.synthetic import panning, save
from PIL import Image
from torch.nn import functional as F

import vinfinity
from vinfinity.evaluation.consistency import consistency, consistency_long

MINI = Path(vinfinity.__file__).parent / "assets" / "mini"


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
    )
    folder = tmp_path_factory.mktemp("dino")
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.CLIPConfig(
        text_config={**small, "max_position_embeddings": 16, "vocab_size": 49408},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(folder)
    for file in (MINI / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def test_consistency_is_vbenchs_formula() -> None:
    features = F.normalize(torch.randn(7, 5, generator=torch.manual_seed(0)), dim=-1)
    total = 0.0
    for t in range(1, 7):
        before = max(0.0, F.cosine_similarity(features[t - 1 : t], features[t : t + 1]).item())
        first = max(0.0, F.cosine_similarity(features[:1], features[t : t + 1]).item())
        total += (before + first) / 2
    assert consistency(features) == pytest.approx(total / 6, abs=1e-6)
    assert consistency(features[:1]) is None


def test_the_long_form_takes_clips_of_two_seconds_within_shots() -> None:
    features = F.normalize(torch.randn(20, 5, generator=torch.manual_seed(0)), dim=-1)
    clips = [features[0:4], features[4:6], features[6:10], features[10:14], features[14:18], features[18:20]]
    within = np.mean([consistency(clip) or 0 for clip in clips])
    between = consistency(torch.stack([clip[0] for clip in clips]))
    assert between is not None
    assert consistency_long(features, fps=2, cuts=[6]) == pytest.approx((within + between) / 2)


def test_features_are_those_of_transformers_with_vbenchs_transforms(dino: Path) -> None:
    """Resized to a short side of 32 and normalised by ImageNet's statistics."""
    video = panning(5, height=64, width=64)
    result = vinfinity.evaluate(video, dino=dino, device="cpu")
    model = transformers.ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    states = []
    for frame in video:
        # a square frame of twice the side: bilinear without antialiasing is the mean of 2x2 pixels
        small = frame.reshape(32, 2, 32, 2, 3).astype(np.float32).mean(axis=(1, 3)).round() / 255
        pixels = ((torch.from_numpy(small) - mean) / deviation).permute(2, 0, 1)[None]
        with torch.no_grad():
            states.append(model(pixel_values=pixels).last_hidden_state[:, 0])
    expected = consistency(F.normalize(torch.cat(states), dim=-1))
    assert result["consistency.subject"] == pytest.approx(expected, abs=1e-4)
    assert result.curves["subject"][0] == pytest.approx(1)


def test_clip_gives_background_and_agreement_with_the_prompt(clip: Path) -> None:
    result = vinfinity.evaluate(panning(5), clip=clip, prompt="a red ball", device="cpu")
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor([Image.fromarray(frame) for frame in panning(5)], return_tensors="pt").pixel_values
    tokens = transformers.CLIPTokenizer.from_pretrained(clip)(["a red ball"], return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    features = output.image_embeds
    # Pillow resizes with antialiasing, VBench does not
    assert result["consistency.background"] == pytest.approx(consistency(features), abs=0.02)
    agreement = (features @ output.text_embeds[0]).mean().item()
    assert result["consistency.prompt"] == pytest.approx(agreement, abs=0.05)


def test_a_frozen_video_scores_highest_and_its_motion_is_shown(cli: Cli, dino: Path, tmp_path: Path) -> None:
    still = save(tmp_path / "still.mp4", np.repeat(panning(1), 8, axis=0))
    code, out, _ = cli("evaluate", str(still), "--dino", str(dino), "--device", "cpu")
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("subject consistency  ")]
    assert "1.0000 at 0.00 px/frame" in line


def test_weights_of_another_architecture_are_refused(
    cli: Cli, dino: Path, clip: Path, tmp_path: Path
) -> None:
    video = str(save(tmp_path / "a.mp4", panning(3)))
    assert "holds a model of the type clip, not vit or dinov2" in cli.refused(
        "evaluate", video, "--dino", str(clip)
    )
    assert "holds a model of the type vit, not clip" in cli.refused("evaluate", video, "--clip", str(dino))
    assert "does not exist" in cli.refused("evaluate", video, "--clip", str(tmp_path / "no"))
    assert "config.json" in cli.refused("evaluate", video, "--clip", str(tmp_path))


def test_weights_that_do_not_fit_their_config_are_refused(cli: Cli, dino: Path, tmp_path: Path) -> None:
    video = str(save(tmp_path / "a.mp4", panning(3)))
    wrong = tmp_path / "wrong"
    shutil.copytree(dino, wrong)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "lacks weights of this architecture" in cli.refused("evaluate", video, "--dino", str(wrong))
    (wrong / "model.safetensors").unlink()
    assert "cannot be loaded" in cli.refused("evaluate", video, "--dino", str(wrong))
