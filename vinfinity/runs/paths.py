"""The files that a run reads and writes, checked before it starts: a bad name must not cost an hour of computation."""

import os
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vinfinity.config import RunConfig, VideoFormat
from vinfinity.errors import InputError
from vinfinity.media.audio import check_audio
from vinfinity.media.encoders import check_encoders
from vinfinity.media.finish import PICTURES
from vinfinity.runs.folder import LONGEST_PATH, OWN_NAMES, RunFolder, run_folder
from vinfinity.system.files import TEMPORARY, missing_problem
from vinfinity.system.folders import check_working_directory, expanded
from vinfinity.system.output import check_folder, check_output, check_output_folder
from vinfinity.system.safetensors import read_header
from vinfinity.weights.card import check_headers, read_card
from vinfinity.weights.named_files import LORA_FILES, check_lora, split_weight

# maximum length of a file name derived from a prompt, in characters
LONGEST_SLUG = 60


@dataclass(frozen=True)
class Destination:
    """The files that a run writes.

    video: the video, or the folder of a video as PNG. sheet: the contact sheet, or None. latents: a copy of the final
    latents, or None.
    """

    video: Path
    format: VideoFormat
    sheet: Path | None
    latents: Path | None

    @classmethod
    def of(cls, config: RunConfig) -> "Destination":
        """Return the files of a run. The video is `out`, or is named after the prompt, in the working directory."""
        video, latents = Path(f"{slug(config.first_text)}.mp4"), None
        if config.out is not None:
            video = expanded(config.out, field="out")
        if config.save_latents is not None:
            latents = expanded(config.save_latents, field="save_latents")
        sheet = sheet_of(video, is_folder=config.format.container.is_folder) if config.video.sheet else None
        return cls(video, config.format, sheet, latents)

    def beside(self, folder: RunFolder, *, overwrite: bool) -> "Destination":
        """Return the files to write when the run in `folder` is decoded again: an existing contact sheet is kept."""
        keeps = self.sheet is not None and self.sheet.exists() and _same(self.folder.path, folder.path)
        return replace(self, sheet=None) if keeps and not overwrite else self

    @property
    def folder(self) -> RunFolder:
        """NAME.run beside NAME.mp4."""
        return run_folder(self.video, is_folder=self.format.container.is_folder)


def sheet_of(video: Path, *, is_folder: bool) -> Path:
    """Return the contact sheet of a video: NAME.png beside NAME.mp4 or the folder NAME."""
    return video.with_name(f"{video.name}.png") if is_folder else video.with_suffix(".png")


