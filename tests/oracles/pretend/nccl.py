"""NCCL's rules, on top of gloo: what torch.distributed does with device tensors, as far as the package uses it.

- The communicator of a group is made by all its ranks together: when the group is made, if `init_process_group` gets a
  `device_id`, else in the first batch of messages. A rank that does not come keeps all others waiting.
- `batch_isend_irecv` takes device tensors only, and returns one handle for all messages.
- Waiting for a handle orders the current stream behind the messages. On a GPU the host goes on. Here it has to wait for
  the data, but learns nothing about the device from that.
- NCCL waits for a late or lost peer without end. Here that raises `NeverEnds`, which no part of the package catches.
"""

import contextlib
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from oracles.pretend.device import PretendCuda, PretendError, PretendTensor
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# what NCCL can do with device tensors, and the package does not ask for
UNUSED = (
    "all_reduce",
    "all_gather",
    "all_to_all",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "send",
    "recv",
)
REAL_BACKEND_OF = dist.ProcessGroup._get_backend


class NeverEnds(BaseException):
    """NCCL would wait for ever."""


@dataclass
class Handle:
    """All messages of a batch. works: those of gloo. tensors: kept until they have arrived."""

    works: Sequence[Any]
    tensors: Sequence[Tensor]
    cuda: PretendCuda
    stream: str

    def wait(self, timeout: object = None) -> bool:
        for work in self.works:
            try:
                work.wait()
            except RuntimeError as error:
                raise NeverEnds(f"a message that never comes: {error}") from error
        current = self.cuda.stream().name
        self.cuda.clocks.join(current, self.cuda.clocks.now(self.stream))
        self.tensors = ()
        return True


class PretendNccl:
    """torch.distributed's functions with NCCL's rules, while the context is open.

    batches: how many batches of messages this rank has started. fault: with what NCCL fails on this rank, and where:
    when ranks are connected ("init") or at their first messages ("batch").
    """

    _active: "PretendNccl | None" = None

    def __init__(self, cuda: PretendCuda, *, fault: tuple[str, str] = ("", "")) -> None:
        self._cuda, self._fault = cuda, fault
        self._communicators: set[str] = set()
        self._store: dist.Store | None = None
        self._rank = self._size = 0
        self._limit = 0.0
        self.batches = 0
        self._open = contextlib.ExitStack()

    @staticmethod
    def active() -> "PretendNccl":
        """Return the one whose context is open."""
        assert PretendNccl._active is not None
        return PretendNccl._active

    def __enter__(self) -> "PretendNccl":
        PretendNccl._active = self
        # whether torch was built with NCCL does not matter
        for name, value in {
            "init_process_group": self._init,
            "new_group": self._new_group(dist.new_group),
            "batch_isend_irecv": self._batch,
            "is_nccl_available": lambda: True,
            **{name: self._on_host_only(getattr(dist, name)) for name in UNUSED},
        }.items():
            self._open.enter_context(mock.patch.object(dist, name, value))
        self._open.enter_context(mock.patch.object(dist.ProcessGroup, "_get_backend", self._backend_of))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        PretendNccl._active = None

    def _init(
        self, backend: str | None = None, *, device_id: torch.device | None = None, **options: Any
    ) -> None:
        assert "nccl" in (backend or ""), "ranks on GPUs need NCCL"
        self._store = dist.PrefixStore("pretend-nccl", options["store"])
        self._rank, self._size = options["rank"], options["world_size"]
        self._limit = options["timeout"].total_seconds()
        dist.distributed_c10d.init_process_group("gloo", **options)
        self._fail_in("init")
        if device_id is not None:
            self.make_communicator()

    @staticmethod
    def _backend_of(group: dist.ProcessGroup, device: torch.device) -> Any:
        """Return the part of a group for a device. That of GPUs has a time limit of its own."""
        if torch.device(device).type == "cuda":
            return types.SimpleNamespace(_set_default_timeout=lambda limit: None)
        return REAL_BACKEND_OF(group, device)

    def _fail_in(self, where: str) -> None:
        if self._fault[0] == where:
            raise dist.DistBackendError(self._fault[1])

    def _new_group(self, real: Any) -> Any:
        def new_group(*args: Any, backend: str | None = None, **options: Any) -> Any:
            if backend != "gloo":
                raise PretendError(f"new_group(backend={backend}) is not a part of this")
            return real(*args, backend=backend, **options)

        return new_group

    def _on_host_only(self, real: Any) -> Any:
        def guarded(*args: Any, **options: Any) -> Any:
            if any(isinstance(value, PretendTensor) for value in (*args, *options.values())):
                raise PretendError(f"{real.__name__} of a device tensor is not a part of this")
            return real(*args, **options)

        return guarded

    def make_communicator(self, group: str = "all") -> None:
        """Wait until all ranks are here. Raises NeverEnds after the group's timeout."""
        assert self._store is not None
        until = time.monotonic() + self._limit
        self._store.add(group, 1)
        while (here := self._store.add(group, 0)) < self._size:
            if time.monotonic() > until:
                raise NeverEnds(
                    f"rank {self._rank}: {here} of {self._size} ranks came to make a communicator"
                )
            time.sleep(0.002)
        self._communicators.add(group)

    def _batch(self, operations: Sequence[dist.P2POp]) -> list[Handle]:
        self.batches += 1
        self._fail_in("batch")
        if "all" not in self._communicators:
            self.make_communicator()
        clocks, current = self._cuda.clocks, self._cuda.stream()
        stream = f"NCCL's stream of {current.device}"
        clocks.join(stream, clocks.now(current.name))
        works, tensors = [], []
        for operation in operations:
            tensor = operation.tensor
            if not isinstance(tensor, PretendTensor):
                raise PretendError("a tensor of the CPU in a batch of NCCL's")
            receives = operation.op is dist.irecv
            self._cuda.memory.use(
                tensor.elem, stream, write=receives, operation="irecv" if receives else "isend"
            )
            with _disable_current_modes():
                works.append(operation.op(tensor.elem, operation.peer))
            tensors.append(tensor.elem)
        return [Handle(works, tensors, self._cuda, stream)]
