"""What one temporal transformer computes and sends, in order, on one rank."""

from scripts.figures.svg import Drawing

LEFT = 36.0


def figure() -> str:
    """Return the SVG."""
    d = Drawing(
        760,
        330,
        "One temporal transformer on one rank: two messages, the second one in transit while queries, keys and "
        "values are computed.",
    )
    d.text(LEFT, 36, "One temporal transformer, as one rank sees it", "strong", size=17)
    compute, network, height = 78.0, 186.0, 46.0
    d.text(LEFT, compute - 12, "this rank computes", "muted", size=13)
    d.text(LEFT + 54, network - 12, "messages", "muted", size=13)
    steps = (
        # x, width, lines, style
        (0, 84, ("sums of", "the norm"), "blue"),
        (196, 88, ("normalise,", "project"), "blue"),
        (290, 92, ("attention 1", ""), "blue"),
        (388, 104, ("own queries,", "keys, values"), "blue"),
        (516, 92, ("attention 2", ""), "blue"),
        (614, 74, ("feed-", "forward"), "blue"),
    )
    for x, width, lines, style in steps:
        d.rect(LEFT + x, compute, width, height, style, radius=4)
        shown = [line for line in lines if line]
        for index, line in enumerate(shown):
            y = compute + height / 2 + 5 + (index - (len(shown) - 1) / 2) * 17
            d.text(LEFT + x + width / 2, y, line, "on", size=13, anchor="middle")
    messages = (
        (90, 100, ("frames before the", "norm, and its sums"), "orange"),
        (388, 122, ("frames", ""), "orange"),
    )
    for x, width, lines, style in messages:
        d.rect(LEFT + x, network, width, 14, style, radius=3)
        for index, line in enumerate(line for line in lines if line):
            d.text(LEFT + x + width / 2, network + 34 + 17 * index, line, size=13, anchor="middle")
    for start, stop in ((42, 90), (190, 240), (340, 388), (510, 562)):
        down = start in (42, 340)
        if down:
            d.path(f"M{LEFT + start:g} {compute + height:g}V{network + 7:g}H{LEFT + stop - 3:g}", "line")
            d.head(LEFT + stop - 1, network + 7, 1, 0)
        else:
            d.path(f"M{LEFT + start:g} {network + 7:g}H{LEFT + stop:g}V{compute + height + 4:g}", "line")
            d.head(LEFT + stop, compute + height + 1, 0, -1)
    d.text(
        LEFT,
        268,
        "Message 1 is a barrier: nothing exact can be computed before the statistics are known.",
        size=13,
    )
    d.text(LEFT, 288, "Message 2 overlaps with the projections of this rank's own frames.", size=13)
    d.text(
        LEFT,
        308,
        "Receivers project the frames to keys and values themselves, which halves the bytes.",
        size=13,
    )
    return d.svg()
