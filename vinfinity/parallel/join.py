"""How a rank joins the others and leaves them."""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from vinfinity.errors import RankError, Stopped, VinfinityError, described, one_line
from vinfinity.parallel.backends import CONNECTION_REMEDIES
from vinfinity.parallel.connectivity import check_connections
from vinfinity.parallel.devices import GpuFacts, check_gpus, gpu_facts, select_device
from vinfinity.parallel.liveness import Liveness
from vinfinity.parallel.place import Place, rank_names
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.waits import Waits
from vinfinity.system.out_of_memory import GPU_REMEDY, is_out_of_memory, named_out_of_memory
from vinfinity.system.progress import logger, warn
from vinfinity.system.signals import Shutdown

Payload = TypeVar("Payload")
Result = TypeVar("Result")

# seconds after which a rank logs that it waits for the others
NOTED_WAIT = 10.0
# the store's entry for the number of ranks that have left
LEFT = "left"
# seconds for the store to answer a rank that leaves, and for the last rank to leave
LEAVE_SECONDS = 2
# the variable that says what NCCL's watchdog does when a peer dies
ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
# seconds after which NCCL aborts a process; vinfinity ends it long before
NCCL_SECONDS = 3600.0


def call_worker(worker: Callable[[Payload, Ranks], Result], payload: Payload, ranks: Ranks) -> Result:
    """Call the worker on this rank and return its result. Raise VinfinityError for any error; see `described`."""
    try:
        with named_out_of_memory(str(ranks)):
            return worker(payload, ranks)
    except VinfinityError:
        raise
    except Exception as error:
        raise described(error, ranks.rank if ranks.size > 1 else None) from error


@contextlib.contextmanager
def joined(
    place: Place,
    *,
    device: torch.device,
    timeout: float,
    shutdown: Shutdown,
    lasting: bool = False,
    end: Callable[[VinfinityError], object] | None = None,
) -> Iterator[Ranks]:
    """Join the other ranks, and leave them at the end of the block.

    The first rank that fails or receives a shutdown request decides the error of all ranks: a RankError inside the
    block, which only says that another rank is gone, is replaced by the first error of any rank.

    timeout: seconds to wait for any rank. lasting: whether the process continues after the block, as in a library. It
    then destroys the process group if there was no error. NCCL's cleanup waits for all ranks: a process about to exit
    should skip it, and a failed one must. end: ends this process with an error if its main thread cannot; by default
    with a line on stderr.
    """
    _choose_threads(place, device)
    named_memory_errors = partial(named_out_of_memory, f"rank {place.rank} on {device}", remedy=GPU_REMEDY)
    with named_memory_errors():
        select_device(device, speaks=place.local_rank == 0)
    if device.type == "cuda":
        configure_nccl(place.launcher, os.environ)
    waiting = threading.Timer(NOTED_WAIT, _note_waiting, [place])
    waiting.daemon = True
    waits = Waits()
    waiting.start()
    with contextlib.ExitStack() as watched:
        watched.callback(waiting.cancel)
        with named_memory_errors(), _named_failure(place, timeout):
            store = _connect(place, timeout, host=place.rank == place.store_host)
            liveness = Liveness(
                place.rank,
                place.size,
                store=_connect(place, timeout),
                device=device,
                timeout=timeout,
                waits=waits,
                end=end or (lambda error: shutdown.end(error.exit_code, error.message)),
                host=place.store_host,
            )
            gpus = _gather_gpus(place, store, device, timeout)
        # from here on, publish errors to the other ranks: they may be inside NCCL, which waits until its time limit
        try:
            watched.enter_context(liveness.watching())
            if gpus and (warning := check_gpus(gpus)) and place.rank == 0:
                warn(warning)
            with named_memory_errors():
                with _named_failure(place, timeout):
                    _init_process_group(place, store, liveness, device, timeout)
                waiting.cancel()
                check_connections(
                    place.rank, place.size, device=device, store=store, liveness=liveness, timeout=timeout
                )
            yield Ranks(
                device=device,
                rank=place.rank,
                size=place.size,
                local_size=place.local_size,
                shutdown=shutdown,
                waits=waits,
                liveness=liveness,
            )
        except (RankError, Stopped) as error:
            first = liveness.first_error(error)
            raise Stopped(shutdown.message) if shutdown.requested else first from error
        except Exception as error:
            liveness.first_error(described(error, place.rank))
            raise
        else:
            if lasting:
                dist.destroy_process_group()
        finally:
            if place.store_host is not None:
                _leave(store, hosts_store=place.rank == place.store_host, others=place.size - 1)


