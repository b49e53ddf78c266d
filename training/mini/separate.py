"""Teach the text encoder to tell two words apart again, and change nothing else about it.

The image stage makes the text encoder forget words that single frames do not show: left and right. This step moves the
states of captions with the first word by +d and those of captions with the second by -d, from the word onwards, and
keeps all other states where they are. d is the direction to which the denoiser's cross-attention is least sensitive,
so the denoiser behaves as before until further training teaches it what d means.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import world
from common import WORK, Log, cosine
from diffusers import UNet3DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

WORDS = ("left", "right")


def least_used_direction(unet: UNet3DConditionModel) -> Tensor:
    """The unit vector (c,) that keys and values of the cross-attentions respond to least."""
    total: Tensor | None = None
    for name, weight in unet.named_parameters():
        if "attn2.to_k" in name or "attn2.to_v" in name:
            if (
                weight.shape[1] != unet.config.cross_attention_dim
                or "temp" in name
                or "transformer_in" in name
            ):
                continue
            square = weight.detach().float().T @ weight.detach().float()
            square = square / square.trace()
            total = square if total is None else total + square
    assert total is not None
    return torch.linalg.eigh(total).eigenvectors[:, 0]


def targets(ids: Tensor, states: Tensor, twins: Tensor, shift: Tensor, words: tuple[int, int]) -> Tensor:
    """Where the states (b, t, c) should lie. twins: the states of the same captions with the words exchanged."""
    first, second = words
    sign = (ids == first).long().cumsum(1) - (ids == second).long().cumsum(1)
    middle = torch.where(sign[..., None] != 0, (states + twins) / 2, states)
    return middle + sign[..., None] * shift


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument(
        "--model", type=Path, default=Path("vinfinity/assets/mini"), help="the model to start from"
    )
    parser.add_argument("--name", default="separate", help="the run's folder in --work")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--distance", type=float, default=4.0, help="length of the shift; a state's length is 11"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.model / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(args.model / "text_encoder", torch_dtype=torch.float32).train()
    frozen = CLIPTextModel.from_pretrained(args.model / "text_encoder", torch_dtype=torch.float32).eval()
    unet = UNet3DConditionModel.from_pretrained(args.model / "unet", torch_dtype=torch.float32)
    shift = args.distance * least_used_direction(unet)
    first, second = (tokenizer(word).input_ids[1] for word in WORDS)
    log = Log(args.work / f"{args.name}.jsonl")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    rng = np.random.default_rng(31)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * cosine(step / args.steps, floor=0.01)
        captions = [""]
        for _ in range(63):
            scene = world.sample_scene(rng)
            captions.append(world.caption_variant(scene, rng=rng))
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        swapped = torch.where(ids == first, second, torch.where(ids == second, first, ids))
        with torch.no_grad():
            wanted = targets(
                ids,
                frozen(ids).last_hidden_state,
                frozen(swapped).last_hidden_state,
                shift,
                (first, second),
            )
        states = encoder(ids).last_hidden_state
        loss = (states - wanted).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                apart = (states - encoder(swapped).last_hidden_state).norm(dim=-1)
                chosen = ids != swapped
                after = (chosen.cumsum(1) > 0).float()
                moved = ((apart * after).sum() / after.sum()).item()
            log.write(step=step, loss=loss.item(), apart=moved)
    folder = args.work / args.name
    encoder.save_pretrained(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")


if __name__ == "__main__":
    main()
