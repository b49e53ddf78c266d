"""What a model is, read from its folder's JSON files: layout, trained length, and the settings that suit it.

Torch-free and fast, since it is read before any option is checked against the model.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from vinfinity.errors import InputError
from vinfinity.models.geometry import LatentGeometry
from vinfinity.system.safetensors import read_json
from vinfinity.weights.registry import KNOWN, local_models, models_folder, published_files

EMBEDDED = Path(__file__).parent.parent / "assets"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SAMPLE, SAMPLES = 65536, 64  # bytes and number of the samples that tell weight files apart
SAMPLER_OF = {"DDIMScheduler": "ddim", "LCMScheduler": "lcm"}
STEPS_OF = {"ddim": 50, "lcm": 4}  # 25 for the others


@dataclass(frozen=True)
class ModelCard:
    """A model in diffusers' layout.

    trained_frames: the length of the clips it was trained on; videos up to it are the base model's own.
    defaults: configuration keys that the model fills where the user says nothing.
    vocabulary: the words it was taught, by group, for models that know only few; empty for the others.
    pixels: pixels of the picture to one of the latent, on each side. text_length: tokens that its text encoder takes.
    fps_cond: whether it is told a frame rate. guidance_width: of the embedding in which it takes the weight of
    guidance, as distilled models do; None for models that are guided by a second prediction.
    """

    name: str
    folder: Path
    trained_frames: int
    pixels: int
    latent_channels: int
    text_length: int
    fps_cond: bool
    guidance_width: int | None
    defaults: Mapping[str, object]
    files: Mapping[str, Mapping[str, Any]]
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: bool = False

    @property
    def geometry(self) -> LatentGeometry:
        """The grid of its latents."""
        return LatentGeometry(channels=self.latent_channels, downscale=self.pixels)

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that the model was never taught, in order; none for models with an open vocabulary."""
        known = {
            word for group in self.vocabulary.values() for entry in group for word in entry.lower().split()
        }
        words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())
        return [word for word in dict.fromkeys(words) if known and word not in known]


def find_model(model: str) -> Path:
    """The folder of a model given as a name ("mini", or one that was fetched) or a path. Raises InputError."""
    embedded = {path.name: path for path in EMBEDDED.iterdir() if path.is_dir()}
    at_hand = {path.name: path for path in local_models()} | embedded
    if model in at_hand:
        return at_hand[model]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError("model", model, "give the folder that holds model_index.json", problem="is a file")
    if model in KNOWN:
        raise InputError("model", model, f"run vinfinity models fetch {model}", problem="is not here yet")
    names = sorted({*at_hand, *KNOWN})
    close = difflib.get_close_matches(model, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    remedy = f"{hint}use {', '.join(names)}, or the folder of a model in diffusers' layout"
    raise InputError("model", model, remedy, problem="is no known model and no folder")


@cache
def read_card(model: str) -> ModelCard:
    """The card of a model. Raises InputError where its folder is no complete model."""
    folder = find_model(model)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        remedy = (
            f"a model's folder holds {', '.join(PARTS)}; vinfinity models convert completes it from another"
        )
        raise InputError("model", folder, remedy, problem=f"has no {missing[0]}")
    own = read_json(folder / "card.json") if (folder / "card.json").exists() else {}
    files = {part: read_json(folder / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    files["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    return _card(folder, own, files)


@cache
def planned_card(model: str) -> ModelCard:
    """The card of a model to plan by; one that is not here yet has what was published of it. Raises InputError."""
    if model in KNOWN and model not in {path.name for path in local_models()} and not Path(model).is_dir():
        files = published_files(model)
        own = files.pop("card")
        return replace(_card(models_folder() / model, own, files), published=True)
    return read_card(model)


def _card(folder: Path, own: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> ModelCard:
    """The card that a model's JSON files make. own: its card.json."""
    unet, vae = files["unet"], files["vae"]
    pixels = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    return ModelCard(
        name=str(own.get("name", folder.name)),
        folder=folder,
        trained_frames=int(own.get("trained_frames", 16)),
        pixels=pixels,
        latent_channels=int(unet.get("in_channels", 4)),
        text_length=int(files["text_encoder"].get("max_position_embeddings", 77)),
        fps_cond=bool(unet.get("fps_cond")),
        guidance_width=unet.get("time_cond_proj_dim"),
        defaults=_defaults(own, unet, files["scheduler"], pixels),
        files=files,
        vocabulary={str(group): tuple(words) for group, words in own.get("vocabulary", {}).items()},
    )


def _defaults(
    own: Mapping[str, Any], unet: Mapping[str, Any], scheduler: Mapping[str, Any], pixels: int
) -> dict[str, object]:
    """Settings for a model without a card of its own follow its files; those of its card come first."""
    side = unet.get("sample_size") or 32
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    kind = str(scheduler.get("_class_name", ""))
    sampler = SAMPLER_OF.get(kind, "dpmsolver++")
    if scheduler.get("algorithm_type") == "sde-dpmsolver++":
        sampler = "sde-dpmsolver++"
    general = {
        "size": f"{width * pixels}x{height * pixels}",
        "fps": 8,
        "steps": STEPS_OF.get(sampler, 25),
        "sampler": sampler,
        "guidance": 9.0,
        "negative": "",
    }
    renamed = {"negative": own.get("negative_prompt")} | dict(own)
    return {key: renamed[key] if renamed.get(key) is not None else value for key, value in general.items()}


def model_defaults(model: str, *, planned: bool = False) -> tuple[dict[str, object], str]:
    """The configuration keys that `model` fills, and how to name their origin. planned: see `planned_card`.

    Raises InputError.
    """
    card = planned_card(model) if planned else read_card(model)
    defaults = dict(card.defaults) | {"attention.trained_frames": card.trained_frames}
    return defaults, f"model {card.name}"


def weights_digest(folder: Path, *, loras: Sequence[Path] = ()) -> str:
    """SHA-256 (hex) that tells two versions of a model and its LoRAs apart, or of one of its parts: every small file,
    and of each weight file its header, its length and samples of its contents, since reading gigabytes on every rank
    would take longer than loading them.
    """
    total = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt", ".safetensors"))
    names = [str(path.relative_to(folder)) for path in files] + [path.name for path in loras]
    for name, path in zip(names, [*files, *loras], strict=True):
        size = path.stat().st_size
        total.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                file.seek(start)
                total.update(file.read(SAMPLE))
    return total.hexdigest()
