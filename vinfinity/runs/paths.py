"""What a run reads and writes, checked before it starts: a bad name must not cost an hour of computing."""

import os
import re
import unicodedata
from pathlib import Path

from vinfinity.config import RunConfig
from vinfinity.errors import InputError

LONGEST_SLUG = 60  # characters of a file name made from a prompt


def output_path(config: RunConfig) -> Path:
    """Where the MP4 goes: `out`, or a name made from the prompt, in the working directory."""
    return Path(config.out).expanduser() if config.out is not None else Path(f"{slug(config.prompt)}.mp4")


def sheet_path(config: RunConfig) -> Path | None:
    """Where the contact sheet goes, beside the MP4; None where there is to be none."""
    return output_path(config).with_suffix(".png") if config.video.sheet else None


def slug(prompt: str) -> str:
    """A file name without suffix made from a prompt: letters and digits of any script, joined by hyphens."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    words = re.findall(r"[^\W_]+", text)
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer) > LONGEST_SLUG:
            break
        name = longer
    return name or (words[0][:LONGEST_SLUG] if words else "video")


def check_files(config: RunConfig) -> None:
    """Raises InputError where a file that is read is not there, or one that is written cannot be.

    Files that exist are refused unless `overwrite` is set, or a run is to go on, which may have made them. Nothing is
    created.
    """
    overwrite = config.overwrite or config.resume
    out = output_path(config)
    if out.suffix.lower() != ".mp4":
        raise InputError(
            "out", out, f"name it {out.with_suffix('.mp4').name}", problem="does not end in .mp4"
        )
    _check_writable("out", out, overwrite=overwrite)
    sheet = sheet_path(config)
    if sheet is not None:
        _check_writable("out", sheet, overwrite=overwrite)
    if config.save_latents is not None:
        latents = Path(config.save_latents).expanduser()
        _check_safetensors("save_latents", latents)
        _check_writable("save_latents", latents, overwrite=overwrite)
    if config.decoder is not None and not Path(config.decoder).expanduser().is_dir():
        remedy = "give the folder that holds its config.json and its weights"
        raise InputError("decoder", config.decoder, remedy, problem="is no folder")
    if config.noise_from is not None:
        noise = Path(config.noise_from).expanduser()
        _check_safetensors("noise_from", noise)
        if not noise.is_file():
            raise InputError("noise_from", noise, "check the path", problem="is no file")
        if not os.access(noise, os.R_OK):
            raise InputError("noise_from", noise, "check its permissions", problem="cannot be read")
        if config.save_latents is not None and noise.resolve() == latents.resolve():
            raise InputError(
                "save_latents",
                latents,
                "give the latents another name",
                problem="is the file that noise is read from",
            )


def _check_safetensors(field: str, path: Path) -> None:
    if path.suffix != ".safetensors":
        raise InputError(
            field, path, "name a file in safetensors format", problem="does not end in .safetensors"
        )


def _check_writable(field: str, path: Path, *, overwrite: bool) -> None:
    try:
        if path.is_dir():
            raise InputError(field, path, "name a file inside it", problem="is a folder")
        if path.exists() and not overwrite:
            raise InputError(field, path, "choose another name or add --overwrite", problem="exists already")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
    except OSError as error:
        raise InputError(
            field, path, "choose another name", problem=f"is not usable ({error.strerror})"
        ) from error
    if not folder.is_dir():
        raise InputError(field, path, "choose another folder", problem=f"lies in {folder}, which is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            field,
            path,
            "choose another folder or change its permissions",
            problem=f"cannot be written in {folder}",
        )
