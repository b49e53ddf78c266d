"""This family's published models: where they are, their size and licence, and how they are assembled.

This project's tests neither fetch nor load them (docs/guides/models.md). No revision is pinned: the first fetch takes
"main" and records its commit.
"""

from collections.abc import Mapping

from vinfinity.models.family import HubSource, PublishedModel

# ModelScope text-to-video, whose architecture the others share: everything that differs from the defaults of
# UNetConfig, VAEConfig and TextConfig. With this, a run can be planned before its model is fetched.
COMMON_FILES: Mapping[str, Mapping[str, object]] = {
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

# VideoCrafter2 as its authors train and sample it (configs/inference_t2v_512_v2.0.yaml, scripts/run_text2video.sh).
VIDEOCRAFTER2_SCHEDULE: Mapping[str, object] = {
    **COMMON_FILES["scheduler"],
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
VIDEOCRAFTER2_CARD: Mapping[str, object] = {
    "trained_frames": 16,
    "size": "512x320",
    "fps": 24,
    "steps": 50,
    "guidance": 12.0,
}

# T2V-Turbo as its authors sample it (predict.py, pipeline/t2v_turbo_vc2_pipeline.py, scheduler/t2v_turbo_scheduler.py
# of Ji4chenLi/t2v-turbo).
TURBO_GUIDANCE_WIDTH = 256
TURBO_SCHEDULE: Mapping[str, object] = {
    "_class_name": "LCMScheduler",
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "even_skips": True,
}
TURBO_CARD: Mapping[str, object] = {"steps": 4, "guidance": 7.5, "sampler": "lcm", "fps": 16}


PUBLISHED: Mapping[str, PublishedModel] = {
    "modelscope": PublishedModel(
        source=HubSource("ali-vilab/text-to-video-ms-1.7b"),
        about="ModelScope text-to-video, 256x256",
        gigabytes=3.8,
        licence="CC-BY-NC-4.0",
        card={"trained_frames": 16, "size": "256x256", "fps": 8, "steps": 50, "guidance": 9.0},
    ),
    "zeroscope": PublishedModel(
        source=HubSource("cerspense/zeroscope_v2_576w"),
        about="Zeroscope v2, 576x320, without watermark",
        gigabytes=3.8,
        licence="CC-BY-NC-4.0",
        card={"trained_frames": 24, "size": "576x320", "fps": 8, "steps": 40, "guidance": 9.0},
    ),
    "zeroscope-xl": PublishedModel(
        source=HubSource("cerspense/zeroscope_v2_XL"),
        about="Zeroscope v2 XL, 1024x576, for the second of two passes",
        gigabytes=3.8,
        licence="CC-BY-NC-4.0",
        card={"trained_frames": 24, "size": "1024x576", "fps": 8, "steps": 40, "guidance": 9.0},
    ),
    "videocrafter2": PublishedModel(
        source=HubSource("adamdad/videocrafterv2_diffusers"),
        about="VideoCrafter2, 512x320, with Zeroscope's text encoder and autoencoder",
        gigabytes=3.9,
        licence="see its page",
        complete_from="zeroscope",
        card={**VIDEOCRAFTER2_CARD, "sampler": "videocrafter2"},
        files={"unet": {"fps_cond": True}},
    ),
    "t2v-turbo-vc2": PublishedModel(
        source=HubSource("jiachenli-ucsb/T2V-Turbo-VC2", only="unet_lora.pt"),
        about="T2V-Turbo over VideoCrafter2: 4 to 8 steps",
        gigabytes=3.9,
        licence="see its page",
        complete_from="videocrafter2",
        files={
            "unet": {"fps_cond": True, "time_cond_proj_dim": TURBO_GUIDANCE_WIDTH},
            "scheduler": TURBO_SCHEDULE,
            "card": {"trained_frames": 16, "size": "512x320", **TURBO_CARD},
        },
    ),
}
