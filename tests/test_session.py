"""A rank's session: phases, stopping after a checkpoint, and errors recorded in the run folder."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracles.runs import config_of, events

from vinfinity.denoise.state import State
from vinfinity.errors import (
    BusyError,
    InputError,
    NotFiniteError,
    OutputError,
    Stopped,
    UnexpectedError,
    VinfinityError,
)
from vinfinity.job import prepare
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.votes import Vote, Votes
from vinfinity.runs.folder import MANIFEST, RunFolder
from vinfinity.runs.paths import Destination
from vinfinity.session import Session, resumable
from vinfinity.system.signals import Reaction, Shutdown


@contextlib.contextmanager
def open_session(model: Path, out: Path, *overrides: str) -> Iterator[Session]:
    config = config_of(model, out, *overrides)
    with Shutdown().handled() as shutdown:
        ranks = Ranks(device=torch.device("cpu"), shutdown=shutdown)
        with Session.open(prepare(config), Destination.of(config), ranks) as session:
            yield session


def state(step: int) -> State:
    return State(step=step, x=torch.zeros(1, 4, 3, 4, 4))


def test_a_request_stops_the_run_at_the_next_phase(model_folder: Path, tmp_path: Path) -> None:
    with open_session(model_folder, tmp_path / "a.mp4") as session:
        session.enter("before anything was computed")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match=r"stopped before decoding; `vinfinity resume .*a\.run` resumes"):
            session.enter("before decoding")


def test_a_requested_stop_waits_for_its_checkpoint(model_folder: Path, tmp_path: Path) -> None:
    with open_session(model_folder, tmp_path / "a.mp4", "checkpoint.every=never") as session:
        session.after_step(state(1), Votes([Vote(finite=True)]), steps=12)
        assert not session.folder.holds_work()
        with pytest.raises(Stopped, match="stopped after step 2 of 12"):
            session.after_step(state(2), Votes([Vote(finite=True, stop=True)]), steps=12)
        assert session.folder.holds_work()


def test_a_request_after_the_end_of_a_session_changes_nothing(model_folder: Path, tmp_path: Path) -> None:
    reactions = []
    with open_session(model_folder, tmp_path / "a.mp4") as session:
        reactions.append(session.ranks.shutdown.reaction)
    reactions.append(session.ranks.shutdown.reaction)
    assert reactions == [Reaction.CHECK, Reaction.WAIT]


def test_a_session_locks_its_folder_until_it_ends(model_folder: Path, tmp_path: Path) -> None:
    with open_session(model_folder, tmp_path / "a.mp4") as session:
        with (
            pytest.raises(BusyError, match=f"process {os.getpid()} on "),
            session.folder.locked(first=True, wait=0.0),
        ):
            raise AssertionError("two runs have the folder")
        assert session.start == "new"
    with session.folder.locked(first=True, wait=0.0):
        pass


@pytest.mark.parametrize(
    ("error", "has_checkpoint", "message"),
    [
        (
            OutputError("a: cannot be written"),
            True,
            "a: cannot be written; `vinfinity resume {run}` resumes from",
        ),
        (OutputError("a: cannot be written"), False, "a: cannot be written"),
        (
            UnexpectedError("rank 1: KeyError: 'a' (job.py:5)"),
            True,
            "rank 1: KeyError: 'a' (job.py:5); `vinfinity resume {run}` resumes from",
        ),
        (NotFiniteError("step 1: NaN"), True, "step 1: NaN"),
    ],
    ids=["with a checkpoint", "without one", "a bug", "an error that resuming repeats"],
)
def test_an_error_is_recorded_and_says_how_to_resume(
    error: VinfinityError, has_checkpoint: bool, message: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "a.run")
    folder.checkpoints.mkdir(parents=True)
    if has_checkpoint:
        (folder.checkpoints / "step-0001").mkdir()
        (folder.checkpoints / "step-0001" / MANIFEST).write_text("{}")
    with pytest.raises(type(error)) as raised, resumable(folder):
        raise type(error)(error.message)
    expected = message.format(run=folder.path)
    assert raised.value.message.startswith(expected)
    assert ("vinfinity resume" in raised.value.message) == ("vinfinity resume" in expected)
    [ended] = events(folder.path, "ended")
    assert (ended["message"], ended["exit_code"]) == (raised.value.message, error.exit_code)
    assert raised.value.message in folder.log.read_text()


@pytest.mark.parametrize(
    "error", [InputError("frames", 0, "use 1"), BusyError("in use")], ids=["input", "busy"]
)
def test_a_refused_run_leaves_the_folder_as_it_was(error: VinfinityError, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), resumable(folder):
        raise error
    assert list(tmp_path.iterdir()) == []
