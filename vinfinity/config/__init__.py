"""The settings of a run: their declarations, the sources of their values, and their text forms.

Every RunConfig is usable: its values have the declared types and ranges. Anything else raises InputError, whose one
line names the setting, its value, the source of the value, and the remedy.

schema     what a setting declares, and the checks that follow from it
settings   every setting, declared once
prompts    prompts over time, in frames
yaml       YAML with decimal numbers only, in which every text is preserved
sources    merges defaults, the model's card, YAML, key=value arguments and flags into a configuration
formats    containers and codecs of videos, by the ending of a name
text       a configuration as YAML, the digest of its latents, explanations
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
