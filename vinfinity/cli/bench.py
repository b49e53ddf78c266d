"""Commands that measure."""

from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.options import DEVICES
from vinfinity.cli.output import Debug, held_interrupts, print_columns, reported

bench = typer.Typer(help="Measure what a run takes.", no_args_is_help=True)


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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the figures here.")
    ] = None,
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
            from vinfinity.insight import exchange as insight
            from vinfinity.models.unet import UNetConfig
            from vinfinity.parallel.context import Scopes

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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the figures here.")
    ] = None,
    debug: Debug = False,
) -> None:
    """What a step of VideoCrafter2 with guidance holds at most, in fp16, traced without weights or GPUs.

    With skip connections on the device, and in the host's memory.
    """
    from vinfinity.config import parse_size

    with reported(debug=debug):
        width, height = parse_size(size)
        with held_interrupts():
            from vinfinity.execution import MIB, Execution
            from vinfinity.insight import memory as insight
            from vinfinity.models.unet import UNetConfig
            from vinfinity.parallel.context import Scopes

        footprints = [
            insight.trace_footprint(
                UNetConfig(fps_cond=True),
                ranks=ranks,
                frames=count,
                latent=(-(-height // 8), -(-width // 8)),
                scopes=Scopes(anchor_bias=10.0),
                execution=Execution(branches=branches, skips=skips, stretch=stretch * MIB),
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the figures here.")
    ] = None,
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
            from vinfinity.insight import decode as insight

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
