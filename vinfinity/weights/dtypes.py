"""The types of tensors, and their names in safetensors files and settings."""

import torch

from vinfinity.models.family import Half

# By the name in a safetensors header.
TORCH_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
HEADER_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH_TYPES.items()}

# The supported types of weights.
WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")

# By the value of the setting `dtype`, except "auto".
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def depends_on_shapes(dtype: torch.dtype, device_type: str) -> bool:
    """Return whether the last bits of a frame depend on the batch that it is computed in (see parallel/groups.py).

    Not in fp32 on the CPU, where every layer uses kernels whose results do not (docs/decisions/0011).
    """
    return device_type == "cuda" or dtype != torch.float32


def pick_dtype(setting: str, device: torch.device, *, half: Half = "fp16") -> torch.dtype:
    """Return the type of the weights and of the network's arithmetic; "auto" is `half` on a GPU and fp32 on the CPU."""
    return DTYPES[(half if device.type == "cuda" else "fp32") if setting == "auto" else setting]


def emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a device lacks instructions for a type. False if torch does not report it.

    On a CPU, products then take 20 to 60 times as long as in fp32. NVIDIA's GPUs have bf16 from compute capability 8.0
    on; on older ones, torch has no convolutions in it, nor attention that does not store all scores.
    """
    if device.type == "cuda":
        if dtype != torch.bfloat16 or torch.version.hip is not None:
            return False
        # torch.cuda.is_bf16_supported is True for emulation as well
        return torch.cuda.get_device_capability(device)[0] < 8
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type != "cpu" or dtype not in checks:
        return False
    check = getattr(torch.ops.mkldnn, checks[dtype], None)
    return check is not None and not check()
