"""Rows and alignment: which distribution belongs to which token."""

from __future__ import annotations

from tools.diagrams.drawing import Drawing

_PROMPT = ("import", "␣numpy", "␣as")
_COMPLETION = ("␣np", "↵", "import")
_GIVEN = ("… numpy as", "… as np", "… np ↵", "… ↵ import")
_LEFT, _STEP, _WIDTH = 34, 128, 108


def draw() -> Drawing:
    """Return a prompt, a completion, and below each of its tokens the row that speaks of it."""
    sheet = Drawing(960, 440, "Row i is the distribution of the completion's token i")
    columns = [_LEFT + _STEP * index for index in range(7)]
    sheet.text(columns[0], 36, "prompt", anchor="start", bold=True)
    sheet.text(columns[3], 36, "completion", anchor="start", bold=True)
    for index, token in enumerate((*_PROMPT, *_COMPLETION)):
        sheet.box(
            columns[index], 48, _WIDTH, 44, "blue" if index < 3 else "green", label=token, mono=True
        )
        sheet.text(columns[index] + _WIDTH / 2, 110, f"position {index}", dim=True, size=11.5)
        sheet.box(columns[index], 136, _WIDTH, 30, "grey", label="hidden state", size=11.5)
        sheet.arrow((columns[index] + _WIDTH / 2, 116), (columns[index] + _WIDTH / 2, 136))
    sheet.box(
        columns[6], 48, _WIDTH, 44, "open", label="whatever\ncomes next", dashed=True, size=12
    )
    for row, given in enumerate(_GIVEN):
        _row(sheet, columns, row, given)
    sheet.text(
        _LEFT, 392, "Entry i of every array is about the completion's token i. The prompt has no "
        "rows; there is no shift to apply and no sentinel to cut off.", anchor="start",
    )  # fmt: skip
    sheet.text(
        _LEFT, 414, "A row is computed from the hidden state one position earlier. Rows that a "
        "mask leaves out cost no head computation and do not travel.", anchor="start", dim=True,
    )  # fmt: skip
    return sheet


def _row(sheet: Drawing, columns: list[int], row: int, given: str) -> None:
    last = row == len(_COMPLETION)
    x = columns[3 + row]
    middle = x + _WIDTH / 2
    # Out of the hidden state before, over to this token's column.
    sheet.arrow((columns[2 + row] + _WIDTH / 2, 166), (middle, 214), colour="purple")
    name = "next_token" if last else f"row {row}"
    sheet.box(x, 214, _WIDTH, 62, "purple", dashed=last)
    sheet.text(middle, 237, name, bold=True)
    sheet.text(middle, 257, f"p(· | {given})", size=10.5, dim=True)
    if last:
        sheet.text(middle, 300, "one row more,", size=11.5, dim=True)
        sheet.text(middle, 316, "when asked for", size=11.5, dim=True)
        return
    sheet.text(middle, 300, f"logprobs[{row}]", mono=True, size=11.5)
    sheet.text(middle, 318, f"ranks[{row}]", mono=True, size=11.5)
    sheet.text(middle, 336, f"top_logprobs[{row}]", mono=True, size=9.6)
    token = _COMPLETION[row]
    sheet.text(middle, 356, f"of {token}", mono=True, size=11.5, dim=True)
