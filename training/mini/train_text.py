"""Give the text encoder a head start: teach it to name colour, subject, motion and background of a caption.

Four linear heads read the attributes from the last hidden state at the end token and at every padding token
after it (the mask is causal, so these have seen the whole caption), and from the mean over all tokens. The
denoiser's cross-attention then has well separated conditions from its first step. The heads are thrown
away.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from common import WORK, Log, cosine
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LABELS = (tuple(world.COLOURS), world.SUBJECTS, world.MOTIONS, tuple(world.BACKGROUNDS))


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            projection_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def labels(scene: world.Scene) -> list[int]:
    """Return the indices of the scene's words in LABELS."""
    words = (scene.colour, scene.subject, scene.motion, scene.background)
    return [group.index(word) for group, word in zip(LABELS, words, strict=True)]


def train(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, steps: int, log: Log) -> None:
    """Train encoder and heads on random captions."""
    rng = np.random.default_rng(21)
    width = encoder.config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, len(group)) for group in LABELS for _ in range(2)])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * cosine(step / steps, floor=0.02)
        scenes = [world.sample_scene(rng) for _ in range(64)]
        captions = [world.caption_variant(scene, rng=rng) for scene in scenes]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        wanted = torch.tensor([labels(scene) for scene in scenes])
        hidden = encoder(ids).last_hidden_state
        after = ids == tokenizer.eos_token_id
        loss, hits = torch.zeros(()), []
        for i in range(len(LABELS)):
            at_end = heads[2 * i](hidden)[after]
            pooled = heads[2 * i + 1](hidden.mean(1))
            repeated = wanted[:, i, None].expand_as(ids)[after]
            loss = loss + F.cross_entropy(at_end, repeated) + F.cross_entropy(pooled, wanted[:, i])
            hits.append((at_end.argmax(-1) == repeated).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step + 1 == steps:
            log.write(
                step=step, loss=loss.item(), colour=hits[0], kind=hits[1], motion=hits[2], background=hits[3]
            )


def main() -> None:
    """Train and save as a transformers model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    encoder = build_text_encoder(tokenizer)
    train(encoder, tokenizer, steps=args.steps, log=Log(args.work / "text.jsonl"))
    encoder.save_pretrained(args.work / "text_encoder")


if __name__ == "__main__":
    main()
