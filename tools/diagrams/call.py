"""The life of a call, from lane to lane."""

from __future__ import annotations

from tools.diagrams.drawing import Colour, Drawing

_CLIENT, _SERVER, _WORKER = 140, 470, 816

_STAGES: tuple[tuple[int, int, int, Colour, str], ...] = (
    (_CLIENT, 66, 204, "blue", "Divide the call into parts\nof preferred_tokens_per_call,\ngroups whole, seeds fixed"),
    (_SERVER, 66, 248, "blue", "Validate: unknown fields, ranges,\nExpect, temperature and truncation\nresolved and echoed"),
    (_SERVER, 154, 248, "amber", "Admit: queue bounded in tokens and\nreply bytes, fair among callers;\nprogress every 15 s while it waits"),
    (_SERVER, 242, 248, "amber", "Route: the worker that holds the\nprefix, else the one with the\nfewest tokens to do"),
    (_WORKER, 242, 212, "green", "Steps: packed segments under\na token budget; wanted rows\nthrough the head"),
    (_WORKER, 334, 212, "green", "A chunk is done: its rows go\nout, nobody waits for the\nlongest sequence"),
    (_SERVER, 334, 248, "blue", "Stream slices of about 1 MiB, with\nprovenance first and a summary last;\nno credit, no further segments"),
    (_CLIENT, 334, 204, "blue", "Check for gaps, join the\nslices, yield in the\ncaller's own indices"),
)  # fmt: skip
"""Middle, top, width, colour and words of each box."""


def draw() -> Drawing:
    """Return three lanes with what happens in each, and the ways out at the bottom."""
    sheet = Drawing(960, 616, "The life of a call: client, process that serves gRPC, worker")
    for x, width, name in (
        (_CLIENT, 232, "client"), (_SERVER, 276, "process that serves gRPC"), (_WORKER, 240, "worker")
    ):  # fmt: skip
        sheet.box(x - width / 2, 24, width, 414, "open")
        sheet.text(x, 48, name, bold=True)
    for x, y, width, colour, label in _STAGES:
        sheet.box(x - width / 2, y, width, 72, colour, label=label, size=12)
    sheet.arrow((242, 102), (346, 102), colour="blue")
    sheet.text(294, 94, "Score", size=11.5, mono=True)
    for y in (138, 226):
        sheet.arrow((_SERVER, y), (_SERVER, y + 16), colour="grey")
    sheet.arrow((594, 278), (710, 278), colour="blue")
    sheet.arrow((_WORKER, 314), (_WORKER, 334), colour="grey")
    sheet.arrow((710, 370), (594, 370), colour="green")
    sheet.arrow((346, 370), (242, 370), colour="green")
    sheet.arrow((_CLIENT, 334), (_CLIENT, 138), colour="grey", dashed=True)
    sheet.text(_CLIENT + 8, 232, "next part", anchor="start", size=11.5, dim=True)
    _ways_out(sheet)
    return sheet


def _ways_out(sheet: Drawing) -> None:
    sheet.text(24, 470, "When something goes wrong", anchor="start", bold=True)
    ways = (
        (
            "no room",
            "RESOURCE_EXHAUSTED\nand RetryInfo: the client waits\nas long as it was told",
        ),
        (
            "a worker dies",
            "what it owed goes to\nanother one; rows that were\nsent are not sent again",
        ),
        (
            "a server dies or drains",
            "the client sends what is\nunfinished to another server,\nsamples under their seeds",
        ),
        (
            "one item is wrong",
            "it fails alone, with the path\nof the field; the others\nare answered",
        ),
        ("the caller leaves", "queue, pages and computing\ncapacity are free again\nwithin a step"),
    )
    for number, (name, what) in enumerate(ways):
        x = 24 + number * 183.5
        sheet.box(x, 484, 178, 106, "purple")
        sheet.text(x + 89, 508, name, bold=True, size=12.5)
        for line, words in enumerate(what.split("\n")):
            sheet.text(x + 89, 534 + line * 17, words, size=11)
