"""The path of a run, from configuration to MP4."""

from scripts.figures.svg import Drawing

LEFT = 36.0


def box(d: Drawing, x: float, y: float, width: float, lines: tuple[str, ...], style: str = "box") -> None:
    """Return a box with centred lines, the first of them bold."""
    d.rect(x, y, width, 50, style, radius=5)
    for index, line in enumerate(lines):
        row = y + 30 + (index - (len(lines) - 1) / 2) * 17
        d.text(x + width / 2, row, line, "strong" if index == 0 else "muted", size=13, anchor="middle")


def figure() -> str:
    """Return the SVG."""
    d = Drawing(
        760, 372, "A run: configuration, checked job, ranks, denoising loop, latents on disk, decoding, MP4."
    )
    d.text(LEFT, 36, "A run, from configuration to MP4", "strong", size=17)
    top = 58.0
    for index, (name, what) in enumerate(
        (
            ("config", "settings merged"),
            ("job", "checked once"),
            ("ranks", "one per GPU"),
            ("prompt", "text states"),
            ("noise", "by frame"),
        )
    ):
        x = LEFT + index * 140
        box(d, x, top, 120, (name, what))
        if index:
            d.arrow(x - 19, top + 25, x - 2, top + 25)
    d.path(f"M{LEFT + 620:g} {top + 50:g}V{top + 84:g}", "line")
    d.head(LEFT + 620, top + 86, 0, 1)
    loop = top + 88
    d.rect(LEFT, loop, 688, 112, "outline", radius=8, stroke_dasharray="5 4", stroke_width="1.2")
    d.text(LEFT + 14, loop + 24, "every step, on every rank", "muted", size=13)
    for index, (name, what) in enumerate(
        (
            ("checkpoint", "where due"),
            ("step", "the sampler"),
            ("guidance", "two branches"),
            ("vote", "all ranks agree"),
            ("UNet", "sends frames"),
        )
    ):
        x = LEFT + 14 + index * 135
        box(d, x, loop + 44, 120, (name, what))
        if index:
            d.arrow(x - 2, loop + 69, x - 13, loop + 69)
    below = loop + 112
    d.path(f"M{LEFT + 60:g} {below:g}V{below + 30:g}", "line")
    d.head(LEFT + 60, below + 32, 0, 1)
    for index, (name, what) in enumerate(
        (
            ("latents", "on disk, as parts"),
            ("decode", "in blocks"),
            ("encode", "in the background"),
            ("NAME.mp4", "second by second"),
        )
    ):
        x = LEFT + index * 184
        box(d, x, below + 34, 136, (name, what))
        if index:
            d.arrow(x - 47, below + 59, x - 2, below + 59)
    return d.svg()
