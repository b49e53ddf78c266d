"""Checks in stages: each prints its figures with its limits, and the first that fails ends them.

A JSON file with a description of the machine holds all figures, too; it is written after each stage.
"""

import datetime
import operator
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from vinfinity.bench.report import write_json
from vinfinity.errors import VinfinityError, one_line

Value = float | int | str | bool | None
Context = TypeVar("Context")
Outcome = Literal["passed", "failed", "skipped"]

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


class Skipped(Exception):
    """Raised in a stage that cannot be carried out here. Its text says why."""


@dataclass(frozen=True)
class Figure:
    """A figure of a stage. accepts: its limit as text, "" if it has none. passed: None without a limit."""

    name: str
    value: Value
    unit: str = ""
    accepts: str = ""
    passed: bool | None = None

    @property
    def line(self) -> str:
        """The figure as one line."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        text = f"  {self.name}: {value}{f' {self.unit}' if self.unit else ''}"
        if self.passed is None:
            return text
        return f"{text}  [{self.accepts}: {'ok' if self.passed else 'FAILED'}]"


def figure(name: str, value: Value, unit: str = "") -> Figure:
    """Return a figure without a limit."""
    return Figure(name, value, unit)


def at_most(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """Return a figure that must not exceed a limit."""
    return _limited(name, value, "<=", limit, unit)


def at_least(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """Return a figure that must reach a limit."""
    return _limited(name, value, ">=", limit, unit)


def equals(name: str, value: Value, wanted: Value) -> Figure:
    """Return a figure that must have one value."""
    return Figure(name, value, "", f"= {wanted}", value == wanted)


def says(name: str, text: str, words: str) -> Figure:
    """Return a message that must contain some words."""
    return Figure(name, one_line(text), "", f"says {words}", words in text)


def _limited(name: str, value: float, sign: str, limit: float, unit: str) -> Figure:
    # NaN passes no comparison
    return Figure(name, value, unit, f"{sign} {limit:g}", COMPARISONS[sign](value, limit))


@dataclass(frozen=True)
class Stage(Generic[Context]):
    """A stage. run: yields its figures, or raises Skipped if it cannot run here. accepts: what passes, in words."""

    name: str
    accepts: str
    run: Callable[[Context], Iterator[Figure]]


@dataclass
class Done:
    """The outcome of a stage. why: the reason why it failed or was skipped."""

    name: str
    accepts: str
    outcome: Outcome
    seconds: float
    figures: list[Figure]
    why: str = ""


@dataclass
class Report:
    """The outcomes of all stages so far."""

    title: str
    settings: Mapping[str, object]
    machine: Mapping[str, object]
    started: str = ""
    stages: list[Done] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(done.outcome == "failed" for done in self.stages)

    def as_json(self) -> dict[str, object]:
        outcome = "failed" if self.failed else "passed"
        return {
            "title": self.title,
            "started": self.started,
            "outcome": outcome,
            "settings": self.settings,
            "stages": self.stages,
            "machine": self.machine,
        }


def run_stages(
    stages: Sequence[Stage[Context]],
    context: Context,
    *,
    title: str,
    settings: Mapping[str, object],
    machine: Mapping[str, object],
    out: Path | None,
    keep_going: bool = False,
) -> Report:
    """Carry out stages in order, up to the first figure that fails. keep_going: measure all figures and stages.

    settings, machine: are written to the file as they are.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report = Report(title=title, settings=settings, machine=machine, started=started)
    for stage in stages:
        print(f"{stage.name}: {stage.accepts}", flush=True)
        done = _carry_out(stage, context, keep_going=keep_going)
        report.stages.append(done)
        why = f": {done.why}" if done.why else ""
        print(f"  {done.outcome}{why} ({done.seconds:.1f} s)", flush=True)
        if out is not None:
            write_json(out, report.as_json())
        if done.outcome == "failed" and not keep_going:
            break
    counts = ", ".join(
        f"{count} {outcome}"
        for outcome in ("passed", "failed", "skipped")
        if (count := sum(done.outcome == outcome for done in report.stages))
    )
    left = len(stages) - len(report.stages)
    print(f"{title}: {counts}{f', {left} not reached' if left else ''}", flush=True)
    if out is not None:
        print(f"figures: {out}", flush=True)
    return report


def _carry_out(stage: Stage[Context], context: Context, *, keep_going: bool) -> Done:
    """Run one stage. Its first figure out of limits makes it fail, and ends it unless `keep_going`."""
    figures: list[Figure] = []
    started, outcome, why = time.monotonic(), "passed", ""
    try:
        for found in stage.run(context):
            figures.append(found)
            print(found.line, flush=True)
            if found.passed is False and outcome != "failed":
                outcome, why = "failed", f"{found.name} is not {found.accepts}"
            if outcome == "failed" and not keep_going:
                break
    except Skipped as skipped:
        outcome, why = "skipped", str(skipped)
    except VinfinityError as error:
        outcome, why = "failed", error.message
    except Exception as error:
        traceback.print_exc()
        outcome, why = "failed", f"{type(error).__name__}: {one_line(error)}"
    return Done(stage.name, stage.accepts, outcome, time.monotonic() - started, figures, why)  # type: ignore[arg-type]
