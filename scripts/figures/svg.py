"""A small SVG canvas whose figures follow the light or dark theme of the page that shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

# Four ranks: the same hues on both themes.
RANKS = ("blue", "green", "orange", "purple")

STYLE = """
  .panel { fill: #ffffff; stroke: #d0d7de; }
  .box { fill: #f3f5f8; stroke: #d0d7de; }
  text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .muted { fill: #59636e; }
  .strong { font-weight: 600; }
  .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
  .line { fill: none; stroke: #59636e; }
  .grid { fill: none; stroke: #d0d7de; }
  .arrow { fill: #59636e; }
  .ink { fill: #1f2328; }
  .outline { fill: none; stroke: #1f2328; }
  .blue { fill: #3b82d6; } .green { fill: #2f9e63; } .orange { fill: #dd8420; } .purple { fill: #8b5cd0; }
  .red { fill: #d1344b; } .gray { fill: #c3cad2; }
  .line-blue { fill: none; stroke: #3b82d6; } .line-green { fill: none; stroke: #2f9e63; }
  .line-orange { fill: none; stroke: #dd8420; } .line-purple { fill: none; stroke: #8b5cd0; }
  .line-red { fill: none; stroke: #d1344b; }
  .on { fill: #ffffff; }
  .halo { stroke: #59636e; stroke-dasharray: 2 2; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #151a21; stroke: #363d47; }
    .box { fill: #1f262f; stroke: #363d47; }
    text, .ink { fill: #e6edf3; }
    .muted { fill: #9aa4af; }
    .line { stroke: #9aa4af; }
    .grid { stroke: #363d47; }
    .arrow { fill: #9aa4af; }
    .outline { stroke: #e6edf3; }
    .gray { fill: #48515c; }
    .halo { stroke: #9aa4af; }
  }
""".strip("\n")


def number(value: float) -> str:
    """Return a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass
class Drawing:
    """Shapes on a panel of its own background, so that the figure can stand on any page. Lengths are in pixels."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, *, radius: float = 2, **more: str
    ) -> None:
        """Return a rectangle with rounded corners. style: classes of STYLE; more: other attributes, `_` for `-`."""
        self._add("rect", style, more, x=x, y=y, width=width, height=height, rx=radius)

    def text(
        self, x: float, y: float, text: str, style: str = "", *, size: float = 14, anchor: str = "start"
    ) -> None:
        """Return a line of text. anchor: start, middle or end of the text is at x; y is its baseline."""
        self.parts.append(
            f'<text x="{number(x)}" y="{number(y)}" font-size="{number(size)}" text-anchor="{anchor}"'
            f"{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{escape(text)}</text>"
        )

    def path(self, d: str, style: str, *, stroke: float = 1.5, **more: str) -> None:
        """Return a path of SVG commands. more: other attributes, such as stroke_dasharray."""
        self._add("path", style, {"d": d, **more}, stroke_width=stroke)

    def line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        style: str = "line",
        *,
        stroke: float = 1.5,
        **more: str,
    ) -> None:
        """Return a straight line."""
        self.path(f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", style, stroke=stroke, **more)

    def circle(self, x: float, y: float, radius: float, style: str) -> None:
        """Return a filled circle."""
        self._add("circle", style, {}, cx=x, cy=y, r=radius)

    def arrow(
        self, x1: float, y1: float, x2: float, y2: float, style: str = "line", head: str = "arrow"
    ) -> None:
        """Return a straight arrow with its head at (x2, y2)."""
        self.line(x1, y1, x2, y2, style)
        self.head(x2, y2, x2 - x1, y2 - y1, head)

    def head(
        self, x: float, y: float, dx: float, dy: float, style: str = "arrow", *, size: float = 7
    ) -> None:
        """Return the head of an arrow that ends at (x, y) in the direction (dx, dy)."""
        length = (dx * dx + dy * dy) ** 0.5
        ux, uy = dx / length, dy / length
        points = [
            (x, y),
            (x - size * ux + size * 0.5 * uy, y - size * uy - size * 0.5 * ux),
            (x - size * ux - size * 0.5 * uy, y - size * uy + size * 0.5 * ux),
        ]
        self._add("polygon", style, {"points": " ".join(f"{number(a)},{number(b)}" for a, b in points)})

    def _add(self, tag: str, style: str, more: Mapping[str, str], **lengths: float) -> None:
        given = {name: number(value) for name, value in lengths.items()} | {"class": style, **more}
        attributes = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in given.items())
        self.parts.append(f"<{tag} {attributes}/>")

    def svg(self) -> str:
        """Return the file's text."""
        w, h = number(self.width), number(self.height)
        panel = (
            f'<rect x="0.5" y="0.5" width="{number(self.width - 1)}" height="{number(self.height - 1)}" '
            'rx="8" class="panel"/>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
            f'aria-label="{escape(self.title)}">\n<title>{escape(self.title)}</title>\n<style>\n{STYLE}\n</style>\n'
        )
        return head + "\n".join([panel, *self.parts]) + "\n</svg>\n"
