"""The networks of a model on one rank: loaded when they are needed, and kept where several videos use them."""

from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import nn

from vinfinity.job import Job
from vinfinity.models.decoder import Decoder, Encoder
from vinfinity.models.family import TEXT_ENCODER
from vinfinity.weights.load import load_decoder, load_encoder, load_network
from vinfinity.weights.lora import open_loras


class Networks:
    """The text encoder, denoiser, decoder and encoder of jobs on one device.

    several: whether networks stay loaded for the jobs that follow, where memory allows it. At most one of each kind is
    kept. Otherwise each is freed as soon as its user is done with it.
    """

    def __init__(self, device: torch.device, *, several: bool = False) -> None:
        self._device, self.several = device, several
        self._keeps = several
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    def text_encoder(self, job: Job) -> nn.Module:
        """The text encoder of a job. Raises WeightsError."""
        dtype = self._dtype(job)
        return cast(
            nn.Module,
            self._find(
                "text_encoder",
                job,
                lambda: load_part(job, TEXT_ENCODER, device=self._device, dtype=dtype),
            ),
        )

    def denoiser(self, job: Job) -> nn.Module:
        """The denoising network of a job, compiled if the job asks for it. Raises WeightsError."""
        dtype = self._dtype(job)
        return cast(
            nn.Module,
            self._find(
                "denoiser",
                job,
                lambda: load_denoiser(job, device=self._device, dtype=dtype),
            ),
        )

    def decoder(self, job: Job) -> Decoder:
        """The decoder of a job, in fp32. Raises WeightsError."""
        return cast(
            Decoder,
            self._find(
                "decoder",
                job,
                lambda: load_decoder(job.decoder, device=self._device, dtype=torch.float32),
            ),
        )

    def encoder(self, job: Job) -> Encoder:
        """The encoder of the model's own autoencoder, in fp32. Raises WeightsError."""
        return cast(
            Encoder,
            self._find(
                "encoder",
                job,
                lambda: load_encoder(job.encoder, device=self._device, dtype=torch.float32),
            ),
        )

    @property
    def bytes(self) -> int:
        """Bytes of the parameters of all networks that are kept."""
        networks = [network for _, network in self._kept.values()]
        return sum(parameter.nbytes for network in networks for parameter in network.parameters())

    def keep(self, job: Job, *, ample: bool) -> None:
        """Decide for the next job whether its networks are kept. ample: whether all of them fit beside its tensors.

        Where memory is scarce, they are freed, and each is loaded and freed again in its turn, as for a single job.
        Those that the job does not use are freed in any case: its plan counts their memory as free.
        """
        self._keeps = self.several and ample
        used = self._identities(job)
        if not job.config.encodes:
            del used["encoder"]
        self._kept = {
            name: kept for name, kept in self._kept.items() if self._keeps and used.get(name) == kept[0]
        }

    def _dtype(self, job: Job) -> torch.dtype:
        return job.dtype(self._device)

    def _identities(self, job: Job) -> dict[str, Hashable]:
        """What tells the networks of a job from those of others once they are loaded."""
        own = job.card.folder, job.weights_digest, job.config.lora, self._dtype(job)
        return {
            "text_encoder": own,
            "denoiser": (*own, job.config.compile),
            "decoder": (job.decoder, job.decoder_digest),
            "encoder": (job.encoder, job.weights_digest),
        }

    def _find(self, name: str, job: Job, load: Callable[[], Any]) -> Any:
        identity = self._identities(job)[name]
        if name in self._kept and self._kept[name][0] == identity:
            return self._kept[name][1]
        # the memory of the former one is needed for the new one
        self._kept.pop(name, None)
        network = load()
        if self._keeps:
            self._kept[name] = (identity, network)
        return network


def load_part(job: Job, part: str, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network of the job's model with its LoRAs merged in, by the name of its folder. Raises WeightsError."""
    card = job.card
    with open_loras(job.loras, part) as changes:
        return load_network(
            card.family.networks[part], card.folder / part, device=device, dtype=dtype, changes=changes
        )


def load_denoiser(job: Job, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The denoising network with its LoRAs merged in, compiled if the job asks for it. Raises WeightsError."""
    family = job.card.family
    network = load_part(job, family.denoiser, device=device, dtype=dtype)
    if job.config.compile:
        family.compile(network)
    return network
