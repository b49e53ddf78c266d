"""When checkpoints are written, which of them stay on disk, and the state that they restore."""

import signal
import time
from pathlib import Path

import pytest
import torch
from oracles.fault_work import end_after_a_checkpoint

from vinfinity.config import CheckpointConfig, parse_interval
from vinfinity.denoise.selection import select_all
from vinfinity.denoise.state import State
from vinfinity.errors import InputError, RankError
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.votes import Votes
from vinfinity.runs.checkpoints import CheckpointPlan, Checkpoints
from vinfinity.runs.folder import RunFolder
from vinfinity.system.progress import Progress
from vinfinity.system.signals import Shutdown


def checkpoints_in(
    folder: Path,
    *,
    every: str = "1 steps",
    keep: int = 2,
    shutdown: Shutdown | None = None,
    reuse_interval: int = 1,
) -> Checkpoints:
    """Return the checkpoints of a run of 6 frames and 50 steps on one rank."""
    ranks = Ranks(device=torch.device("cpu"), shutdown=shutdown or Shutdown())
    plan = CheckpointPlan(
        select_all(6, seed=0),
        steps=50,
        config=CheckpointConfig(every=every, keep=keep),
        reuse_interval=reuse_interval,
    )
    return Checkpoints(
        RunFolder(folder),
        plan,
        ranks=ranks,
        team=ranks.team(6, split=False),
        progress=Progress(enabled=False),
    )


def test_the_newest_checkpoints_stay_and_hold_the_samplers_history(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path, keep=3)
    states = [
        State(step=step, x=torch.randn(1, 4, 6, 2, 2), clean=torch.randn(1, 4, 6, 2, 2))
        for step in range(1, 8)
    ]
    for state in states:
        assert checkpoints.after(state, Votes([checkpoints.vote(True)]))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0005", "step-0006", "step-0007"]
    restored = checkpoints_in(tmp_path).restore()
    assert restored is not None
    assert restored.step == 7
    assert torch.equal(restored.x, states[-1].x)
    assert restored.clean is not None
    assert states[-1].clean is not None
    assert torch.equal(restored.clean, states[-1].clean)
    checkpoints.finish(State(step=50, x=states[0].x, clean=states[0].x))
    assert not (tmp_path / "checkpoints").exists()
    final = checkpoints_in(tmp_path).restore()
    assert final is not None
    assert (final.step, final.clean) == (50, None)


def test_a_checkpoint_stays_when_a_rank_is_lost_after_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(RankError):
        launch(end_after_a_checkpoint, tmp_path, gpus=2, device="cpu", timeout=120.0)
    restored = checkpoints_in(tmp_path).restore()
    assert restored is not None
    assert restored.step == 1


def test_a_run_that_reuses_features_stops_at_the_next_full_step(tmp_path: Path) -> None:
    shutdown = Shutdown()
    shutdown.requested = signal.SIGTERM
    checkpoints = checkpoints_in(tmp_path, every="never", reuse_interval=3, shutdown=shutdown)
    written = [
        checkpoints.after(State(step=step, x=torch.zeros(1, 4, 6, 2, 2)), Votes([checkpoints.vote(True)]))
        for step in (1, 2, 3)
    ]
    assert written == [False, False, True]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0003"]


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("5 steps", ("steps", 5)),
        ("1step", ("steps", 1)),
        ("90s", ("seconds", 90)),
        ("10min", ("seconds", 600)),
        ("2 h", ("seconds", 7200)),
        ("auto", ("auto", 0)),
        ("never", ("never", 0)),
    ],
)
def test_an_interval_is_a_number_of_steps_or_a_time(text: str, interval: tuple[str, float]) -> None:
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["", "5", "0 steps", "-1 min", "10 parsecs", "1.5h", "steps"])
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.every"):
        parse_interval(text)


def test_the_automatic_interval_costs_less_than_two_percent(tmp_path: Path) -> None:
    """The interval to the next checkpoint is at least 60 times as long as the last one took to write."""
    checkpoints = checkpoints_in(tmp_path, every="auto")
    assert not checkpoints.vote(True).checkpoint_due
    for cost in (0.01, 3.0, 100.0):
        checkpoints._cost = cost
        for elapsed, due in ((max(60.0, 60 * cost) - 1, False), (max(60.0, 60 * cost) + 1, True)):
            checkpoints._last = time.monotonic() - elapsed
            assert checkpoints.vote(True).checkpoint_due == due
