"""The segment tree of a prompt group, seams, and how it is packed into steps."""

from __future__ import annotations

from itertools import pairwise

from tools.diagrams.drawing import Drawing


def draw() -> Drawing:
    """Return the tree above, the packed steps and the padded batch below."""
    sheet = Drawing(960, 560, "A prompt is computed once; segments end only on seams")
    _tree(sheet)
    _steps(sheet)
    _padded(sheet)
    return sheet


def _tree(sheet: Drawing) -> None:
    sheet.text(30, 36, "A prompt group is a tree of segments", anchor="start", bold=True)
    scale, x0 = 2.6, 30.0
    # 150 tokens of prompt with chunks of 64: seams at 64, 128 and the prompt's end.
    edges = (0, 64, 128, 150)
    for first, last in pairwise(edges):
        sheet.box(
            x0 + first * scale, 116, (last - first) * scale - 4, 36, "blue",
            label=f"prompt {first} to {last - 1}" if last - first > 30 else "to 149", size=11.5,
        )  # fmt: skip
    end = x0 + 150 * scale
    for number, length in enumerate((42, 106, 74, 90)):
        y = 56 + number * 44
        first = min(length, 42)  # The next multiple of 64 is 192.
        sheet.line((end - 4, 134), (end + 14, 134), (end + 14, y + 16), (end + 26, y + 16))
        sheet.box(
            end + 26, y, first * scale - 4, 32, "green", label=f"completion {number}", size=11
        )
        if length > first:
            sheet.box(
                end + 26 + first * scale, y, (length - first) * scale - 4, 32, "green",
                label="next chunk", size=11,
            )  # fmt: skip
    for place, words in (
        (64, "seam at 64"),
        (128, "seam at 128"),
        (150, "and at the prompt's end"),
    ):
        x = x0 + place * scale - 2
        sheet.line((x, 104), (x, 172), colour="amber", dashed=True)
        if place == 150:
            sheet.text(x, 98, words, anchor="end", size=11, dim=True)
        else:
            sheet.text(x, 190, words, size=11, dim=True)
    sheet.line(
        (end + 24 + 42 * scale, 48), (end + 24 + 42 * scale, 232), colour="amber", dashed=True
    )
    sheet.text(end + 24 + 42 * scale, 246, "seam at 192", size=11, dim=True)


def _steps(sheet: Drawing) -> None:
    sheet.text(
        30, 288, "Steps: one forward pass over whatever is due, under a token budget; no padding",
        anchor="start", bold=True,
    )  # fmt: skip
    steps = (
        (("prompt 0 to 63", 150, "blue"), ("64 to 127", 150, "blue"), ("to 149", 52, "blue"),
         ("another call's chunk", 164, "grey"), ("", 16, "purple"), ("", 16, "purple")),
        (("completion 0", 98, "green"), ("completion 1", 98, "green"), ("completion 2", 98, "green"),
         ("completion 3", 98, "green"), ("1", 150, "green"), ("", 16, "purple"), ("", 16, "purple")),
    )  # fmt: skip
    for number, parts in enumerate(steps):
        y, x = 302 + number * 46, 100.0
        sheet.text(30, y + 22, f"step {number + 1}", anchor="start", size=12)
        for label, width, colour in parts:
            sheet.box(x, y, width, 34, colour, label=label, size=11)  # type: ignore[arg-type]
            x += width + 4
        if number == 0:
            sheet.text(
                x + 8,
                y + 22,
                "purple: decode steps, a token each",
                anchor="start",
                size=11.5,
                dim=True,
            )
        else:
            sheet.text(x + 8, y + 22, "the rest in step 3", anchor="start", size=11.5, dim=True)


def _padded(sheet: Drawing) -> None:
    sheet.text(
        30, 426, "The same in a padded batch: four prompts, and what is dashed is computed for nothing",
        anchor="start", bold=True,
    )  # fmt: skip
    for number, length in enumerate((42, 106, 74, 90)):
        y = 440 + number * 26
        sheet.box(100, y, 285, 20, "blue", label="prompt", size=10)
        width = length * 1.9
        sheet.box(389, y, width, 20, "green", label=f"completion {number}", size=10)
        if length < 106:
            sheet.box(393 + width, y, 106 * 1.9 - width - 4, 20, "grey", dashed=True)
    sheet.text(614, 462, "Whether a row came alone or in a crowd, cold or", anchor="start", size=12)
    sheet.text(
        614, 480, "cached, its segments are these: equal bits, on a", anchor="start", size=12
    )
    sheet.text(614, 498, "CPU by default.", anchor="start", size=12)
