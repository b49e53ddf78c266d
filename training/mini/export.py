"""Write the trained model as half-precision safetensors in the diffusers layout, with its card."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import world
from common import WORK, picture_height
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet3DConditionModel
from temporal import build_scheduler
from transformers import CLIPTextModel

ASSETS = Path("vinfinity/assets/mini")
INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
EXAMPLES = (
    "a red ball bouncing over green grass",
    "a yellow star circling in the starry night",
    "a blue fish moving right over the blue sea",
    "a pink heart swaying in the sandy desert",
    "a green car moving left over white snow",
    "a red boat standing still over the blue sea",
)


def vocabulary() -> dict[str, list[str]]:
    """Return the words that the model was taught, grouped."""
    known = {
        "colours": list(world.COLOURS),
        "subjects": list(world.SUBJECTS),
        "motions": list(world.MOTIONS),
        "backgrounds": list(world.BACKGROUNDS.values()),
    }
    known["others"] = ["a", "an"] + [
        phrase
        for variants in (*world.MOTION_VARIANTS.values(), *world.BACKGROUND_VARIANTS.values())
        for phrase in variants
    ]
    return known


def card(args: argparse.Namespace, height: int, measured: dict[str, object]) -> dict[str, object]:
    """Return what a user and the package need to know of the model."""
    return {
        "name": "mini",
        "about": "a text-to-video latent diffusion model trained from scratch on clips of a drawn world",
        "trained_frames": 16,
        "size": f"{round(height * world.ASPECT)}x{height}",
        "fps": args.fps,
        "steps": args.steps,
        "guidance": args.guidance,
        "negative_prompt": "",
        "sampler": args.sampler,
        "grammar": "a COLOUR SUBJECT MOTION BACKGROUND",
        "vocabulary": vocabulary(),
        "examples": list(EXAMPLES),
        "measured": measured,
    }


def figures(path: Path) -> dict[str, object]:
    """Return the figures in a file that evaluate.py wrote, with the names and digits of the card."""
    record = json.loads(path.read_text())
    names = {"all": "all_four", "steady": "steady_frames"}
    shares = {names.get(name, name): round(share, 3) for name, share in record["figures"].items()}
    return {f"clips_of_{record['options']['frames']}_frames": {"n": shares.pop("n"), **shares}}


def without_paths(path: Path) -> None:
    """Drop from a configuration the folder that it was read from."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Gather the parts, halve their precision, write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument(
        "--run", default="ends-0.998", help="the folder of the models to export [%(default)s]"
    )
    parser.add_argument("--vae", default="vae256", help="the folder of the autoencoder [%(default)s]")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--fps", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument(
        "--sampler", default="sde-dpmsolver++", choices=("ddim", "dpmsolver++", "sde-dpmsolver++")
    )
    parser.add_argument(
        "--measured",
        type=Path,
        help="what evaluate.py wrote of these models, WORK/evaluation.json; the card gets its figures",
    )
    args = parser.parse_args(arguments)
    run = args.work / args.run
    args.out.mkdir(parents=True, exist_ok=True)
    unet = UNet3DConditionModel.from_pretrained(run / "unet")
    unet.to(torch.float16).save_pretrained(args.out / "unet")
    vae = AutoencoderKL.from_pretrained(args.work / args.vae)
    vae.to(torch.float16).save_pretrained(args.out / "vae")
    CLIPTextModel.from_pretrained(run / "text_encoder").to(torch.float16).save_pretrained(
        args.out / "text_encoder"
    )
    shutil.copytree(args.work / "tokenizer", args.out / "tokenizer", dirs_exist_ok=True)
    DPMSolverMultistepScheduler.from_config(build_scheduler().config).save_pretrained(args.out / "scheduler")
    for path in args.out.glob("*/*config.json"):
        without_paths(path)
    (args.out / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    measured = figures(args.measured) if args.measured else {}
    (args.out / "card.json").write_text(
        json.dumps(card(args, picture_height(vae), measured), indent=2) + "\n"
    )
    sizes = {
        str(path.relative_to(args.out)): path.stat().st_size for path in args.out.rglob("*") if path.is_file()
    }
    for name, size in sorted(sizes.items()):
        print(f"{size / 1e6:8.2f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:8.2f} MB in all")


if __name__ == "__main__":
    main()