@contextlib.contextmanager
def _named_failure(place: Place, timeout: float) -> Iterator[None]:
    """Turn errors of joining inside the block into RankError, except for running out of memory."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{one_line(error)}{_way_out(place)}"
        if isinstance(error, dist.DistBackendError) and "nccl" in reason.lower():
            problem = (
                f"NCCL could not connect the {place.size} ranks: {reason}; {CONNECTION_REMEDIES['cuda']}"
            )
            raise RankError(problem) from error
        raise RankError(f"not all of the {place.size} ranks joined within {timeout:g} s: {reason}") from error


def _choose_threads(place: Place, device: torch.device) -> None:
    """Share the cores of a node among its ranks on the CPU, unless the user has chosen a number of threads."""
    chosen = re.match(r"[1-9]", os.environ.get("OMP_NUM_THREADS", "").strip())
    if place.local_size > 1 and device.type == "cpu" and not chosen:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_size))


def configure_nccl(launcher: str, environment: MutableMapping[str, str]) -> None:
    """Set the variables of torch's NCCL backend that the user has not set."""
    # messages must not wait behind large kernels
    environment.setdefault("TORCH_NCCL_HIGH_PRIORITY", "1")
    # torchrun sets 1 if the user sets nothing
    unset = (None, "1") if launcher == "torchrun" else (None,)
    if environment.get(ERROR_HANDLING) in unset:
        # otherwise, if a peer dies, NCCL's watchdog aborts this process before it can name the peer
        environment[ERROR_HANDLING] = "0"


def _connect(place: Place, timeout: float, *, host: bool = False) -> dist.Store:
    """Open a connection to the store. host: whether to start the store first."""
    limit = timedelta(seconds=timeout)
    if place.has_rendezvous:
        store, _, _ = next(dist.rendezvous("env://", place.rank, place.size, timeout=limit))
    else:
        store = dist.TCPStore(place.address, place.port, is_master=host, timeout=limit)
    store = prefixed(store, place.attempt)
    store.set_timeout(limit)
    return store


def prefixed(store: dist.Store, attempt: int = 0) -> dist.Store:
    """Restrict a store to the entries of the ranks that were started together.

    attempt: how often the launcher has restarted the ranks. torchrun's store outlives its ranks, and restarted ranks
    must not find the entries of earlier ones.
    """
    return dist.PrefixStore(f"vinfinity/{attempt}", store)


def _gather_gpus(place: Place, store: dist.Store, device: torch.device, timeout: float) -> list[GpuFacts]:
    """Return the GPUs of all ranks; none if they compute on CPUs. Raise RankError if a rank does not join."""
    own = asdict(gpu_facts(device)) if device.type == "cuda" else None
    store.set(f"gpu/{place.rank}", json.dumps(own))
    keys = [f"gpu/{rank}" for rank in range(place.size)]
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError:
        missing = rank_names([rank for rank, key in enumerate(keys) if not store.check([key])])
        raise RankError(
            f"not all of the {place.size} ranks joined within {timeout:g} s: {missing} did not{_way_out(place)}"
        ) from None
    found = [json.loads(store.get(key)) for key in keys]
    return [GpuFacts(**facts) for facts in found if facts is not None]


def _init_process_group(
    place: Place, store: dist.Store, liveness: Liveness, device: torch.device, timeout: float
) -> None:
    limit = timedelta(seconds=timeout)
    if device.type != "cuda":
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.size, timeout=limit)
        return
    problem = RankError(f"NCCL did not connect the ranks within {timeout:g} s; {CONNECTION_REMEDIES['cuda']}")
    with liveness.within(timeout, problem):
        # with device_id, NCCL connects all ranks here; without, at the first message, in which all must take part
        dist.init_process_group(
            "cpu:gloo,cuda:nccl",
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=limit,
            device_id=device,
        )
    assert dist.group.WORLD is not None
    # NCCL's watchdog would abort the process without naming a rank: give heartbeats time to find it first
    dist.group.WORLD._get_backend(device)._set_default_timeout(timedelta(seconds=NCCL_SECONDS))


def _note_waiting(place: Place) -> None:
    if place.local_rank == 0:
        logger.info("rank %d waits for the other ranks%s", place.rank, _way_out(place))


def _way_out(place: Place) -> str:
    return "" if place.started_by_vinfinity else f"; {place.way_out}"


def _leave(store: dist.Store, *, hosts_store: bool, others: int) -> None:
    """Leave the store. The rank that hosts it waits until the others have left, for at most LEAVE_SECONDS."""
    deadline = time.monotonic() + LEAVE_SECONDS
    store.set_timeout(timedelta(seconds=LEAVE_SECONDS))
    with contextlib.suppress(RuntimeError):
        if not hosts_store:
            store.add(LEFT, 1)
        while hosts_store and store.add(LEFT, 0) < others and time.monotonic() < deadline:
            time.sleep(0.02)
