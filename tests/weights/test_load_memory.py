"""Loading at full size: VideoCrafter2's UNet and Wan's transformer take little more memory than their weights."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vinfinity.models.families import FAMILIES
from vinfinity.weights.write import write_safetensors

# Elements per shard.
SHARD = 2**28
# Prints the resident memory and its peak; ru_maxrss would include the memory of the parent process.
LOAD = """
import json, re, sys, time
from pathlib import Path
import torch
from vinfinity.models.families import FAMILIES
from vinfinity.weights.load import load_network

def memory(name): return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
before, started = memory("VmRSS"), time.monotonic()
[family] = [family for family in FAMILIES if family.name == sys.argv[2]]
network = family.networks[family.denoiser]
unet = load_network(network, Path(sys.argv[1]), device="cpu", dtype=torch.bfloat16)
size = sum(p.numel() * p.element_size() for p in unet.parameters())
print(json.dumps({"size": size, "taken": memory("VmHWM") - before, "seconds": time.monotonic() - started}))
"""


# The denoisers, by family: their config.json. Both have about 1.42 billion parameters.
CONFIGS: dict[str, dict[str, object]] = {
    "unet3d": {"fps_cond": True},
    "wan": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
}


def write_shards(folder: Path, family: str, dtype: torch.dtype) -> int:
    """Write random weights of a denoiser, shard by shard. Returns the number of parameters."""
    [known] = [known for known in FAMILIES if known.name == family]
    network = known.networks[known.denoiser]
    with torch.device("meta"):
        module = network.build(network.read_config(CONFIGS[family]))
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        if filled + math.prod(shape) > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += math.prod(shape)
    places: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"diffusion_pytorch_model-{index + 1:05}-of-{len(shards):05}.safetensors"
        layout = {name: (dtype, shapes[name]) for name in names}
        write_safetensors(
            folder / file, layout, ((name, torch.empty(shapes[name]).uniform_(-0.1, 0.1)) for name in names)
        )
        places |= dict.fromkeys(names, file)
    index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    return sum(map(math.prod, shapes.values()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux knows of a process")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("family", CONFIGS)
def test_loading_at_full_size_takes_little_more_memory_than_the_weights(
    family: str, dtype: torch.dtype, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    try:
        assert 1.40e9 < write_shards(tmp_path, family, dtype) < 1.43e9
        command = [sys.executable, "-c", LOAD, str(tmp_path), family]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
    finally:
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
    record_worst(f"{family}, peak memory over weights, {dtype} to bfloat16", found["taken"] / found["size"])
    record_worst(f"{family}, seconds to load {found['size'] / 1e9:.2f} GB from {dtype}", found["seconds"])
    assert found["size"] > 2.8e9
    assert found["taken"] <= 1.15 * found["size"]
