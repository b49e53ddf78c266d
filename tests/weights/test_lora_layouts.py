"""Every kind of LoRA file: merged as the library that made it does, or rejected in one line that names what it holds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.lora_files import LAYOUTS, base_states
from torch import Tensor

from vinfinity.models.unet3d.names import text_name
from vinfinity.weights.card import read_card
from vinfinity.weights.load import load_text_encoder, load_unet
from vinfinity.weights.lora import lora_targets, open_loras, read_lora

CLOSE = 1e-5


def loaded(folder: Path, text: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of both networks with a LoRA."""
    lora = read_lora(text, lora_targets(read_card(str(folder))))
    with open_loras([lora], "unet") as changes:
        unet = load_unet(folder / "unet", device="cpu", dtype=torch.float32, changes=changes)
    with open_loras([lora], "text_encoder") as changes:
        text_encoder = load_text_encoder(
            folder / "text_encoder", device="cpu", dtype=torch.float32, changes=changes
        )
    return unet.state_dict(), text_encoder.state_dict()


def worst(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    named = {text_name(name) if name not in ours else name: x for name, x in reference.items()}
    assert ours.keys() == named.keys()
    return max((ours[name] - named[name]).abs().max().item() for name in named)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_as_by_the_library_that_made_it(
    layout: str, model_folder: Path, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    written = LAYOUTS[layout](tmp_path)
    bases = base_states()
    changed = [worst(now, base) for now, base in zip((written.unet, written.text_encoder), bases, strict=True)]
    assert max(changed) > 100 * CLOSE, "the file changes next to nothing"
    networks = loaded(model_folder, written.text)
    error = max(worst(networks[0], written.unet), worst(networks[1], written.text_encoder))
    assert error <= CLOSE
    record_worst(f"LoRA file, {layout}", error)
