"""Commands that measure."""

from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.options import DEVICES
from vinfinity.cli.output import Debug, held_interrupts, print_columns, reported
from vinfinity.errors import InputError

bench = typer.Typer(help="Measure what a run takes.", no_args_is_help=True)
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the figures here.")]


@bench.command()
def unet(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="mini|medium|FOLDER",
            help="Whose UNet; medium has 353 M random parameters. May be repeated. [mini and medium]",
        ),
    ] = None,
    frames: Annotated[
        list[int] | None, typer.Option(metavar="N", help="May be repeated. [16 and 96; medium 16]")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels of a frame. [the model's]")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(metavar="fp32|fp16|bf16", help="May be repeated. [fp32 and bf16]")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compiled ones, too.")] = False,
    rounds: Annotated[int, typer.Option(help="Times that each is timed, in turn.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="Threads on a CPU.", min=1)] = 1,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What to time on.")] = "cpu",
    out: Out = None,
    debug: Debug = False,
) -> None:
    """How long a UNet call takes, with both guidance branches and plain attention, by precision and compiled.

    benchmarks/rivals/unet.py times it against diffusers'.
    """
    from vinfinity.config import parse_size

    with reported(debug=debug):
        pixels = None if size is None else parse_size(size)
        with held_interrupts():
            import torch

            from vinfinity.bench import unet as insight
            from vinfinity.parallel.ranks import pick_device
            from vinfinity.weights.dtypes import DTYPES
        for name in dtype or ():
            if name not in DTYPES:
                raise InputError("--dtype", name, f"choose from {', '.join(DTYPES)}", problem="is not known")
        kind = pick_device(device).type
        torch.set_num_threads(threads)
        shapes = [
            insight.shape_of(name, frames=count, size=pixels)
            for name in model or ("mini", "medium")
            for count in frames or ((16,) if name == "medium" else (16, 96))
        ]
        ways = dtype or ("fp32", "bf16")
        measured = [
            (shape, insight.time_unet(shape, dtypes=ways, compiled=compile, rounds=rounds, device=kind))
            for shape in shapes
        ]
        print_columns(insight.times_table(measured))
        if out is not None:
            insight.write_json(out, measured)


@bench.command()
def scaling(
    ranks: Annotated[int, typer.Option(metavar="N", help="Ranks that share the video.", min=2)] = 2,
    frames: Annotated[int, typer.Option(metavar="N", help="Length of the video.", min=2)] = 192,
    model: Annotated[str, typer.Option(metavar="mini|FOLDER", help="The model to time.")] = "mini",
    rounds: Annotated[int, typer.Option(help="Pairs of calls to time.", min=1)] = 9,
    device: Annotated[str, typer.Option(metavar="|".join(DEVICES), help="What to time on.")] = "auto",
    out: Out = None,
    debug: Debug = False,
) -> None:
    """What more ranks gain: a UNet call on one of them against one that they share, in turn; a thread each on CPUs."""
    with reported(debug=debug):
        if frames < ranks:
            raise InputError("--ranks", ranks, f"give at most {frames}", problem="is more than the frames")
        with held_interrupts():
            from vinfinity.bench import scaling as insight
        times = insight.measure_scaling(model, ranks=ranks, frames=frames, rounds=rounds, device=device)
        print_columns(insight.scaling_table(times, ranks=ranks, frames=frames))
        if out is not None:
            insight.write_json(out, times)


@bench.command()
def e2e(
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the runs, such as steps=8 or gpus=2."),
    ] = None,
    frames: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Lengths; may be repeated. [96, 192 and 384]")
    ] = None,
    model: Annotated[str, typer.Option(metavar="mini|FOLDER|NAME", help="The model.")] = "mini",
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Whole runs from prompt to MP4: time of each phase and memory, against the length of the video."""
    with reported(debug=debug):
        from vinfinity.bench import whole as insight

        runs = insight.measure_runs(sorted(frames or (96, 192, 384)), options or (), model=model)
        print_columns(insight.runs_table(runs))
        if out is not None:
            insight.write_json(out, runs)


@bench.command()
def exchange(
    ranks: Annotated[int, typer.Option(metavar="N", help="Ranks to count for.", min=2)] = 8,
    frames: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Frames on each rank; may be repeated. [24 and 288]")
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of a frame.")] = "512x320",
    local: Annotated[int, typer.Option(help="Frames on either side in the local scope.", min=0)] = 8,
    anchors: Annotated[int, typer.Option(help="Frames spread over the video.", min=0)] = 16,
    timed: Annotated[
        int, typer.Option(metavar="N", help="Also time calls of `model` on this many real ranks.", min=0)
    ] = 0,
    model: Annotated[str, typer.Option(metavar="mini|FOLDER", help="The model to time.")] = "mini",
    rounds: Annotated[int, typer.Option(help="Pairs of calls to time.", min=1)] = 15,
    device: Annotated[str, typer.Option(metavar="|".join(DEVICES), help="What to time on.")] = "auto",
    out: Out = None,
    debug: Debug = False,
) -> None:
    """What an inner rank sends and how often it waits, for VideoCrafter2's UNet; and what that costs here.

    Counting needs neither weights nor GPUs. With --timed, UNet calls with the exchange and with a rank's own frames
    in its place take turns on real ranks; their ratio is the cost of synchronisation.
    """
    from vinfinity.config import parse_size

    with reported(debug=debug):
        width, height = parse_size(size)
        with held_interrupts():
            from vinfinity.bench import exchange as insight
            from vinfinity.models.unet3d.unet import UNetConfig
            from vinfinity.parallel.scopes import Scopes

        scopes = Scopes(local=local, anchors=anchors)
        latent = (-(-height // 8), -(-width // 8))
        traffic = [
            insight.count_traffic(
                UNetConfig(fps_cond=True), ranks=ranks, frames=count, latent=latent, scopes=scopes
            )
            for count in frames or (24, 288)
        ]
        print_columns(insight.traffic_table(traffic))
        typer.echo(
            "one UNet call of an inner rank, both guidance branches, fp16; no wait for the device in it"
        )
        timing = None
        if timed:
            timing = insight.time_exchange(model, ranks=timed, scopes=scopes, rounds=rounds, device=device)
            typer.echo()
            print_columns(insight.timing_table(timing))
        if out is not None:
            insight.write_json(out, traffic, timing)


@bench.command()
def memory(
    ranks: Annotated[int, typer.Option(metavar="N", help="Ranks that share the video.", min=1)] = 1,
    frames: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Frames on each rank; may be repeated. [64, 288, 576 and 2300]"),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Pixels of a frame.")] = "512x320",
    branches: Annotated[int, typer.Option(help="Guidance branches at once.", min=1, max=2)] = 1,
    stretch: Annotated[int, typer.Option(metavar="MiB", help="What a layer works on at once.", min=1)] = 32,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare a small call on the CPU with what a process really holds."),
    ] = False,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """What a step of VideoCrafter2 with guidance holds at most, in fp16, traced without weights or GPUs.

    With skip connections on the device, and in the host's memory.
    """
    from vinfinity.config import parse_size

    with reported(debug=debug):
        width, height = parse_size(size)
        with held_interrupts():
            from vinfinity.bench import memory as insight
            from vinfinity.denoise.execution import MIB, Execution
            from vinfinity.models.unet3d.unet import UNetConfig
            from vinfinity.parallel.scopes import Scopes

        footprints = [
            insight.trace_footprint(
                UNetConfig(fps_cond=True),
                ranks=ranks,
                frames=count,
                latent=(-(-height // 8), -(-width // 8)),
                scopes=Scopes(anchor_bias=10.0),
                execution=Execution(branches=branches, skips=skips, chunk_bytes=stretch * MIB),
            )
            for skips in ("device", "host")
            for count in frames or (64, 288, 576, 2300)
        ]
        print_columns(insight.footprint_table(footprints))
        checked = insight.check_footprint(frames=64, latent=(24, 32)) if check else None
        if checked is not None:
            typer.echo()
            print_columns(insight.check_table(checked))
        if out is not None:
            insight.write_json(out, footprints, checked)


@bench.command()
def decode(
    frames: Annotated[int, typer.Option(metavar="N", help="Length of the video.", min=1)] = 2000,
    model: Annotated[
        str, typer.Option(metavar="mini|FOLDER|NAME", help="The model whose latents are decoded.")
    ] = "mini",
    decoder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Another autoencoder than the model's own.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels of a frame. [those of the model]")
    ] = None,
    block: Annotated[
        int | None, typer.Option(metavar="N", help="As `decode.frames`. [by the size of a frame]", min=1)
    ] = None,
    tile: Annotated[int | None, typer.Option(metavar="PIXELS", help="As `decode.tile`. [none]")] = None,
    rounds: Annotated[int, typer.Option(help="Times that each is timed, in turn.", min=1)] = 1,
    device: Annotated[str, typer.Option(metavar="|".join(DEVICES), help="What to decode on.")] = "auto",
    out: Out = None,
    debug: Debug = False,
) -> None:
    """From random latents to an MP4: decoding alone, encoding alone, both at once, and memory on the way.

    Both at once is what a run does: the encoder works in a thread while the next block is decoded.
    """
    from vinfinity.config import DecodeConfig, parse_size

    with reported(debug=debug):
        pixels = None if size is None else parse_size(size)
        settings = DecodeConfig(frames=block, tile=tile)
        with held_interrupts():
            from vinfinity.bench import decode as insight

        figures = insight.measure_decoding(
            model,
            decoder=decoder,
            frames=frames,
            size=pixels,
            rounds=rounds,
            device=device,
            decode=settings,
        )
        print_columns(insight.decode_table(figures))
        if out is not None:
            insight.write_json(out, figures)
