"""Commands that measure."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from vinfinity.cli.options import Precision, number
from vinfinity.cli.output import Debug, import_engine, print_columns, reported
from vinfinity.config import DecodeConfig, Device, parse_size
from vinfinity.errors import InputError
from vinfinity.system.output import check_output
from vinfinity.system.signals import Reaction, Shutdown

bench = typer.Typer(help="Measure the time and memory that runs take.", no_args_is_help=True)

PAPERS_SIZE = "512x320"
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE.json", help="File to write the figures to.", show_default="none"
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file; needs --out.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="mini|medium|large|wan|FOLDER",
        help="Model to time. medium, large and wan have random weights; large and wan have the shapes of VideoCrafter2 "
        "and Wan 2.1 1.3B.",
    ),
]
AnyModel = Annotated[str, typer.Option(metavar="mini|FOLDER|NAME", help="Model to run.")]
OnDevice = Annotated[Device, typer.Option(metavar="auto|cuda|cpu", help="Device to measure on.")]
Size = Annotated[str, typer.Option(metavar="WxH", help="Width and height of a frame, in pixels.")]
ModelSize = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Width and height of a frame, in pixels.", show_default="the model's"),
]
Frames = Annotated[
    int, typer.Option(metavar="N", help="Length of the video, in frames.", parser=number(int, least=2))
]
Ranks = Annotated[
    int, typer.Option(metavar="N", help="Number of ranks that share the video.", parser=number(int))
]
Rounds = Annotated[
    int, typer.Option(metavar="N", help="Number of timings of each variant.", parser=number(int))
]


@dataclass(frozen=True)
class Measurement:
    """A measurement in progress. out: the file for its figures, None to write none."""

    shutdown: Shutdown
    out: Path | None

    def begin(self, *, engine: bool = True) -> None:
        """Let shutdown requests interrupt the measurement from here on. engine: whether to import the engine."""
        if engine:
            import_engine()
        self.shutdown.reaction = Reaction.UNWIND

    def save(self, figures: object) -> None:
        """Write the figures as JSON if there is a file for them."""
        from vinfinity.bench.report import write_json

        if self.out is not None:
            write_json(self.out, figures)


@contextlib.contextmanager
def measuring(
    context: typer.Context, *, out: Path | None, overwrite: bool, debug: bool
) -> Iterator[Measurement]:
    """Report errors of the block, after refusing an `out` that cannot be written."""
    with reported(context, debug=debug) as shutdown:
        if out is not None:
            check_output("--out", out, overwrite=overwrite)
        elif overwrite:
            raise InputError("--overwrite", True, "add --out FILE", problem="has no effect without a file")
        yield Measurement(shutdown, out)


@bench.command()
def denoiser(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="mini|medium|large|wan|FOLDER",
            help="Model whose UNet or transformer is timed. medium, large and wan have random weights: 353 M "
            "parameters, VideoCrafter2's 1,413 M, and the 1,419 M of Wan 2.1 1.3B. Can be repeated.",
            show_default="mini and medium",
        ),
    ] = None,
    frames: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            parser=number(int),
            help="Number of frames in a call. Can be repeated.",
            show_default="16 and 96; only 16 for random weights",
        ),
    ] = None,
    size: ModelSize = None,
    dtype: Annotated[
        list[Precision] | None,
        typer.Option(
            metavar="fp32|fp16|bf16",
            help="Precision. Can be repeated.",
            show_default="fp32, and bf16 if the processor has instructions for it",
        ),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Also time the compiled network.")] = False,
    rounds: Rounds = 5,
    threads: Annotated[int, typer.Option(metavar="N", help="Number of CPU threads.", parser=number(int))] = 1,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(metavar="cpu|cuda", help="Device to measure on.")
    ] = "cpu",
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Time a call of the UNet or transformer with both guidance branches and plain attention, in each precision.

    benchmarks/rivals/unet.py compares the UNet with that of diffusers.
    """
    with measuring(context, out=out, overwrite=overwrite, debug=debug) as measurement:
        pixels = None if size is None else parse_size(size)
        measurement.begin()
        import torch

        from vinfinity.bench import report
        from vinfinity.bench.denoiser import time_denoiser
        from vinfinity.bench.subjects import RANDOM, find_subject
        from vinfinity.parallel.devices import pick_device, select_device
        from vinfinity.weights.dtypes import DTYPES, emulated

        picked = pick_device(device)
        select_device(picked)
        usual = [name for name in ("fp32", "bf16") if not emulated(DTYPES[name], picked)]
        torch.set_num_threads(threads)
        measured = []
        for name in model or ("mini", "medium"):
            subject = find_subject(name, size=pixels)
            for count in frames or ((16,) if name in RANDOM else (16, 96)):
                times = time_denoiser(
                    subject,
                    frames=count,
                    dtypes=dtype or usual,
                    compiled=compile,
                    rounds=rounds,
                    device=picked.type,
                )
                measured.append((subject.title(count), times))
        print_columns(report.denoiser_table(measured))
        measurement.save(report.denoiser_json(measured))


