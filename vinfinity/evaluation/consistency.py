"""VBench's consistency, its long form, and agreement with prompts: features of DINO and CLIP from weights on disk.

A feature is normalised to length 1. Consistency of frames 0 to F - 1 with features d_t (VBench, Huang et al. 2024):

    mean over t >= 1 of (max(0, d_t . d_(t-1)) + max(0, d_t . d_0)) / 2

A frozen video scores 1. Dims: b frames at once, F frames of the video, d numbers of a feature.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vinfinity.errors import WeightsError, one_line
from vinfinity.evaluation.extras import load_extra
from vinfinity.evaluation.picture import Picture
from vinfinity.parallel.devices import pick_device, select_device
from vinfinity.system.files import missing_problem
from vinfinity.system.folders import expanded

# what the images of a model's training were normalised by
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_KINDS = {"vit": "ViTModel", "dinov2": "Dinov2Model"}
CLIP_KINDS = {"clip": "CLIPModel"}
AT_ONCE = 8
CLIP_SECONDS = 2.0
LONGEST_TEXT = 77


@dataclass(frozen=True)
class Networks:
    """The networks whose weights the user named; None for others. clip_tokenizer: tokenizes the prompts for CLIP."""

    clip: Any = None
    clip_tokenizer: Any = None
    dino: Any = None
    device: torch.device | None = None

    @classmethod
    def open(
        cls, *, clip: str | Path | None = None, dino: str | Path | None = None, device: str = "auto"
    ) -> "Networks":
        """Load CLIP and DINO from folders in transformers' layout. Raises WeightsError, InputError."""
        if clip is None and dino is None:
            return cls()
        where = pick_device(device)
        select_device(where)
        kinds = {"clip": CLIP_KINDS, "dino": DINO_KINDS}
        folders = {
            name: (expanded(path, field=name), kinds[name])
            for name, path in (("clip", clip), ("dino", dino))
            if path is not None
        }
        # all are looked at before the first is loaded
        classes = {name: _architecture(name, folder, known) for name, (folder, known) in folders.items()}
        loaded = {name: _load(name, folders[name][0], kind).to(where) for name, kind in classes.items()}
        tokenizer = None
        if "clip" in folders:
            with _weights_errors("clip", folders["clip"][0], "add the files of its tokenizer"):
                transformers = load_extra("transformers", field="clip", value=clip or "")
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folders["clip"][0], local_files_only=True
                )
        return cls(loaded.get("clip"), tokenizer, loaded.get("dino"), where)


@dataclass(frozen=True)
class Features:
    """Figures and curves by name, none without weights."""

    figures: dict[str, float | None]
    curves: dict[str, np.ndarray]


class FeatureMeasure:
    """Measures consistency, given the frames one at a time; keeps a feature of each, 2 to 3 KB per network."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._waiting: list[np.ndarray] = []
        self._dino: list[Tensor] = []
        self._clip: list[Tensor] = []

    def add(self, picture: Picture) -> None:
        if self._networks.clip is None and self._networks.dino is None:
            return
        self._waiting.append(picture.rgb)
        if len(self._waiting) == AT_ONCE:
            self._compute()

    def result(self, texts: Sequence[str] | None, *, fps: float, cuts: Sequence[int] = ()) -> Features:
        """texts: the prompt in force at each frame. cuts: first frames after cuts, for the long form."""
        if self._waiting:
            self._compute()
        figures: dict[str, float | None] = {}
        curves: dict[str, np.ndarray] = {}
        for name, parts in (("subject", self._dino), ("background", self._clip)):
            if parts:
                features = torch.cat(parts)
                figures[f"consistency.{name}"] = consistency(features)
                figures[f"consistency.{name}_long"] = consistency_long(features, fps=fps, cuts=cuts)
                curves[name] = (features @ features[0]).numpy().astype(np.float64)
        if self._clip and texts is not None:
            curves["prompt"] = self._agreement(torch.cat(self._clip), texts)
            figures["consistency.prompt"] = float(curves["prompt"].mean())
        return Features(figures, curves)

    @torch.inference_mode()
    def _compute(self) -> None:
        networks = self._networks
        frames = rearrange(torch.from_numpy(np.stack(self._waiting)), "b h w c -> b c h w").float()
        self._waiting = []
        frames = frames.to(networks.device)
        if networks.dino is not None:
            pixels = _prepare(frames, networks.dino.config.image_size, IMAGENET, mode="bilinear")
            more = {"interpolate_pos_encoding": True} if networks.dino.config.model_type == "vit" else {}
            states = networks.dino(pixel_values=pixels, **more).last_hidden_state[:, 0]
            self._dino.append(F.normalize(states, dim=-1).cpu())
        if networks.clip is not None:
            side = networks.clip.config.vision_config.image_size
            pixels = _centre(_prepare(frames, side, OPENAI, mode="bicubic"), side)
            states = _features(networks.clip.get_image_features(pixel_values=pixels))
            self._clip.append(F.normalize(states, dim=-1).cpu())

    @torch.inference_mode()
    def _agreement(self, features: Tensor, texts: Sequence[str]) -> np.ndarray:
        different = list(dict.fromkeys(texts))
        networks = self._networks
        longest = min(LONGEST_TEXT, networks.clip.config.text_config.max_position_embeddings)
        tokens = networks.clip_tokenizer(
            different, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(networks.device)
        states = F.normalize(
            _features(networks.clip.get_text_features(tokens.input_ids, tokens.attention_mask)), dim=-1
        ).cpu()
        number = {text: index for index, text in enumerate(different)}
        of_frames = states[[number[text] for text in texts[: len(features)]]]
        return (features * of_frames).sum(dim=-1).numpy().astype(np.float64)


def consistency(features: Tensor) -> float | None:
    """VBench's formula, above. features: (F, d), normalised. None for a single frame."""
    if len(features) < 2:
        return None
    before = (features[1:] * features[:-1]).sum(dim=-1).clamp(min=0)
    first = (features[1:] @ features[0]).clamp(min=0)
    return float(((before + first) / 2).mean())


