"""The networks of a model on one rank: loaded on first use, and kept if several videos use them."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from vinfinity.job import Job
from vinfinity.models.decoder import Decoder, Encoder
from vinfinity.models.family import TEXT_ENCODER
from vinfinity.weights.load import load_decoder, load_encoder, load_network
from vinfinity.weights.lora import open_loras

Network = TypeVar("Network")


class Networks:
    """The text encoder, denoiser, decoder and encoder of jobs on one device.

    several: whether networks stay loaded for later jobs, if memory allows it. At most one of each kind is kept.
    Otherwise each is freed as soon as it is no longer used.
    """

    def __init__(self, device: torch.device, *, several: bool = False) -> None:
        self._device, self.several = device, several
        self._keeps = several
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    def text_encoder(self, job: Job) -> nn.Module:
        """Return the text encoder of a job. Raises WeightsError."""
        load = partial(load_part, job, TEXT_ENCODER, device=self._device, dtype=job.dtype(self._device))
        return self._find("text_encoder", job, load)

    def denoiser(self, job: Job) -> nn.Module:
        """Return the denoising network of a job, compiled if the job asks for it. Raises WeightsError."""
        load = partial(load_denoiser, job, device=self._device, dtype=job.dtype(self._device))
        return self._find("denoiser", job, load)

    def decoder(self, job: Job) -> Decoder:
        """Return the decoder of a job, in fp32. Raises WeightsError."""
        load = partial(load_decoder, job.decoder, device=self._device, dtype=torch.float32)
        return self._find("decoder", job, load)

    def encoder(self, job: Job) -> Encoder:
        """Return the encoder of the model's own autoencoder, in fp32. Raises WeightsError."""
        load = partial(load_encoder, job.encoder, device=self._device, dtype=torch.float32)
        return self._find("encoder", job, load)

    @property
    def bytes(self) -> int:
        """The bytes of the parameters of all networks that are kept."""
        networks = [network for _, network in self._kept.values()]
        return sum(parameter.nbytes for network in networks for parameter in network.parameters())

    def keep(self, job: Job, *, ample: bool) -> None:
        """Decide whether to keep the networks of the next job. ample: whether all of them fit, along with its tensors.

        If memory is scarce, they are freed; each is then loaded when it is needed and freed again, as for a single job.
        Networks that the job does not use are freed in any case: its plan counts their memory as free.
        """
        self._keeps = self.several and ample
        used = self._identities(job)
        if not job.config.encodes:
            del used["encoder"]
        self._kept = {
            name: kept for name, kept in self._kept.items() if self._keeps and used.get(name) == kept[0]
        }

    def _identities(self, job: Job) -> dict[str, Hashable]:
        """Return what tells the loaded networks of a job from those of other jobs."""
        own = job.card.folder, job.weights_digest, job.config.lora, job.dtype(self._device)
        return {
            "text_encoder": own,
            "denoiser": (*own, job.config.compile),
            "decoder": (job.decoder, job.decoder_digest),
            "encoder": (job.encoder, job.weights_digest),
        }

    def _find(self, name: str, job: Job, load: Callable[[], Network]) -> Network:
        """Return a network that is kept, or load it."""
        identity = self._identities(job)[name]
        if name in self._kept and self._kept[name][0] == identity:
            network: Network = self._kept[name][1]
            return network
        # free the memory of the previous one before loading
        self._kept.pop(name, None)
        network = load()
        if self._keeps:
            self._kept[name] = (identity, network)
        return network


def load_part(job: Job, part: str, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Load a network of the job's model by the name of its folder, and merge its LoRAs. Raises WeightsError."""
    card = job.card
    with open_loras(job.loras, part) as changes:
        return load_network(
            card.family.networks[part], card.folder / part, device=device, dtype=dtype, changes=changes
        )


def load_denoiser(job: Job, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Load the denoising network, merge its LoRAs, and compile it if the job asks for it. Raises WeightsError."""
    family = job.card.family
    network = load_part(job, family.denoiser, device=device, dtype=dtype)
    if job.config.compile:
        family.compile(network)
    return network
