"""Published models by name: where they are, how large, under which licence, and how they are put together.

Nothing here was fetched or loaded by this project's tests (docs/models.md); revisions are named where they are known,
and `main` stands for the commit that the first fetch finds and writes down.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A repository on the hub. only: the one file that is needed, None for a model in diffusers' layout."""

    repo: str
    revision: str = "main"
    only: str | None = None


@dataclass(frozen=True)
class KnownModel:
    """A published model.

    source: what is fetched. complete_from: the known model whose other parts it is used with. gigabytes: on disk.
    card: the settings of its authors, for its card.json. published: where its files differ from FAMILY, by part.
    """

    source: Source
    about: str
    gigabytes: float
    licence: str
    complete_from: str | None = None
    card: Mapping[str, object] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


# The files of ModelScope text-to-video, whose architecture the others share, as far as they are not the defaults of
# UNetConfig, VAEConfig and TextConfig: so that a run can be planned before its model is fetched.
FAMILY: Mapping[str, Mapping[str, object]] = {
    "unet": {},
    "vae": {},
    "text_encoder": {},
    "scheduler": {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
}
# T2V-Turbo as its authors sample it (pipeline/t2v_turbo_vc2_pipeline.py, predict.py of Ji4chenLi/t2v-turbo).
GUIDANCE_WIDTH = 256
TURBO_SCHEDULE = {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0}
TURBO_CARD = {"steps": 4, "guidance": 7.5, "sampler": "lcm", "fps": 16}


KNOWN: Mapping[str, KnownModel] = {
    "modelscope": KnownModel(
        source=Source("ali-vilab/text-to-video-ms-1.7b"),
        about="ModelScope text-to-video, 256x256",
        gigabytes=3.8,
        licence="CC-BY-NC-4.0",
        card={"trained_frames": 16, "size": "256x256", "fps": 8, "steps": 50, "guidance": 9.0},
    ),
    "zeroscope": KnownModel(
        source=Source("cerspense/zeroscope_v2_576w"),
        about="Zeroscope v2, 576x320, without watermark",
        gigabytes=3.8,
        licence="CC-BY-NC-4.0",
        card={"trained_frames": 24, "size": "576x320", "fps": 8, "steps": 40, "guidance": 9.0},
    ),
    "videocrafter2": KnownModel(
        source=Source("adamdad/videocrafterv2_diffusers"),
        about="VideoCrafter2, 512x320, with Zeroscope's text encoder and autoencoder",
        gigabytes=3.9,
        licence="see its page",
        complete_from="zeroscope",
        card={
            "trained_frames": 16,
            "size": "512x320",
            "fps": 24,
            "steps": 50,
            "guidance": 12.0,
            "sampler": "videocrafter2",
        },
        published={"unet": {"fps_cond": True}},
    ),
    "t2v-turbo-vc2": KnownModel(
        source=Source("jiachenli-ucsb/T2V-Turbo-VC2", only="unet_lora.pt"),
        about="T2V-Turbo over VideoCrafter2: 4 to 8 steps",
        gigabytes=3.9,
        licence="see its page",
        complete_from="videocrafter2",
        published={
            "unet": {"fps_cond": True, "time_cond_proj_dim": GUIDANCE_WIDTH},
            "scheduler": TURBO_SCHEDULE,
            "card": {"trained_frames": 16, "size": "512x320", **TURBO_CARD},
        },
    ),
}


def published_files(name: str) -> dict[str, dict[str, object]]:
    """The JSON files of a known model by part, and its card, by what was published of it."""
    known = KNOWN[name]
    parts = {part: {**values, **known.published.get(part, {})} for part, values in FAMILY.items()}
    return parts | {"card": {"name": name, **known.card, **known.published.get("card", {})}}


def models_folder() -> Path:
    """Where fetched models are kept: vinfinity/models in the user's data folder."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "vinfinity" / "models"


def local_models() -> list[Path]:
    """The folders of the models that were fetched, in order."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
