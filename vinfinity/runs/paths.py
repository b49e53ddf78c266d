"""The files that a run reads and writes, checked before it starts: a bad name must not cost an hour of computing."""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from vinfinity.config import RunConfig
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder, run_folder
from vinfinity.system.files import missing_problem
from vinfinity.system.folders import check_working_directory, expanded

# characters of a file name derived from a prompt
LONGEST_SLUG = 60


@dataclass(frozen=True)
class Destination:
    """The files that a run writes. sheet: contact sheet, or None. latents: copy of the final latents, or None."""

    video: Path
    sheet: Path | None
    latents: Path | None

    @classmethod
    def of(cls, config: RunConfig) -> "Destination":
        """The MP4 is `out`, or is named after the prompt, in the working directory; the sheet lies beside it."""
        video, latents = Path(f"{slug(config.prompt)}.mp4"), None
        if config.out is not None:
            video = expanded(config.out, field="out")
        if config.save_latents is not None:
            latents = expanded(config.save_latents, field="save_latents")
        return cls(video, video.with_suffix(".png") if config.video.sheet else None, latents)

    @property
    def folder(self) -> RunFolder:
        """NAME.run beside NAME.mp4."""
        return run_folder(self.video)


def slug(prompt: str) -> str:
    """A file name without suffix, derived from a prompt: letters and digits of any script, joined by hyphens."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    words = re.findall(r"[^\W_]+", text)
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer) > LONGEST_SLUG:
            break
        name = longer
    return name or (words[0][:LONGEST_SLUG] if words else "video")


def check_files(config: RunConfig, destination: Destination, *, overwrite: bool) -> None:
    """Raise InputError if an input file does not exist, or an output file cannot be written. Creates nothing.

    overwrite: accept output files that exist.
    """
    video, latents = destination.video, destination.latents
    if video.suffix.lower() != ".mp4":
        remedy = f"name it {video.with_suffix('.mp4').name}"
        raise InputError("out", video, remedy, problem="does not end in .mp4")
    _check_writable("out", video, overwrite=overwrite)
    if destination.sheet is not None:
        _check_writable("out", destination.sheet, overwrite=overwrite)
    if latents is not None:
        _check_safetensors("save_latents", latents)
        _check_writable("save_latents", latents, overwrite=overwrite)
    check_inputs(config)
    noise = config.noise_from
    if (
        latents is not None
        and noise is not None
        and expanded(noise, field="noise_from").resolve() == latents.resolve()
    ):
        remedy = "give the latents another name"
        raise InputError("save_latents", latents, remedy, problem="is the file that noise is read from")


def check_inputs(config: RunConfig) -> None:
    """Raise InputError if a file that `config` names does not exist or cannot be read."""
    if config.decoder is not None and not (decoder := expanded(config.decoder, field="decoder")).is_dir():
        remedy = "give the folder with its config.json and its weights"
        problem = missing_problem(decoder, "is not a folder")
        raise InputError("decoder", config.decoder, remedy, problem=problem)
    if config.noise_from is not None:
        noise = expanded(config.noise_from, field="noise_from")
        _check_safetensors("noise_from", noise)
        if not noise.is_file():
            raise InputError("noise_from", noise, "check the path", problem=missing_problem(noise))
        if not os.access(noise, os.R_OK):
            raise InputError("noise_from", noise, "check its permissions", problem="cannot be read")


def _check_safetensors(field: str, path: Path) -> None:
    if path.suffix != ".safetensors":
        remedy = "name a file in safetensors format"
        raise InputError(field, path, remedy, problem="does not end in .safetensors")


def _check_writable(field: str, path: Path, *, overwrite: bool) -> None:
    check_working_directory()
    try:
        if path.is_dir():
            raise InputError(field, path, "name a file inside it", problem="is a folder")
        if path.exists() and not overwrite:
            raise InputError(field, path, "choose another name or add --overwrite", problem="already exists")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
    except OSError as error:
        problem = f"cannot be used ({error.strerror})"
        raise InputError(field, path, "choose another name", problem=problem) from error
    if not folder.is_dir():
        raise InputError(field, path, "choose another folder", problem=f"lies in {folder}, which is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "choose another folder or change its permissions"
        raise InputError(field, path, remedy, problem=f"lies in {folder}, which is not writable")
