"""The rooms of the service and who talks to whom."""

from __future__ import annotations

from tools.diagrams.drawing import Colour, Drawing


def draw() -> Drawing:
    """Return clients, replicas, the process that serves gRPC, and its workers."""
    sheet = Drawing(960, 520, "Clients, the process that serves gRPC, and worker processes")
    _clients(sheet)
    # The replicas behind the first one.
    sheet.box(282, 30, 654, 462, "open", dashed=True)
    sheet.box(272, 40, 654, 462, "open", dashed=True)
    sheet.box(262, 50, 654, 452, "grey")
    sheet.text(280, 74, "a replica: a pod behind a headless service", anchor="start", bold=True)
    _serving_process(sheet)
    _workers(sheet)
    sheet.arrow((212, 232), (284, 232), colour="blue")
    sheet.arrow((284, 256), (212, 256), colour="green")
    sheet.text(237, 224, "parts", size=11)
    sheet.text(237, 274, "slices", size=11)
    return sheet


def _clients(sheet: Drawing) -> None:
    sheet.text(34, 74, "trainers", anchor="start", bold=True)
    rooms = (
        ("scoring_client\nsync and async", "blue"),
        ("adapters: TRL, verl,\nTinker, prime-rl, lm-eval", "blue"),
        ("any gRPC client,\ngrpcurl", "blue"),
    )
    for number, (label, colour) in enumerate(rooms):
        sheet.box(34, 130 + number * 82, 178, 62, _colour(colour), label=label, size=12)
    sheet.text(34, 398, "A large call is divided into", anchor="start", dim=True, size=12)
    sheet.text(34, 416, "parts, round robin over the", anchor="start", dim=True, size=12)
    sheet.text(34, 434, "replicas; what one that dies", anchor="start", dim=True, size=12)
    sheet.text(34, 452, "owed goes to another.", anchor="start", dim=True, size=12)


def _serving_process(sheet: Drawing) -> None:
    sheet.box(284, 92, 262, 392, "open")
    sheet.text(298, 114, "process that serves gRPC (no torch)", anchor="start", size=12, bold=True)
    rooms = (
        ("rpc", "validation, status, TLS,\ntokens, health, reflection", "blue"),
        ("pool: admission", "queue bounded in tokens and\nbytes, fair among callers", "amber"),
        ("pool: routing", "prefix first, then least to do;\nretry when a worker dies", "amber"),
        ("telemetry", "metrics, traces, usage,\nself-audit", "grey"),
    )
    for number, (name, label, colour) in enumerate(rooms):
        y = 132 + number * 86
        sheet.box(298, y, 234, 72, _colour(colour))
        sheet.text(415, y + 20, name, bold=True)
        for line, words in enumerate(label.split("\n")):
            sheet.text(415, y + 40 + 16 * line, words, size=12, dim=True)


def _workers(sheet: Drawing) -> None:
    sheet.box(652, 102, 254, 382, "open", dashed=True)
    sheet.box(642, 92, 254, 382, "grey")
    sheet.text(656, 114, "worker process: one a device", anchor="start", size=12, bold=True)
    rooms = (
        ("scheduler", "steps under a token budget:\nscoring, prompts, decoding", "green"),
        ("model body", "any Hugging Face causal LM,\npacked, without its head", "green"),
        ("KV pages, prefix cache", "16 tokens a page; a prompt is\ncomputed once", "green"),
        ("head and kernels", "a tile of fp32 logits, read\nonce; exact sampler", "purple"),
    )
    for number, (name, label, colour) in enumerate(rooms):
        y = 128 + number * 84
        sheet.box(656, y, 226, 72, _colour(colour))
        sheet.text(769, y + 20, name, bold=True)
        for line, words in enumerate(label.split("\n")):
            sheet.text(769, y + 40 + 16 * line, words, size=12, dim=True)
    sheet.arrow((546, 250), (642, 250), colour="blue")
    sheet.arrow((642, 290), (546, 290), colour="green")
    sheet.text(594, 240, "segments", size=11)
    sheet.text(594, 308, "rows, tokens", size=11)


def _colour(name: str) -> Colour:
    return name  # type: ignore[return-value]  # spelled above