def consistency_long(features: Tensor, *, fps: float, cuts: Sequence[int] = ()) -> float | None:
    """VBench-Long's: half the mean within clips of two seconds, half that of the clips' first frames.

    Clips do not go across cuts. VBench-Long also maps both to quantiles of its own videos and takes other features for
    the second half; neither is done here. features: (F, d), normalised.
    """
    size = max(2, round(CLIP_SECONDS * fps))
    shots = pairwise(sorted({0, *cuts, len(features)}))
    clips = [
        features[start : min(start + size, stop)]
        for begin, stop in shots
        for start in range(begin, stop, size)
    ]
    within = [value for clip in clips if (value := consistency(clip)) is not None]
    between = consistency(torch.stack([clip[0] for clip in clips]))
    halves = [sum(within) / len(within)] if within else []
    halves += [] if between is None else [between]
    return sum(halves) / len(halves) if halves else None


def _prepare(
    frames: Tensor, side: int, normal: tuple[tuple[float, ...], tuple[float, ...]], *, mode: str
) -> Tensor:
    """Frames (b, 3, h, w) of 0 to 255 with a short side of `side`, normalised, as VBench's transforms do it."""
    height, width = frames.shape[-2:]
    short, long = min(height, width), max(height, width)
    longer = int(side * long / short)
    size = (side, longer) if height <= width else (longer, side)
    frames = F.interpolate(frames, size=size, mode=mode, align_corners=False).round().clamp(0, 255) / 255
    mean, deviation = (frames.new_tensor(values)[:, None, None] for values in normal)
    return (frames - mean) / deviation


def _centre(frames: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in frames.shape[-2:])
    return frames[..., top : top + side, left : left + side]


def _features(output: Any) -> Tensor:
    """Return the features as a tensor: transformers 5 returns an object, 4 a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _architecture(field: str, folder: Path, known: dict[str, str]) -> str:
    """Return the class of transformers for the weights in a folder. Raises WeightsError for any other network."""
    load_extra("transformers", field=field, value=folder)
    what = " or ".join(known)
    remedy = (
        f"name a folder of a {what} model in transformers' layout, with config.json and model.safetensors"
    )
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else missing_problem(folder)
        raise WeightsError(field, folder, remedy, problem=problem)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        problem = f"has no readable config.json ({one_line(error)})"
        raise WeightsError(field, folder, remedy, problem=problem) from None
    if kind not in known:
        raise WeightsError(field, folder, remedy, problem=f"holds a model of the type {kind}, not {what}")
    return known[kind]


def _load(field: str, folder: Path, kind: str) -> Any:
    transformers = load_extra("transformers", field=field, value=folder)
    remedy = "fetch it again"
    # what is amiss is said in one line below
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with _weights_errors(field, folder, remedy):
        model, found = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    # the pooler is not used, and DINO's weights have none
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        problem = f"lacks weights of this architecture, such as {missing[0]}"
        raise WeightsError(field, folder, remedy, problem=problem)
    return model.eval()


@contextlib.contextmanager
def _weights_errors(field: str, folder: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        problem = f"cannot be loaded ({one_line(error)[:200]})"
        raise WeightsError(field, folder, remedy, problem=problem) from None