@bench.command()
def scaling(
    context: typer.Context,
    ranks: Annotated[
        int,
        typer.Option(metavar="N", help="Number of ranks that share the video.", parser=number(int, least=2)),
    ] = 2,
    frames: Frames = 192,
    size: ModelSize = None,
    model: Model = "mini",
    rounds: Rounds = 9,
    device: OnDevice = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Time a call of the UNet or transformer, alternating between one rank and several.

    On CPUs, each rank has one thread.
    """
    with measuring(context, out=out, overwrite=overwrite, debug=debug) as measurement:
        if frames < ranks:
            problem = "is more than the number of frames"
            raise InputError("--ranks", ranks, f"use at most {frames}", problem=problem)
        pixels = None if size is None else parse_size(size)
        measurement.begin()
        from vinfinity.bench import report
        from vinfinity.bench.scaling import measure_scaling

        times = measure_scaling(model, ranks=ranks, frames=frames, rounds=rounds, device=device, size=pixels)
        print_columns(report.scaling_table(times, ranks=ranks, frames=frames))
        measurement.save(times)


@bench.command()
def e2e(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the runs, such as steps=8 or gpus=2.",
            show_default="those of the model",
        ),
    ] = None,
    frames: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            parser=number(int),
            help="Length of a video, in frames. Can be repeated.",
            show_default="96, 192 and 384",
        ),
    ] = None,
    model: AnyModel = "mini",
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Measure whole runs from prompt to MP4: the time of each phase, and memory, for each length of video."""
    with measuring(context, out=out, overwrite=overwrite, debug=debug) as measurement:
        # each run is a process of its own
        measurement.begin(engine=False)
        from vinfinity.bench import report
        from vinfinity.bench.whole import measure_runs

        runs = measure_runs(sorted(frames or (96, 192, 384)), settings or (), model=model)
        print_columns(report.runs_table(runs))
        measurement.save(runs)


@bench.command()
def exchange(
    context: typer.Context,
    ranks: Annotated[
        int, typer.Option(metavar="N", help="Number of ranks to count for.", parser=number(int, least=2))
    ] = 8,
    frames: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            parser=number(int),
            help="Number of frames on each rank. Can be repeated.",
            show_default="24 and 288",
        ),
    ] = None,
    size: Size = PAPERS_SIZE,
    local: Annotated[
        int,
        typer.Option(
            metavar="N", help="Frames of the local scope on either side.", parser=number(int, least=0)
        ),
    ] = 8,
    anchors: Annotated[
        int, typer.Option(metavar="N", help="Number of anchors.", parser=number(int, least=0))
    ] = 16,
    timed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Also time calls of the model on this number of real ranks; 0 times none.",
            parser=number(int, least=0),
        ),
    ] = 0,
    model: Model = "mini",
    rounds: Rounds = 15,
    device: OnDevice = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Count what an inner rank of VideoCrafter2's UNet sends and how often it waits; --timed measures the cost.

    Counting needs neither weights nor GPUs. With --timed, calls that exchange frames alternate with calls that use
    the rank's own frames instead, on this machine; the ratio of their times is the cost of synchronisation.
    """
    with measuring(context, out=out, overwrite=overwrite, debug=debug) as measurement:
        pixels = parse_size(size)
        measurement.begin()
        from vinfinity.bench import report
        from vinfinity.bench.exchange import count_traffic, time_exchange
        from vinfinity.bench.subjects import inner_rank_call
        from vinfinity.parallel.scopes import Scopes

        scopes = Scopes(local=local, anchors=anchors)
        traffic = [
            count_traffic(inner_rank_call(ranks=ranks, frames=count, size=pixels, scopes=scopes))
            for count in frames or (24, 288)
        ]
        print_columns(report.traffic_table(traffic))
        typer.echo("one UNet call of an inner rank, both guidance branches, fp16, no device synchronisation")
        timing = None
        if timed:
            timing = time_exchange(model, ranks=timed, scopes=scopes, rounds=rounds, device=device)
            typer.echo()
            print_columns(report.exchange_time_table(timing))
        measurement.save(report.exchange_json(traffic, timing))


@bench.command()
def memory(
    context: typer.Context,
    ranks: Ranks = 1,
    frames: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            parser=number(int),
            help="Number of frames on each rank. Can be repeated.",
            show_default="64, 288, 576 and 2300",
        ),
    ] = None,
    size: Size = PAPERS_SIZE,
    branches: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of guidance branches in one UNet call.", parser=number(int, most=2)
        ),
    ] = 1,
    chunk: Annotated[
        int,
        typer.Option(
            metavar="MiB",
            help="Size of the chunks in which a layer processes hidden states.",
            parser=number(int),
        ),
    ] = 32,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare the trace of a small call with the memory of a real process."),
    ] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Trace the peak memory of a guided VideoCrafter2 step in fp16, without weights or GPUs.

    Traces it twice: with skip connections on the device, and in host memory.
    """
    with measuring(context, out=out, overwrite=overwrite, debug=debug) as measurement:
        pixels = parse_size(size)
        measurement.begin()
        from vinfinity.bench import report
        from vinfinity.bench.memory import check_footprint, trace_footprint
        from vinfinity.bench.subjects import inner_rank_call
        from vinfinity.denoise.execution import MIB, Execution
        from vinfinity.parallel.scopes import Scopes

        scopes = Scopes(anchor_bias=10.0)
        footprints = [
            trace_footprint(
                inner_rank_call(ranks=ranks, frames=count, size=pixels, scopes=scopes),
                Execution(branches=branches, skips=skips, chunk_bytes=chunk * MIB),
            )
            for skips in ("device", "host")
            for count in frames or (64, 288, 576, 2300)
        ]
        print_columns(report.memory_table(footprints))
        checked = check_footprint(frames=64, latent=(24, 32)) if check else None
        if checked is not None:
            typer.echo()
            print_columns(report.check_table(checked))
        measurement.save(report.memory_json(footprints, checked))


