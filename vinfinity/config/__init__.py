"""The settings of a run: what they are, where their values come from, and what is written about them.

A RunConfig that exists is usable: its values have the declared types and ranges. Whatever is not raises InputError,
one line that names the setting, its value, where that came from, and the remedy.

schema     what a setting declares, and the checks that follow from it
settings   every setting, declared once
yaml       YAML with decimal numbers, in which every text is kept
sources    defaults, the model's card, YAML, key=value and flags merged into a configuration
formats    containers and codecs of videos, by the ending of a name
text       a configuration as YAML, the digest of the latents, explanations
"""

from vinfinity.config.formats import PixelFormat, Preset, VideoFormat, choose_format
from vinfinity.config.prompts import Prompt
from vinfinity.config.schema import Declared, Group, Setting, plain_text
from vinfinity.config.settings import (
    AttentionConfig,
    CheckpointConfig,
    ComputeConfig,
    DecodeConfig,
    Device,
    Dtype,
    EditConfig,
    FirstPassConfig,
    Fit,
    InputConfig,
    Memory,
    ParallelConfig,
    Phase,
    ReuseConfig,
    RunConfig,
    Sampler,
    VideoConfig,
    check_suffix,
    declared,
    parse_interval,
    parse_size,
    require_prompt,
    timed_prompts,
)
from vinfinity.config.sources import Layer, Resolved, leaves, load, name_sources, parse_yaml, read_row
from vinfinity.config.text import changes_latents, digest, explain, to_yaml

__all__ = [
    "AttentionConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "Declared",
    "DecodeConfig",
    "Device",
    "Dtype",
    "EditConfig",
    "FirstPassConfig",
    "Fit",
    "Group",
    "InputConfig",
    "Layer",
    "Memory",
    "ParallelConfig",
    "Phase",
    "PixelFormat",
    "Preset",
    "Prompt",
    "Resolved",
    "ReuseConfig",
    "RunConfig",
    "Sampler",
    "Setting",
    "VideoConfig",
    "VideoFormat",
    "changes_latents",
    "check_suffix",
    "choose_format",
    "declared",
    "digest",
    "explain",
    "leaves",
    "load",
    "name_sources",
    "parse_interval",
    "parse_size",
    "parse_yaml",
    "plain_text",
    "read_row",
    "require_prompt",
    "timed_prompts",
    "to_yaml",
]
