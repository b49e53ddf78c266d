"""Full and read-only disks, and a system clock that is set during a run."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles.runs import config_of, events, latents, resumed_config, stop_after_step
from oracles.video import read_video

from vinfinity.config import to_yaml
from vinfinity.errors import InputError, OutputError
from vinfinity.run import run
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import read_manifest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a separate file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs permission to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_previous_one(
    small_disk: Path, model_folder: Path
) -> None:
    config = config_of(model_folder, small_disk / "a.mp4", "checkpoint.every=2 steps")
    stop_after_step(config, small_disk / "a.run", step=2)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * (free - free % 4096))
    assert (small_disk / "a.run" / "checkpoints").exists()
    with pytest.raises(OutputError, match=r"No space left on device.*; `vinfinity resume") as raised:
        run(resumed_config(small_disk / "a.run"))
    assert raised.value.exit_code == 4
    assert RunFolder(small_disk / "a.run").holds_work()
    (small_disk / "filler").unlink()
    run(resumed_config(small_disk / "a.run"))
    assert (small_disk / "a.mp4").is_file()


def test_a_disk_that_fills_up_during_decoding_leaves_the_latents(
    small_disk: Path, model_folder: Path
) -> None:
    flags = {"frames": 40, "size": "128x128", "steps": 1}
    config = config_of(model_folder, small_disk / "a.mp4", "video.crf=0", "video.preset=ultrafast", **flags)
    with pytest.raises(OutputError, match="cannot be written") as raised:
        run(config)
    assert raised.value.exit_code == 4
    read_manifest(small_disk / "a.run" / "latents").verify()
    assert not (small_disk / "a.mp4").exists()
    run(resumed_config(small_disk / "a.run", "video.crf=51"))
    assert len(read_video(small_disk / "a.mp4")) == 40


def test_a_disk_that_becomes_read_only_is_named_in_the_error(small_disk: Path, model_folder: Path) -> None:
    config = config_of(model_folder, small_disk / "a.mp4", "checkpoint.every=1 steps")
    stop_after_step(config, small_disk / "a.run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match="is not writable; choose another folder"):
        run(resumed_config(small_disk / "a.run"))


# A library to preload before libc: it shifts the time of day by the number of seconds in a file.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static time_t offset(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_OFFSET"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += offset();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("gpus", [1, 2])
def test_setting_the_clock_during_a_run_does_not_change_the_result(
    gpus: int, model_folder: Path, tmp_path: Path
) -> None:
    source, library, offset = (tmp_path / name for name in ("clock.c", "clock.so", "offset"))
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_text("0")
    # both far shorter than the offsets of the clock
    settings = ("checkpoint.every=2s", "parallel.timeout=60")
    run(config_of(model_folder, tmp_path / "undisturbed.mp4", *settings, frames=9, gpus=gpus, steps=60))
    config = config_of(model_folder, tmp_path / "disturbed.mp4", *settings, frames=9, gpus=gpus, steps=60)
    (tmp_path / "disturbed.yaml").write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "vinfinity", "generate", "--config", str(tmp_path / "disturbed.yaml")],
        env={**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)},
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    offsets = itertools.cycle([10 * 31536000, -10 * 31536000, 3600, -3600])
    while process.poll() is None:
        time.sleep(0.3)
        offset.write_text(str(next(offsets)))
    assert process.returncode == 0, process.stderr and process.stderr.read()
    difference = latents(tmp_path / "disturbed.run") - latents(tmp_path / "undisturbed.run")
    assert difference.abs().max() <= 1e-4
    years = {event["time"][:4] for event in events(tmp_path / "disturbed.run", "step")}
    # the clock was set during denoising
    assert len(years) > 1
    assert len(events(tmp_path / "disturbed.run", "checkpoint")) <= (time.monotonic() - started) / 2
