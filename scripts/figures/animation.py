"""Turn a video into the looping WebP of the README.

vinfinity generate -p "a blue ball bouncing over white snow" --frames 64 --seed 1 --out build/ball.mp4
python -m scripts.figures.animation build/ball.mp4 docs/images/animation.webp
"""

import argparse
from pathlib import Path

import av
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn a video into a looping WebP.")
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=320, help="width in pixels (320)")
    parser.add_argument("--quality", type=int, default=80, help="quality of WebP, up to 100 (80)")
    given = parser.parse_args()
    with av.open(str(given.video)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 8)
        frames = [frame.to_image() for frame in container.decode(stream)]
    height = round(given.width * frames[0].height / frames[0].width)
    first, *rest = [frame.resize((given.width, height), Image.Resampling.LANCZOS) for frame in frames]
    first.save(
        given.out,
        save_all=True,
        append_images=rest,
        duration=round(1000 / rate),
        loop=0,
        quality=given.quality,
        method=6,
    )
    print(
        f"{given.out}: {len(frames)} frames of {given.width}x{height}, {given.out.stat().st_size / 1000:.0f} kB"
    )


if __name__ == "__main__":
    main()
