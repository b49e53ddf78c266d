"""This family's published models: where they are, their size and licence.

This project's tests neither fetch nor load them (docs/guides/models.md). "main" stands for the commit that the first
fetch finds and records.
"""

from collections.abc import Mapping

from vinfinity.models.family import HubSource, PublishedModel

# Wan 2.1 text-to-video, 14B: everything that differs from the defaults of TransformerConfig, WanVAEConfig and
# UMT5Config. With this, a run can be planned before its model is fetched.
COMMON_FILES: Mapping[str, Mapping[str, object]] = {
    "transformer": {"_class_name": "WanTransformer3DModel"},
    "vae": {"_class_name": "AutoencoderKLWan", "scale_factor_temporal": 4, "scale_factor_spatial": 8},
    "text_encoder": {"model_type": "umt5"},
    "scheduler": {
        "_class_name": "UniPCMultistepScheduler",
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "flow_shift": 3.0,
        "solver_order": 2,
        "solver_type": "bh2",
    },
}
# How the transformer of the 1.3B model differs.
CONFIG_1_3B: Mapping[str, object] = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
# As the authors' generate.py (Wan-Video/Wan2.1) samples text to video at 480p. The shift is 5 there; folders in
# diffusers' layout have the value above.
CARD: Mapping[str, object] = {
    "trained_frames": 81,
    "size": "832x480",
    "fps": 16,
    "steps": 50,
    "guidance": 5.0,
    "sampler": "unipc",
}

PUBLISHED: Mapping[str, PublishedModel] = {
    "wan2.1-1.3b": PublishedModel(
        source=HubSource("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        about="Wan 2.1 text-to-video, 1.3B, 832x480, 81 frames",
        gigabytes=29.0,
        licence="Apache-2.0",
        card=CARD,
        files={"transformer": CONFIG_1_3B},
    ),
    "wan2.1-14b": PublishedModel(
        source=HubSource("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        about="Wan 2.1 text-to-video, 14B, 832x480 to 1280x720, 81 frames",
        gigabytes=80.0,
        licence="Apache-2.0",
        card=CARD,
    ),
}