def slug(prompt: str) -> str:
    """Return a file name without extension for a prompt: letters and digits of any script, joined by hyphens."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    words = re.findall(r"[^\W_]+", text)
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer) > LONGEST_SLUG:
            break
        name = longer
    return name or (words[0][:LONGEST_SLUG] if words else "video")


def check_files(
    config: RunConfig,
    destination: Destination,
    *,
    overwrite: bool,
    own: Collection[str] | None = None,
    denoise: bool = True,
) -> None:
    """Raise InputError if an input file does not exist, or an output file cannot be written. Creates nothing.

    overwrite: accept output files that exist. own: real paths of the files that a resumed run may replace, None for a
    new run. denoise: see `check_inputs`.
    """
    check_encoders(destination.format)
    other, no_sheet = "choose another name", "set video.sheet=false"
    # `vinfinity resume` has no --overwrite, and its video has the name of the run
    rename, way = (other, "add --overwrite") if own is None else ("move it", "add overwrite=true")

    def may_replace(path: Path) -> bool:
        return overwrite or (own is not None and os.path.realpath(path) in own)

    video, sheet, latents = destination.video, destination.sheet, destination.latents
    _check_no_input(config, "out", video, remedy=other)
    if destination.format.container.is_folder:
        check_output_folder(
            "out", video, overwrite=may_replace(video), own=PICTURES, remedy=f"{rename} or {way}"
        )
    else:
        check_output("out", video, overwrite=may_replace(video), remedy=f"{rename} or {way}")
    if sheet is not None:
        _check_no_input(config, "out", sheet, remedy=f"{other} or {no_sheet}")
        check_output("out", sheet, overwrite=may_replace(sheet), remedy=f"{rename}, {way} or {no_sheet}")
    _check_run_folder(config, destination)
    if latents is not None:
        _check_no_input(config, "save_latents", latents, remedy=other)
        check_output("save_latents", latents, overwrite=may_replace(latents), remedy=f"{other} or {way}")
        _check_latents(destination, latents)
    check_inputs(config, denoise=denoise)


def _check_run_folder(config: RunConfig, destination: Destination) -> None:
    """Raise InputError if the run folder cannot be created, or is the folder of the run being edited."""
    folder, video = destination.folder, destination.video
    check_folder("out", folder.path, inside=LONGEST_PATH)
    if config.edit.run is not None and _same(expanded(config.edit.run, field="edit.run"), folder.path):
        problem = "is the video of the run being edited"
        raise InputError("out", video, "choose another name", problem=problem)


def check_emptied(destination: Destination) -> None:
    """Raise InputError if the run folder, which a new run empties, contains files that no run wrote."""
    folder = destination.folder.path
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    foreign = [name for name in names if name not in OWN_NAMES and not name.startswith(TEMPORARY)]
    if foreign:
        problem = f"needs the folder {folder}, which holds other files, such as {foreign[0]}"
        raise InputError("out", destination.video, "move them, or choose another name", problem=problem)


def _check_no_input(config: RunConfig, field: str, path: Path, *, remedy: str) -> None:
    """Raise InputError if an output file or folder is, or contains, a file that the run reads."""
    named = {
        "input.video": config.input.video,
        **config.input.pictures,
        "audio": config.audio,
        "noise_from": config.noise_from,
    }
    check_working_directory()
    files = [(name, expanded(text, field=name)) for name, text in named.items() if text is not None]
    for text in (*config.lora, *(config.first_pass.lora or ())):
        lora = split_weight(text)[0]
        files += [("lora", file) for file in (lora, *(lora / name for name in LORA_FILES))]
    output = Path(os.path.realpath(path))
    for name, file in files:
        source = Path(os.path.realpath(file))
        if output in (source, *source.parents):
            verb = "is" if output == source else "contains"
            raise InputError(field, path, remedy, problem=f"{verb} the file that {name} names")


def _check_latents(destination: Destination, latents: Path) -> None:
    remedy = "choose another name for the latents"
    if any(_same(parent, destination.folder.path) for parent in latents.parents):
        raise InputError("save_latents", latents, remedy, problem="lies in the run folder")


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def check_config_audio(config: RunConfig) -> Fraction | None:
    """Return the length of a video's audio in seconds; None if there is none, or the file does not state it.

    Raises InputError if the file has no audio.
    """
    if config.audio_source is None:
        return None
    field, path = config.audio_source
    file = expanded(path, field=field)
    if field == "audio":
        return check_audio(file)
    return check_audio(file, field=field, other="remove --keep-audio")


def check_inputs(config: RunConfig, *, denoise: bool = True) -> None:
    """Raise InputError if a file that `config` names does not exist, cannot be read, or has a damaged header.

    denoise: whether latents are computed; if latents already exist, their inputs may be gone.
    """
    decoder = None if config.decoder is None else expanded(config.decoder, field="decoder")
    if decoder is not None and not os.path.isdir(decoder):
        remedy = "name the folder with its config.json and its weights"
        problem = missing_problem(decoder, "is not a folder")
        raise InputError("decoder", config.decoder, remedy, problem=problem)
    check_config_audio(config)
    check_headers(read_card(config.model))
    if not denoise:
        return
    if config.noise_from is not None:
        noise = expanded(config.noise_from, field="noise_from")
        if not os.path.isfile(noise):
            problem = "is not a file" if os.path.exists(noise) else missing_problem(noise)
            raise InputError("noise_from", noise, "check the path", problem=problem)
        if not os.access(noise, os.R_OK):
            raise InputError("noise_from", noise, "check its permissions", problem="cannot be read")
        read_header(noise, field="noise_from")
    for text in config.lora:
        check_lora(text)
    if config.edit.run is not None:
        _check_earlier(expanded(config.edit.run, field="edit.run"))


def _check_earlier(folder: Path) -> None:
    """Raise InputError if a folder is not the folder of a run with final latents."""
    if not os.path.isdir(folder):
        problem = "is not a folder" if os.path.exists(folder) else missing_problem(folder)
        raise InputError("edit.run", folder, "name the folder of a finished run", problem=problem)
    if not RunFolder(folder).has_latents():
        raise RunFolder(folder).no_latents(field="edit.run")
