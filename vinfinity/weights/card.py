"""What a model is, read from the JSON files of its folder: family, geometry, trained length, suitable settings.

Reading a card loads no torch and takes milliseconds, since settings are checked against it.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vinfinity.errors import InputError, WeightsError, did_you_mean
from vinfinity.models.families import FAMILIES, family_of, published_family
from vinfinity.models.family import SCHEDULER, Family, Traits, parts_of
from vinfinity.models.geometry import LatentGeometry
from vinfinity.system.files import missing_problem, tree_files
from vinfinity.system.folders import expanded
from vinfinity.system.safetensors import read_json
from vinfinity.weights.part_files import find_weights
from vinfinity.weights.registry import PUBLISHED, local_models, models_folder, published_files

# Folders of the models that are part of the package.
EMBEDDED = Path(__file__).parent.parent / "assets"

# Bytes per sample, and number of samples, in the digest of a weight file.
SAMPLE_BYTES, SAMPLES = 65536, 64


@dataclass(frozen=True)
class ModelCard:
    """A model in diffusers' layout.

    trained_frames: the length of its training clips; videos up to that length are the base model's own. defaults:
    settings that the model supplies. configs: the architectures of its networks, by part. schedule: the parsed
    scheduler_config.json. vocabulary: the words it was trained on, by group, for models with a closed vocabulary; empty
    for the others. published: whether the card describes a published model that has not been fetched yet.
    """

    name: str
    folder: Path
    family: Family
    traits: Traits
    trained_frames: int
    defaults: Mapping[str, object]
    configs: Mapping[str, Any]
    schedule: Mapping[str, Any]
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: bool = False

    @property
    def geometry(self) -> LatentGeometry:
        """The grid of its latents."""
        return self.traits.geometry

    @property
    def text_length(self) -> int:
        """The number of tokens that its text encoder takes."""
        return self.traits.text_length

    @property
    def distilled(self) -> bool:
        """Whether it takes the guidance weight as an input, and needs no second prediction."""
        return self.traits.denoiser.guidance_width is not None

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of `text` that the model was not trained on, in order; none if its vocabulary is open."""
        known = {
            word for group in self.vocabulary.values() for entry in group for word in entry.lower().split()
        }
        words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())
        return [word for word in dict.fromkeys(words) if known and word not in known]


def find_model(model: str) -> Path:
    """Return the folder of a model, given by name ("mini", or a fetched model) or as a path. Raises InputError."""
    embedded = {path.name: path for path in EMBEDDED.iterdir() if path.is_dir()}
    available = {path.name: path for path in local_models()} | embedded
    if model in available:
        return available[model]
    folder = expanded(model, field="model")
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        remedy = "use a model folder; vinfinity models convert makes one from a weight file"
        raise InputError("model", model, remedy, problem="is a file")
    if os.path.islink(folder):
        remedy = "restore the target of the link, or link it again"
        raise InputError("model", model, remedy, problem=missing_problem(folder))
    if model in PUBLISHED:
        remedy = f"run vinfinity models fetch {model}"
        raise InputError("model", model, remedy, problem="has not been fetched yet")
    names = sorted({*available, *PUBLISHED})
    hint = did_you_mean(model, names)
    remedy = f"use {', '.join(names)}, or the folder of a model in diffusers' layout"
    raise InputError(
        "model", model, f"{hint} {remedy}".strip(), problem="is neither a known model nor a folder"
    )


def model_family(folder: Path, *, field: str = "model") -> Family:
    """Return the family of the model in a folder that `field` names. Raises InputError if it has no denoiser."""
    family = family_of(folder)
    if family is None:
        remedy = "use a model folder; vinfinity models convert makes one from other layouts"
        problem = f"has no {' or '.join(known.denoiser for known in FAMILIES)}"
        raise InputError(field, folder, remedy, problem=problem)
    return family


@cache
def read_card(model: str) -> ModelCard:
    """Return the card of a model. Raises InputError if its folder is not a complete model of a supported kind."""
    folder = find_model(model)
    family = model_family(folder)
    parts = parts_of(family)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        if (folder / missing[0]).is_symlink():
            problem = missing_problem(folder / missing[0])
            remedy = "restore the target of the link, or link it again"
            raise WeightsError("model", folder / missing[0], remedy, problem=problem)
        remedy = (
            f"a model folder has {', '.join(parts)}; vinfinity models convert adds parts from another model"
        )
        raise InputError("model", folder, remedy, problem=f"has no {missing[0]}")
    files = {part: read_json(folder / part / "config.json") for part in family.networks}
    files[SCHEDULER] = read_json(folder / SCHEDULER / "scheduler_config.json")
    return _card(folder, family, own_card(folder), files)


def own_card(folder: Path) -> dict[str, Any]:
    """Return the content of a model's card.json, empty if there is none. Raises WeightsError."""
    path = folder / "card.json"
    return read_json(path) if path.exists() or path.is_symlink() else {}


@cache
def planned_card(model: str) -> ModelCard:
    """Return the card of a model for planning; a published model need not be fetched. Raises InputError."""
    family = published_family(model)
    if (
        family is None
        or model in {path.name for path in local_models()}
        or os.path.isdir(expanded(model, field="model"))
    ):
        return read_card(model)
    files = published_files(model)
    own = files.pop("card")
    return _card(models_folder() / model, family, own, files, published=True)


