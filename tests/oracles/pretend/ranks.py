"""Several ranks on pretend devices, as forked processes, which need not import torch again."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from oracles.pretend.device import Findings, PretendCuda
from oracles.pretend.nccl import PretendNccl

from vinfinity.parallel.devices import rank_device
from vinfinity.parallel.join import joined
from vinfinity.parallel.place import Place
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.signals import Shutdown


@dataclass(frozen=True)
class Outcome:
    """What a rank did. result: of its work. error: what it raised instead. batches: of messages that it started."""

    result: Any
    error: str | None
    findings: Findings
    batches: int


def on_pretend_ranks(
    work: Callable[[Ranks], Any],
    *,
    ranks: int,
    timeout: float = 30.0,
    patience: float = 300.0,
    broken: int | None = None,
    fault: tuple[str, str] = ("init", "NCCL error: unhandled system error"),
) -> list[Outcome]:
    """Run `work` on every rank, each with a pretend device of its own.

    timeout: seconds that ranks wait for each other. patience: seconds after which ranks that still run are ended.
    broken: the rank on which NCCL fails. fault: see `PretendNccl`.
    Raises TimeoutError with what the others reported.
    """
    context = multiprocessing.get_context("fork")
    children, receivers, ports = [], [], []
    for rank in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        port, port_sender = context.Pipe(duplex=False)
        arguments = (work, rank, ranks, port, timeout, fault if rank == broken else ("", ""), sender)
        children.append(context.Process(target=_rank_main, args=arguments))
        children[-1].start()
        sender.close()
        receivers.append(receiver)
        ports.append(port_sender)
    # after the last fork: what the store's thread holds locked at that moment would stay locked in the child
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    outcomes: dict[int, Outcome] = {}
    try:
        for port_sender in ports:
            port_sender.send(store.port)
        while len(outcomes) < ranks:
            open_receivers = [receivers[rank] for rank in range(ranks) if rank not in outcomes]
            ready = wait(open_receivers, timeout=patience)
            if not ready:
                errors = {rank: outcome.error for rank, outcome in outcomes.items()}
                raise TimeoutError(f"ranks that never ended; others: {errors}")
            for rank, receiver in enumerate(receivers):
                if receiver in ready:
                    outcomes[rank] = _received(receiver)
    finally:
        for child in children:
            child.kill()
            child.join()
    return [outcomes[rank] for rank in range(ranks)]


def _received(receiver: Connection) -> Outcome:
    try:
        outcome: Outcome = pickle.loads(receiver.recv_bytes())
        return outcome
    except EOFError:
        return Outcome(None, "the process ended", Findings([], [], [], [], []), 0)


def _rank_main(
    work: Callable[[Ranks], Any],
    rank: int,
    ranks: int,
    port: Connection,
    timeout: float,
    fault: tuple[str, str],
    sender: Connection,
) -> None:
    """One rank: does its work, sends its outcome, and is gone. port: brings that of the store."""
    # a store that an earlier test left in a cycle has a thread, which is not in this process: freeing it would abort
    gc.freeze()
    torch.set_num_threads(1)
    place = Place(rank, ranks, rank, ranks, "localhost", port.recv(), launcher="vinfinity")
    result, error = None, None
    cuda = PretendCuda(devices=place.local_size)
    nccl = PretendNccl(cuda, fault=fault)
    with contextlib.suppress(BaseException), cuda, nccl:
        try:
            device = rank_device(place, "cuda")
            with joined(place, device=device, timeout=timeout, shutdown=Shutdown()) as joined_ranks:
                result = work(joined_ranks)
        except BaseException as raised:
            error = "".join(traceback.format_exception(raised))
    sender.send_bytes(pickle.dumps(Outcome(result, error, cuda.findings(), nccl.batches)))
    os._exit(0)
