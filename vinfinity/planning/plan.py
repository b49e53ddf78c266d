"""The plan of a run: its memory, disk space, messages, arithmetic and time on a machine."""

from dataclasses import dataclass
from functools import cached_property

import torch

from vinfinity.config import RunConfig
from vinfinity.denoise.state import steady_state
from vinfinity.errors import InputError
from vinfinity.parallel.devices import usable_gpus
from vinfinity.parallel.place import Place
from vinfinity.planning.estimate import Seconds, denoiser_products, exchange_seconds, work_seconds
from vinfinity.planning.fit import choose, refusal
from vinfinity.planning.machines import GPUS, Gpu, find_gpu, free_on_gpus
from vinfinity.planning.memory import Budget, RunMemory
from vinfinity.planning.outline import Outline, outline
from vinfinity.planning.trace import CallWork, call_work
from vinfinity.runs.first_pass import about_first_pass, first_pass, naming_first_pass
from vinfinity.runs.paths import Destination
from vinfinity.system.memory import free_on_host
from vinfinity.system.rank_count import check_rank_count
from vinfinity.weights.card import planned_card

# the usual number of steps of distilled models
FEW_STEPS = 4


@dataclass(frozen=True)
class Plan:
    """The plan of a run on a machine.

    gpu: a name in `GPUS`, None for this machine. memory: what the fastest execution that fits needs, or the leanest if
    none fits. call: the work of the rank with the most frames in one call of the denoising network, for one guidance
    branch. first_pass: the plan of the first of two passes.
    """

    run: Outline
    budget: Budget
    gpu: str | None
    memory: RunMemory
    fits: bool
    call: CallWork
    first_pass: "Plan | None" = None

    @property
    def passes(self) -> list[tuple[str, "Plan"]]:
        """The passes as pairs (name, plan); a single pass has an empty name."""
        return (
            [("", self)]
            if self.first_pass is None
            else [("first pass", self.first_pass), ("second pass", self)]
        )

    @property
    def steps(self) -> int:
        """The number of denoising steps."""
        return len(self.run.sampler.timesteps)

    @property
    def messages_per_step(self) -> int:
        """The number of messages that the rank with the most frames sends in a step."""
        return self.call.messages * (self.run.branches_per_rank // self.memory.execution.branches)

    @property
    def bytes_per_step(self) -> int:
        """The bytes that the rank with the most frames sends in a step."""
        return self.call.bytes * self.run.branches_per_rank

    @property
    def flops_per_step(self) -> int:
        """The floating-point operations of the rank with the most frames in a step."""
        return self.call.counter.flops * self.run.branches_per_rank

    @property
    def flops(self) -> int:
        """The floating-point operations of all ranks in the whole run, including decoding."""
        # call is the work of the rank with the most frames
        clips = self.run.denoised_frames / self.run.call.frames
        denoising = self.call.counter.flops * self.run.branches * clips * self.steps
        return round(denoising) + self.decoding_flops

    @property
    def decoding_flops(self) -> int:
        """The floating-point operations of decoding all frames."""
        return round(self.memory.decoding.work.flops * self._decoded_blocks)

    @property
    def _decoded_blocks(self) -> float:
        return self.run.latent_frames / self.run.blocks.frames

    @property
    def latents_bytes(self) -> int:
        """The size of the file with the final latents, in fp32."""
        c, h, w = self.run.latent_shape
        return self.run.latent_frames * c * h * w * 4

    @property
    def video_bytes(self) -> int:
        """The estimated size of the video file."""
        return self.run.config.format.bytes(self._pixels)

    @property
    def _pixels(self) -> int:
        """The number of pixels in all frames together."""
        width, height = self.run.size
        return self.run.config.frames * width * height

    @property
    def checkpoint_bytes(self) -> int:
        """The size of one checkpoint: the latents, and the estimate of x0 that multistep samplers keep."""
        with torch.device("meta"):
            x = torch.empty(1)
            state = steady_state(self.run.sampler, x)
        return self.latents_bytes * len(state.tensors)

    @property
    def disk_bytes(self) -> int:
        """The peak disk usage: checkpoints while denoising, then the latents, and at the end the video and the frames
        kept while decoding.
        """
        checkpoints = self.run.config.checkpoint
        keep = 0 if checkpoints.every == "never" else checkpoints.keep
        denoising = (keep + (keep > 0)) * self.checkpoint_bytes
        between = keep * self.checkpoint_bytes + self.latents_bytes
        kept = self.run.config.format.encoded.bytes(self._pixels)
        decoding = self.latents_bytes + kept + self.video_bytes
        stays = self.latents_bytes if self.run.config.save_latents else 0
        # the latents of the source video
        stays += self.latents_bytes if self.run.config.starts_from_video else 0
        peak = max(denoising, between, decoding) + stays
        if self.first_pass is None:
            return peak
        return max(
            self.first_pass.disk_bytes, self.first_pass.latents_bytes + self.first_pass.video_bytes + peak
        )

    def seconds(self, gpu: Gpu, *, distilled: bool = False) -> Seconds:
        """Estimate the time on GPUs of one kind. distilled: with four steps and one guidance branch."""
        branches, steps = (1, FEW_STEPS) if distilled else (self.run.branches_per_rank, self.steps)
        at_once = min(self.memory.execution.branches, branches)
        products = denoiser_products(self.run.call.dtype)
        per_call = work_seconds(self.call.counter, gpu, batch=at_once, products=products)
        # see system/precision.py
        block = work_seconds(self.memory.decoding.work, gpu, products="tf32")
        return Seconds(
            denoising=steps * (branches // at_once) * per_call,
            exchange=steps * exchange_seconds(self.call.bytes * branches, gpu),
            decoding=block * self.run.turns.time / self.run.blocks.frames,
            encoding=self._encoding_seconds(gpu),
        )

    def _encoding_seconds(self, gpu: Gpu) -> float:
        """Estimate the time of encoding the source video."""
        if self.memory.encoding is None or not self.run.config.starts_from_video:
            return 0.0
        calls = self.run.latent_frames / self.run.encoded_at_once
        call = work_seconds(self.memory.encoding.work, gpu, products="tf32")
        return call * calls / self.run.encoding_ranks

    @cached_property
    def refusal(self) -> InputError | None:
        """The error for a run that does not fit, with settings that would; None for a run that fits."""
        if self.first_pass is not None and self.first_pass.refusal is not None:
            return about_first_pass(self.first_pass.refusal)
        return None if self.fits else refusal(self.run, self.memory, self.budget)


def make_plan(
    config: RunConfig,
    *,
    gpu: str | None = None,
    device_memory: float | None = None,
    place: Place | None = None,
) -> Plan:
    """Plan a run on this machine or on another one.

    gpu: a name in `GPUS`. device_memory: the memory of each device, in GB. place: this process's place among the ranks
    of a launcher, None without one. Raises InputError if settings contradict each other.
    """
    ranks = config.gpus or 1 if place is None else place.size
    check_rank_count(ranks, config.frames)
    elsewhere = gpu is not None or device_memory is not None
    present = usable_gpus()[0]
    on_cpu = config.device == "cpu" or (config.device == "auto" and ranks == 1 and not present)
    if elsewhere and config.device == "cpu":
        option = "--gpu" if gpu is not None else "--device-memory"
        raise InputError(
            option, gpu or device_memory, "remove one of the two", problem="contradicts device=cpu"
        )
    run = outline(
        config, planned_card(config.model), device="cpu" if on_cpu and not elsewhere else "cuda", ranks=ranks
    )
    name = None if gpu is None else find_gpu(gpu)
    local_ranks = ranks if place is None else place.local_size
    budget = find_budget(run, gpu=name, device_memory=device_memory, local_ranks=local_ranks)
    memory, fits = choose(run, budget)
    before = first_pass(config, Destination.of(config).folder, planned=True)
    first = None
    if before is not None:
        with naming_first_pass():
            first = make_plan(before, gpu=gpu, device_memory=device_memory, place=place)
    return Plan(
        run=run, budget=budget, gpu=name, memory=memory, fits=fits, call=call_work(run.call), first_pass=first
    )


def find_budget(run: Outline, *, gpu: str | None, device_memory: float | None, local_ranks: int) -> Budget:
    """Return the memory of each rank: as given, or as found on this machine.

    local_ranks: the number of ranks on this node.
    """
    if device_memory is not None:
        return Budget(device=round(device_memory * 1e9), host=None, where=f"devices of {device_memory:g} GB")
    if gpu is not None:
        return Budget(device=GPUS[gpu].memory, host=None, where=gpu)
    host = free_on_host(sharing=local_ranks)
    if run.device == "cpu":
        return Budget(device=None, host=host, where="cpu")
    if not torch.cuda.is_available():
        return Budget(device=None, host=None, where="GPUs that this machine does not have")
    free, where = free_on_gpus(local_ranks)
    return Budget(device=free, host=host, where=where)


def seconds_by_gpu(plan: Plan) -> dict[str, tuple[Seconds, Seconds, bool]]:
    """Return, for the plan's GPU or each in `GPUS`, the time, a distilled model's time, and whether the run fits."""
    names = [plan.gpu] if plan.gpu is not None else list(GPUS)
    table = {}
    for name in names:
        gpu = GPUS[name]
        budget = Budget(device=gpu.memory, host=None, where=name)
        fits = plan.memory.fits(budget, plan.run.device)
        if not fits and plan.budget.device is None:
            fits = choose(plan.run, budget)[1]
        table[name] = (plan.seconds(gpu), plan.seconds(gpu, distilled=True), fits)
    return table
