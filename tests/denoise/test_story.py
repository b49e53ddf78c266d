"""Whole runs with prompts over time, scenes, loops and moving anchors, against diffusers with dense masks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import TextToVideoSDPipeline, UNet3DConditionModel
from diffusers.models.attention_processor import Attention
from oracles.reference import (
    DenseDualScope,
    relative_error,
    tiny_pipeline,
)
from oracles.runs import latents_on
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vinfinity.errors import InputError
from vinfinity.job import prepare
from vinfinity.parallel.shards import anchor_frames
from vinfinity.run import run
from vinfinity.runs.derived import extend_settings, redo_settings
from vinfinity.runs.folder import find_run

CLOSE = 1e-4
FRAMES = 37
# both phases are reached in four steps
ATTENTION = (
    "attention.local=3",
    "attention.anchors=4",
    "attention.schedule=[{above: 500, local: 0, anchors: 10}, {above: -1, local: 10, anchors: 0}]",
)
BALL, BOAT, STAR = "a red ball", "a blue boat", "a yellow star"


def latents_of(model: Path, folder: Path, *overrides: str, ranks: int = 1, **flags: Any) -> Tensor:
    """Return the latents of a whole run, (1, c, f, h, w)."""
    fixed = {"frames": FRAMES, "size": "16x24", "steps": 4, "sampler": "ddim", "guidance": 5.0}
    return latents_on(model, folder, *ATTENTION, *overrides, ranks=ranks, **{**fixed, **flags})


# ---- diffusers, with a dense mask and a text for each frame ----


class TextOfFrames:
    """A diffusers attention processor: each frame attends to its own text. states: (F, t, c)."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """hidden_states: (F, positions, c)."""
        assert encoder_hidden_states is not None
        q, k, v = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, self.states), (attn.to_v, self.states))
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def dense_bias(t: int, step: int, *, loop: bool = False, moving: bool = False) -> Tensor:
    """Return the bias b(i, j) at timestep t, by its definition."""
    local, anchored = (0.0, 10.0) if t > 500 else (10.0, 0.0)
    anchors = {(anchor + step * moving) % FRAMES for anchor in anchor_frames(FRAMES, 4)}
    bias = torch.full((FRAMES, FRAMES), -math.inf)
    for i in range(FRAMES):
        for j in range(FRAMES):
            distance = min(abs(i - j), FRAMES - abs(i - j)) if loop else abs(i - j)
            if distance <= 3:
                bias[i, j] = local
            if j in anchors:
                bias[i, j] = max(float(bias[i, j]), anchored)
    return bias


def set_attention(unet: UNet3DConditionModel, bias: Tensor, text: Tensor) -> None:
    """Dense masks in temporal attention, a text for each frame in cross-attention."""
    processors = dict(unet.attn_processors)
    for name in processors:
        if "transformer_in." in name or "temp_attentions." in name:
            processors[name] = DenseDualScope(bias, torch.ones(FRAMES))
        elif ".attn2." in name:
            processors[name] = TextOfFrames(text)
    unet.set_attn_processor(processors)


def encode(pipeline: TextToVideoSDPipeline, text: str) -> Tensor:
    """Text states (t, c)."""
    ids = pipeline.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
    return pipeline.text_encoder(ids).last_hidden_state[0]


@torch.no_grad()
def dense_run(
    noise: Tensor, prompts: Tensor, negatives: Tensor, pipeline: TextToVideoSDPipeline, **options: bool
) -> Tensor:
    """Return the latents of diffusers. prompts, negatives: (F, t, c), the text of each frame."""
    if options.get("loop"):
        for module in pipeline.unet.modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 1, 1):
                # nn.Conv3d pads all axes in the same way, and only the first of them here
                module.padding_mode, module._reversed_padding_repeated_twice = "circular", [0, 0, 0, 0, 1, 1]
    pipeline.scheduler.set_timesteps(4)
    x = noise
    for step, t in enumerate(pipeline.scheduler.timesteps):
        predictions = []
        for text in (negatives, prompts):
            set_attention(pipeline.unet, dense_bias(int(t), step, **options), text)
            predictions.append(pipeline.unet(x, t, text[:1]).sample)
        negative, positive = predictions
        x = pipeline.scheduler.step(negative + 5.0 * (positive - negative), t, x).prev_sample
    return x


@pytest.fixture
def noise(tmp_path: Path) -> Tensor:
    """Return initial noise, which is also in the file noise.safetensors."""
    noise = torch.randn(1, 4, FRAMES, 3, 2)
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    return noise


@pytest.mark.parametrize(
    "options", [{}, {"loop": True}, {"moving": True}, {"loop": True, "moving": True}], ids=str
)
def test_a_story_equals_diffusers_with_dense_masks_and_a_text_for_each_frame(
    options: dict[str, bool], noise: Tensor, model_folder: Path, tmp_path: Path
) -> None:
    """Text states change over from frame 10 to frame 16; the negative prompt changes with them."""
    ours = latents_of(
        model_folder,
        tmp_path / "ours",
        f"prompts=[{{at: 13, text: {BOAT}, negative: {STAR}, blend: 6}}, {{at: 30, text: {BALL}, blend: 0}}]",
        f"loop={options.get('loop', False)}",
        f"attention.moving_anchors={options.get('moving', False)}",
        prompt=BALL,
        noise_from=str(tmp_path / "noise.safetensors"),
    )
    pipeline = tiny_pipeline()
    ball, boat, star, nothing = (encode(pipeline, text) for text in (BALL, BOAT, STAR, ""))
    weights = [0.0] * 10 + [(i + 0.5) / 6 for i in range(6)] + [1.0] * 14 + [0.0] * 7
    prompts = torch.stack([torch.lerp(ball, boat, weight) for weight in weights])
    negatives = torch.stack([torch.lerp(nothing, star, weight) for weight in weights])
    assert relative_error(ours, dense_run(noise, prompts, negatives, pipeline, **options)) <= CLOSE


# ---- on ranks ----

STORY = f"prompts=[{{at: 13, text: {BOAT}}}, {{at: 25, text: {STAR}, blend: 3}}]"
CUTS = f"prompts=[{{at: 7, text: {BOAT}, cut: true}}, {{at: 30, text: {STAR}, cut: true}}]"


@pytest.mark.parametrize(
    "ranks", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "overrides",
    [
        (STORY,),
        (STORY, "loop=true", "attention.moving_anchors=true"),
        (CUTS, "attention.moving_anchors=true"),
        (STORY, "loop=true", "dtype=bf16"),
        (CUTS, "dtype=bf16"),
    ],
    ids=["story", "moving loop", "cuts", "loop in bf16", "cuts in bf16"],
)
def test_ranks_give_the_same_bits(
    overrides: tuple[str, ...], ranks: int, model_folder: Path, tmp_path: Path
) -> None:
    one = latents_of(model_folder, tmp_path, *overrides)
    assert torch.equal(latents_of(model_folder, tmp_path, *overrides, ranks=ranks), one)


def test_equal_prompts_give_the_bits_of_one_prompt(model_folder: Path, tmp_path: Path) -> None:
    plain = latents_of(model_folder, tmp_path / "plain")
    again = f"prompts=[{{at: 9, text: {BALL}, blend: 8}}, {{at: 50%, text: {BALL}}}]"
    assert torch.equal(latents_of(model_folder, tmp_path / "story", again), plain)


@pytest.mark.parametrize("ranks", [1, 3])
def test_cut_scenes_equal_videos_of_their_own(
    ranks: int, noise: Tensor, model_folder: Path, tmp_path: Path
) -> None:
    """Of 7, 23 and 7 frames, of which the trained clip has 16: plain attention in the short ones."""
    given = {"noise_from": str(tmp_path / "noise.safetensors")}
    together = latents_of(model_folder, tmp_path / "together", CUTS, ranks=ranks, **given)
    for text, span in ((BALL, range(7)), (BOAT, range(7, 30)), (STAR, range(30, 37))):
        own = noise[:, :, span.start : span.stop].contiguous()
        save_file({"noise": own}, tmp_path / "own.safetensors")
        alone = latents_of(
            model_folder,
            tmp_path / "alone",
            prompt=text,
            frames=len(span),
            noise_from=str(tmp_path / "own.safetensors"),
        )
        assert relative_error(together[:, :, span.start : span.stop], alone) <= CLOSE


@pytest.mark.parametrize("frames", [11, FRAMES])
def test_rotating_the_noise_of_a_loop_rotates_the_video(
    frames: int, model_folder: Path, tmp_path: Path
) -> None:
    """Without anchors, which stay where they are; also in a video no longer than the trained clip."""
    noise, results = torch.randn(1, 4, frames, 3, 2), []
    for turn in (0, 5):
        save_file({"noise": noise.roll(turn, 2).contiguous()}, tmp_path / "noise.safetensors")
        given: dict[str, Any] = {"noise_from": str(tmp_path / "noise.safetensors"), "frames": frames}
        results.append(latents_of(model_folder, tmp_path, "loop=true", "attention.anchors=0", **given))
    straight, turned = results
    assert relative_error(turned, straight.roll(5, 2)) <= CLOSE


# ---- edits ----


def test_an_edit_keeps_the_schedule(model_folder: Path, tmp_path: Path) -> None:
    """Parts of the video are those of the earlier one, also where the new one is longer."""
    latents_of(
        model_folder, tmp_path, f"prompts=[{{at: 50%, text: {BOAT}}}, {{at: 30, text: {STAR}, cut: true}}]"
    )
    folder = find_run(tmp_path / "1.mp4")

    def redone(**flags: str) -> list[tuple[int, str, bool]]:
        config = redo_settings(folder, "5:9", overrides=[], flags=flags).config
        return [(p.start, p.text, p.cut) for p in prepare(config).prompts.prompts]

    def extended(**flags: str) -> list[tuple[int, str, bool]]:
        config = extend_settings(folder, 8, overrides=[], flags=flags).config
        return [(p.start, p.text, p.cut) for p in prepare(config).prompts.prompts]

    kept = [(0, BALL, False), (18, BOAT, False), (30, STAR, True)]
    assert redone() == kept
    assert redone(prompt=BOAT) == [(0, BOAT, False)]
    assert extended() == kept
    assert extended(prompt=BALL) == [*kept, (37, BALL, False)]


def test_a_prompt_is_appended_with_a_blend_that_fits(model_folder: Path, tmp_path: Path) -> None:
    prompts = f"prompts=[{{at: 20, text: {BOAT}, blend: 16}}]"
    latents_of(model_folder, tmp_path, prompts, frames=30)
    folder = find_run(tmp_path / "1.mp4")

    def blends(added: int, *overrides: str, **flags: str) -> list[int]:
        resolved = extend_settings(folder, added, overrides=overrides, flags=flags)
        return [p.blend for p in prepare(resolved.config).prompts.prompts]

    assert blends(32, prompt=STAR) == blends(32, f"prompt={STAR}") == [0, 16, 4]
    assert blends(3, prompt=STAR) == [0, 16, 3]
    own = f"prompts=[{{at: 30, text: {STAR}, blend: 9}}]"
    assert blends(32, own) == [0, 9]
    with pytest.raises(InputError, match=r"^prompts\[0\].blend: 99 \(command line\) reaches"):
        blends(32, own.replace("9}", "99}"))


def test_a_prompt_is_appended_to_a_loop_that_is_opened(model_folder: Path, tmp_path: Path) -> None:
    latents_of(model_folder, tmp_path, "loop=true", f"prompts=[{{at: 20, text: {BOAT}}}]")
    folder = find_run(tmp_path / "1.mp4")

    def blends(*overrides: str) -> list[int]:
        resolved = extend_settings(folder, 8, overrides=overrides, flags={"prompt": STAR})
        return [p.blend for p in prepare(resolved.config).prompts.prompts]

    assert blends("loop=false") == [0, 16, 8]
    with pytest.raises(InputError, match=r"^loop: true has no end to extend"):
        blends()


def test_an_edit_may_have_another_negative_prompt(model_folder: Path, tmp_path: Path) -> None:
    prompts = f"prompts=[{{at: 20, text: {BOAT}, negative: a hat}}]"
    latents_of(model_folder, tmp_path, prompts)
    config = redo_settings(find_run(tmp_path / "1.mp4"), "5:9", overrides=["negative=fog"], flags={}).config
    assert [p.negative for p in prepare(config).prompts.prompts] == ["fog", "a hat"]


def test_a_redo_computes_frames_of_its_scene_only(model_folder: Path, tmp_path: Path) -> None:
    latents_of(model_folder, tmp_path, CUTS)
    config = redo_settings(find_run(tmp_path / "1.mp4"), "9:12", overrides=[], flags={}).config
    frames = prepare(config).selection.frames
    assert min(frames) == 7
    assert max(frames) < 30
    run(config)


def test_the_end_of_a_loop_is_near_its_beginning_in_a_redo(model_folder: Path, tmp_path: Path) -> None:
    before = latents_of(model_folder, tmp_path, "loop=true", "edit.context=2")
    folder, flags = find_run(tmp_path / "1.mp4"), {"save_latents": str(tmp_path / "redo.safetensors")}
    config = redo_settings(folder, "0:3", overrides=["edit.context=2"], flags=flags).config
    assert {35, 36, 0, 1, 2, 3, 4} <= set(prepare(config).selection.frames)
    run(config)
    after = load_file(tmp_path / "redo.safetensors")["latents"]
    assert torch.equal(after[:, :, 3:], before[:, :, 3:])
    assert not torch.equal(after[:, :, :3], before[:, :, :3])