@bench.command()
def decode(
    context: typer.Context,
    frames: Annotated[
        int, typer.Option(metavar="N", help="Length of the video, in frames.", parser=number(int))
    ] = 2000,
    model: AnyModel = "mini",
    decoder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of another autoencoder.", show_default="the model's"),
    ] = None,
    size: ModelSize = None,
    block: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of frames to decode at once, as in decode.frames.",
            show_default="depends on the size of a frame",
            parser=number(int),
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=number(int),
            help="Side of a tile in pixels, as in decode.tile.",
            show_default="whole frames",
        ),
    ] = None,
    rounds: Rounds = 1,
    device: OnDevice = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Measure the way from random latents to MP4: decoding alone, encoding alone, both at once, and their memory.

    A run does both at once: the encoder works in a thread while the next frames are decoded.
    """
    with measuring(context, out=out, overwrite=overwrite, debug=debug) as measurement:
        pixels = None if size is None else parse_size(size)
        decoding = DecodeConfig(frames=block, tile=tile)
        measurement.begin()
        from vinfinity.bench import report
        from vinfinity.bench.decode import measure_decoding

        figures = measure_decoding(
            model, decoder=decoder, frames=frames, size=pixels, rounds=rounds, device=device, decode=decoding
        )
        print_columns(report.decode_table(figures))
        measurement.save(report.decode_json(figures))
