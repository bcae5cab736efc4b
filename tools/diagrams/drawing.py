"""A sheet to draw on, in plain SVG that follows the reader's light or dark theme."""

from __future__ import annotations

from html import escape
from typing import Literal

Theme = Literal["light", "dark"]
Colour = Literal["blue", "green", "amber", "purple", "grey", "open"]

# GitHub's own colours: of what is drawn on, text, quiet text, lines; then fill and stroke of boxes.
_PALETTES: dict[Theme, dict[str, str]] = {
    "light": {
        "sheet": "#ffffff", "edge": "#d1d9e0", "ink": "#1f2328", "dim": "#59636e",
        "blue": "#ddf4ff", "blue-line": "#0969da", "green": "#dafbe1", "green-line": "#1a7f37",
        "amber": "#fff8c5", "amber-line": "#9a6700", "purple": "#fbefff", "purple-line": "#8250df",
        "grey": "#f6f8fa", "grey-line": "#818b98", "open": "none", "open-line": "#818b98",
    },
    "dark": {
        "sheet": "#0d1117", "edge": "#3d444d", "ink": "#f0f6fc", "dim": "#9198a1",
        "blue": "#10243e", "blue-line": "#4493f8", "green": "#12261e", "green-line": "#3fb950",
        "amber": "#2a2210", "amber-line": "#d29922", "purple": "#241935", "purple-line": "#ab7df8",
        "grey": "#151b23", "grey-line": "#656c76", "open": "none", "open-line": "#656c76",
    },
}  # fmt: skip
_BOXES = ("blue", "green", "amber", "purple", "grey", "open")
_SANS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
_MONO = "ui-monospace, SFMono-Regular, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Drawing:
    """Boxes, words and arrows, in pixels from the upper left.

    Args:
        width: Of the sheet.
        height: Of the sheet.
        title: What it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = (width, height)
        self._title = title
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colour: Colour = "grey",
        *,
        label: str = "",
        mono: bool = False,
        dashed: bool = False,
        size: float = 13,
    ) -> None:
        """Draw a box, with lines of text in its middle."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect class="{colour}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="6"{dash}/>'
        )
        lines = label.split("\n") if label else []
        top = y + height / 2 - (len(lines) - 1) * size * 0.65 + size * 0.35
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * size * 1.3, line, mono=mono, size=size)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: Literal["start", "middle", "end"] = "middle",
        size: float = 13,
        dim: bool = False,
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Write one line whose foot is at y."""
        classes = ("dim" if dim else "ink") + (" mono" if mono else "")
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text class="{classes}" x="{x:g}" y="{y:g}" text-anchor="{anchor}" '
            f'font-size="{size:g}"{weight}>{escape(words, quote=False)}</text>'
        )

    def arrow(
        self, *points: tuple[float, float], colour: Colour = "grey", dashed: bool = False
    ) -> None:
        """Draw a line from point to point that ends in a head."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        self.line(*points[:-1], (x1 - 6 * dx, y1 - 6 * dy), colour=colour, dashed=dashed)
        back_x, back_y = x1 - 9 * dx, y1 - 9 * dy
        corners = ((x1, y1), (back_x - 4 * dy, back_y + 4 * dx), (back_x + 4 * dy, back_y - 4 * dx))
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        self._parts.append(f'<polygon class="{colour}-head" points="{places}"/>')

    def line(
        self, *points: tuple[float, float], colour: Colour = "grey", dashed: bool = False
    ) -> None:
        """Draw a line from point to point."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="{colour}-rule" points="{places}"{dash}/>')

    def svg(self, theme: Theme | None = None) -> str:
        """Return the file; ``theme`` fixes one, for programs that know no media queries."""
        width, height = self._size
        style = _style(theme or "light")
        if theme is None:
            style += f"@media (prefers-color-scheme: dark) {{\n{_style('dark')}}}\n"
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="{_SANS}">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{style}</style>\n"
            f'<rect class="sheet" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" '
            f'rx="10"/>\n{body}\n</svg>\n'
        )


def _style(theme: Theme) -> str:
    colours = _PALETTES[theme]
    rules = [
        f".sheet {{ fill: {colours['sheet']}; stroke: {colours['edge']}; }}",
        f".ink {{ fill: {colours['ink']}; }}",
        f".dim {{ fill: {colours['dim']}; }}",
        f".mono {{ font-family: {_MONO}; }}",
    ]
    for name in _BOXES:
        fill, stroke = colours[name], colours[f"{name}-line"]
        rules += [
            f".{name} {{ fill: {fill}; stroke: {stroke}; stroke-width: 1.3; }}",
            f".{name}-rule {{ fill: none; stroke: {stroke}; stroke-width: 1.5; }}",
            f".{name}-head {{ fill: {stroke}; }}",
        ]
    return "\n".join(rules) + "\n"
