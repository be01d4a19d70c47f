"""A small writer of SVG pictures that are readable on light and on dark pages.

The background is transparent. Words outside of boxes are of a grey that stands out from white and from black alike.
"""

from dataclasses import dataclass, field
from html import escape

BLUE, ORANGE, GREEN, GREY = "#3374c4", "#c8671a", "#2f8a5b", "#7b8794"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass
class Picture:
    """A picture of a size in pixels; `title` is read out in its place."""

    title: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def add(self, element: str, text: str = "", **attributes: object) -> None:
        """Add an element; underscores in the names of attributes stand for hyphens."""
        listed = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        self.parts.append(f"<{element}{listed}>{escape(text)}</{element}>" if text else f"<{element}{listed}/>")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 17,
        colour: str = GREY,
        anchor: str = "middle",
        weight: int = 500,
    ) -> None:
        """One line of words, centred on the height `y`."""
        self.add(
            "text", words, x=x, y=y, fill=colour, font_size=size, font_weight=weight, text_anchor=anchor,
            dominant_baseline="central",
        )  # fmt: skip

    def box(self, x: float, y: float, width: float, height: float, words: str = "", colour: str = GREY) -> None:
        """A filled box with white words in it."""
        self.add("rect", x=x, y=y, width=width, height=height, rx=7, fill=colour)
        if words:
            self.text(x + width / 2, y + height / 2, words, colour="#ffffff", weight=600)

    def line(self, *points: tuple[float, float], colour: str = GREY, width: float = 2, dashed: bool = False) -> None:
        """A line through points."""
        listed = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashes = {"stroke_dasharray": "5 5"} if dashed else {}
        self.add("polyline", points=listed, fill="none", stroke=colour, stroke_width=width, **dashes)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, dashed: bool = False
    ) -> None:
        """A horizontal or vertical line with a head at its end."""
        (x, y), size = end, 7
        dx, dy = (x > start[0]) - (x < start[0]), (y > start[1]) - (y < start[1])
        self.line(start, (x - dx * size, y - dy * size), colour=colour, dashed=dashed)
        back, side = (x - dx * 1.6 * size, y - dy * 1.6 * size), (dy * size, dx * size)
        corners = [(x, y), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])]
        self.add("polygon", points=" ".join(f"{a:g},{b:g}" for a, b in corners), fill=colour)

    def unit(self, x: float, y: float, left: str, right: str = "", radius: float = 19) -> None:
        """A circle in one colour, or with halves of two."""
        self.add("circle", cx=x, cy=y, r=radius, fill=left)
        if right and right != left:
            half = f"M {x:g} {y - radius:g} A {radius} {radius} 0 0 1 {x:g} {y + radius:g} Z"
            self.add("path", d=half, fill=right)

    def svg(self) -> str:
        """The text of the file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="{FONT}">'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self.parts, "</svg>"]) + "\n"