def _card(
    folder: Path,
    family: Family,
    own: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    *,
    published: bool = False,
) -> ModelCard:
    """Make the card from a model's JSON files. own: its card.json. files: the other files, by part."""
    configs = {}
    for part, network in family.networks.items():
        try:
            configs[part] = network.read_config(files[part])
        except (ValueError, TypeError) as error:
            path = folder / part / "config.json"
            raise WeightsError("model", path, "use a model of a supported kind", problem=f"{error}") from None
    traits = family.traits(configs)
    _check_own(own, folder / "card.json")
    defaults = _defaults(own, family.defaults(configs, files[SCHEDULER]))
    if defaults["sampler"] not in family.samplers:
        problem = f"names the sampler {defaults['sampler']}"
        raise WeightsError(
            "model", folder / "card.json", f"use {', '.join(family.samplers)}", problem=problem
        )
    return ModelCard(
        name=str(own.get("name", folder.name)),
        folder=folder,
        family=family,
        traits=traits,
        trained_frames=int(own.get("trained_frames", family.trained_frames)),
        defaults=defaults,
        configs=configs,
        schedule=files[SCHEDULER],
        vocabulary={str(group): tuple(words) for group, words in own.get("vocabulary", {}).items()},
        published=published,
    )


def check_headers(card: ModelCard) -> None:
    """Raise WeightsError if a weight file is missing or damaged, judging by its header alone.

    Needs no torch: `vinfinity.weights.load` finds all other problems with weights.
    """
    for part, network in card.family.networks.items():
        try:
            find_weights(card.folder / part, network.stem, prefer_fp16=False)
        except WeightsError:
            # a run in half precision may use the other variant
            find_weights(card.folder / part, network.stem, prefer_fp16=True)


def _check_own(own: Mapping[str, Any], path: Path) -> None:
    """Raise WeightsError if values of a card.json that are not settings have the wrong form. path: the file."""
    frames, vocabulary = own.get("trained_frames", 1), own.get("vocabulary", {})
    if type(frames) is not int or frames < 1:
        raise _unusable(path, "trained_frames", frames, "a number of frames, such as 16")
    groups = list(vocabulary.values()) if isinstance(vocabulary, dict) else [None]
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in groups):
        raise _unusable(path, "vocabulary", vocabulary, "lists of words, by group")
    if not isinstance(own.get("attention", {}), dict):
        raise _unusable(path, "attention", own["attention"], 'settings, such as {"local": 8}')


def _unusable(path: Path, key: str, value: object, expected: str) -> WeightsError:
    return WeightsError("model", path, f"use {expected}", problem=f"has {key}: {value}")


def _defaults(own: Mapping[str, Any], general: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that a model supplies: those of its card.json, or else those that follow from its files."""
    given = {"negative": own.get("negative_prompt")} | dict(own)
    chosen = {key: value if given.get(key) is None else given[key] for key, value in general.items()}
    return chosen | {f"attention.{name}": value for name, value in own.get("attention", {}).items()}


def model_defaults(model: str, *, planned: bool = False) -> tuple[dict[str, object], str]:
    """Return the settings that `model` supplies, and the name of their source. planned: see `planned_card`.

    Raises InputError.
    """
    card = planned_card(model) if planned else read_card(model)
    trained = card.geometry.latent_frames(card.trained_frames)
    defaults = dict(card.defaults) | {"attention.trained_frames": trained}
    return defaults, f"model {card.name}"


def weights_digest(folder: Path, *, loras: Sequence[Path] = ()) -> str:
    """Return the SHA-256 (hex) that identifies a version of a model, or of one of its parts, and of its LoRAs.

    It covers every small file in full, and of each weight file the length, the header and samples of the contents:
    reading gigabytes on every rank would take longer than loading them. Links are followed, as when the model is
    loaded. loras: all files of the LoRAs. Raises WeightsError if a file cannot be read.
    """
    try:
        files = tree_files(folder, (".json", ".txt", ".safetensors"))
    except OSError as error:
        raise _unreadable("model", folder, error) from None
    named = [(str(path.relative_to(folder)), path) for path in files]
    return files_digest([*named, *((path.name, path) for path in loras)], field="model")


def files_digest(files: Iterable[tuple[str, Path]], *, field: str) -> str:
    """Return the SHA-256 (hex) of files: their names, lengths and contents, or samples of large contents.

    See `weights_digest`. field: the setting that names the files. Raises WeightsError if one cannot be read.
    """
    total = hashlib.sha256()
    for name, path in files:
        try:
            size = path.stat().st_size
            total.update(f"{name} {size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                    file.seek(start)
                    total.update(file.read(SAMPLE_BYTES))
        except OSError as error:
            raise _unreadable(field, path, error) from None
    return total.hexdigest()


def _unreadable(field: str, path: Path, error: OSError) -> WeightsError:
    problem = f"cannot be read ({error.strerror})"
    return WeightsError(field, error.filename or path, "check its permissions", problem=problem)
