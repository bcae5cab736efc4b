"""Streams of weights and requests for files: right, nearly right, and damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from scoring_client.proto import admin_pb2, weights_pb2
from scoring_service.models import tiny_model_path
from tests.chaos.fuzzing import mangled
from tests.chaos.weight_model import Weights, dtype_of

_SHORT = 1 << 16
"""Bytes of a tensor that is small: updates of a part of the weights are mostly of these."""

_UNKNOWN_FIELD = b"\xf8\x06\x01"


@dataclass(frozen=True)
class Push:
    """A stream as it goes over the wire."""

    messages: list[bytes]
    hang_up: int | None = None
    """Messages after which the caller leaves; None = it stays."""
    abort: int | None = None
    """Messages after which somebody gives the update up."""


def push(rng: random.Random, running: Weights) -> Push:
    """A stream: in a third of the cases the server has to take it."""
    options = _options(rng, running)
    steps: list[Any] = [_begin(rng, options), *_parts(rng, running, options), _commit(rng)]
    if rng.random() < 0.3:
        return Push(_bytes(steps))
    if rng.random() < 0.15:
        place = rng.randrange(len(steps) + 1)
        return Push(_bytes(steps), **{rng.choice(("hang_up", "abort")): place})
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(_DAMAGES)(rng, steps, running)
    messages = _bytes(steps)
    # What a bit makes of a number that is converted is not foretold here.
    if messages and not options.convert_dtypes and rng.random() < 0.3:
        place = rng.randrange(len(messages))
        damaged = messages[place] + _UNKNOWN_FIELD
        messages[place] = damaged if rng.random() < 0.2 else mangled(rng, messages[place])
    return Push(messages)


def _bytes(steps: list[Any]) -> list[bytes]:
    return [step.SerializeToString() for step in steps]


def _options(rng: random.Random, running: Weights) -> weights_pb2.WeightUpdateOptions:
    options = weights_pb2.WeightUpdateOptions(
        version=running.version + rng.choice((1, 1, 2, 7)),
        partial=rng.random() < 0.7,
        convert_dtypes=rng.random() < 0.2,
        running_samples=rng.choice(weights_pb2.RunningSamples.values()),
        staging=rng.choice(weights_pb2.StagingMode.values()),
    )
    if rng.random() < 0.2:
        options.base_version = running.version
    return options


def _begin(rng: random.Random, options: Any) -> admin_pb2.PushWeightsRequest:
    model = rng.choice(("", "", "tiny"))
    return admin_pb2.PushWeightsRequest(
        begin=admin_pb2.PushWeightsBegin(model=model, options=options)
    )


def _commit(rng: random.Random) -> admin_pb2.PushWeightsRequest:
    digest = rng.choice(("", "", "", "", "", "", "0" * 64))
    return admin_pb2.PushWeightsRequest(commit=admin_pb2.PushWeightsCommit(weights_digest=digest))


def _parts(
    rng: random.Random, running: Weights, options: weights_pb2.WeightUpdateOptions
) -> list[admin_pb2.PushWeightsRequest]:
    names = sorted(running.tensors)
    if options.partial:
        few = [n for n in names if len(running.tensors[n]) <= _SHORT or rng.random() < 0.05]
        names = sorted(rng.sample(few, rng.randint(0, min(5, len(few)))))
    if rng.random() < 0.5:
        rng.shuffle(names)
    whole = [_chunk(rng, running, name, options.convert_dtypes) for name in names]
    chunks = [piece for chunk in whole for piece in _pieces(rng, chunk)]
    parts = []
    while chunks:
        count = rng.choice((1, 1, 2, 5))
        part = admin_pb2.PushWeightsPart(chunks=chunks[:count])
        parts.append(admin_pb2.PushWeightsRequest(part=part))
        del chunks[:count]
    return parts


def _chunk(
    rng: random.Random, running: Weights, name: str, converts: bool
) -> weights_pb2.WeightChunk:
    spec = running.specs[name]
    dtype = rng.choice(("float16", "float32", "float64")) if converts else dtype_of(spec)
    if converts:
        drawn = np.random.default_rng(rng.randrange(2**32)).standard_normal(prod(spec.shape))
        data = drawn.astype(np.float32).astype(dtype).tobytes()
    else:
        held = running.tensors[name]
        turn = 2 * rng.randrange(len(held) // 2) if rng.random() < 0.5 else 0
        data = held[turn:] + held[:turn]
    tied = [other.name for other in running.specs.values() if other.tied_to == name]
    value = weights_pb2.WeightDataType.Value(f"WEIGHT_DATA_TYPE_{dtype.upper()}")
    return weights_pb2.WeightChunk(
        name=rng.choice([name, *tied]), dtype=value, shape=spec.shape, data=data
    )


def _pieces(rng: random.Random, chunk: weights_pb2.WeightChunk) -> list[weights_pb2.WeightChunk]:
    """The tensor in up to four chunks, which may end within an element."""
    places = sorted(rng.randrange(1, len(chunk.data)) for _ in range(rng.choice((0, 0, 1, 3))))
    found = []
    for start, end in zip([0, *places], [*places, len(chunk.data)], strict=True):
        if start < end:
            piece = weights_pb2.WeightChunk()
            piece.CopyFrom(chunk)
            piece.offset, piece.data = start, chunk.data[start:end]
            found.append(piece)
    return found


# What goes wrong. Each takes the stream, which has a message at least, and the running weights.

Damage = Callable[[random.Random, list[Any], Weights], None]


def _leave_out(rng: random.Random, steps: list[Any], _running: Weights) -> None:
    if len(steps) > 1:
        del steps[rng.randrange(len(steps))]


def _double(rng: random.Random, steps: list[Any], _running: Weights) -> None:
    place = rng.randrange(len(steps))
    steps.insert(rng.randrange(len(steps) + 1), steps[place])


def _swap(rng: random.Random, steps: list[Any], _running: Weights) -> None:
    left, right = rng.randrange(len(steps)), rng.randrange(len(steps))
    steps[left], steps[right] = steps[right], steps[left]


def _end_early(rng: random.Random, steps: list[Any], _running: Weights) -> None:
    del steps[rng.randint(1, len(steps)) :]


def _insert_empty(rng: random.Random, steps: list[Any], _running: Weights) -> None:
    empty = rng.choice(
        (
            admin_pb2.PushWeightsRequest(),
            admin_pb2.PushWeightsRequest(part=admin_pb2.PushWeightsPart()),
            admin_pb2.PushWeightsRequest(begin=admin_pb2.PushWeightsBegin()),
            admin_pb2.PushWeightsRequest(commit=admin_pb2.PushWeightsCommit()),
        )
    )
    steps.insert(rng.randrange(len(steps) + 1), empty)


def _spoil_chunk(rng: random.Random, steps: list[Any], running: Weights) -> None:
    chunks = [chunk for step in steps for chunk in step.part.chunks]
    if not chunks:
        return
    chunk = rng.choice(chunks)
    data = chunk.data
    # Random bytes are NaN now and then, and which NaN one is converted to is not said anywhere.
    is_own = dtype_of(chunk) == "bfloat16"
    change: tuple[str, Any] = rng.choice(
        (
            ("name", rng.choice(["", "\x00", "model.norm.wieght", "x" * 5000, *running.specs])),
            ("dtype", rng.choice([*weights_pb2.WeightDataType.values(), 99, -1])),
            ("offset", rng.choice([-(2**63), -1, 1, chunk.offset + 2, 2**63 - 1])),
            ("data", rng.choice([b"", data[:-1], data + b"\x00", data * 2, rng.randbytes(9)])),
            ("data", rng.randbytes(len(data)) if is_own else data[2:]),
            ("shape", rng.choice([[], [-1], [2**62, 4], [*chunk.shape, 1], chunk.shape[::-1]])),
        )
    )  # fmt: skip
    field, value = change
    if field == "shape":
        chunk.shape[:] = value
    else:
        setattr(chunk, field, value)


def _spoil_options(rng: random.Random, steps: list[Any], running: Weights) -> None:
    (first,) = [step for step in steps if step.WhichOneof("step") == "begin"][:1] or [None]
    if first is not None:
        spoil_options(rng, first.begin, running)


def spoil_options(rng: random.Random, message: Any, running: Weights) -> None:
    """One field of what an update is told, of either RPC, is at an edge or wrong."""
    options = message.options
    field, value = rng.choice(
        (
            ("version", rng.choice([running.version, 0, -1, -(2**63), running.version + 1])),
            ("base_version", rng.choice([running.version + 1, -(2**63), 2**63 - 1])),
            ("weights_digest", rng.choice(["0" * 64, "x", "é" * 64, running.digest.upper()])),
            ("running_samples", rng.choice([99, -1])),
            ("staging", rng.choice([99, -1])),
            ("allow_older_version", True),
            ("model", rng.choice(["tiny ", "\x00", "x" * 500])),
        )
    )
    if rng.random() < 0.1:
        message.ClearField("options")
    elif field == "model":
        message.model = value
    else:
        setattr(options, field, value)
        # Without this a smaller version goes no further than the first look at it.
        options.allow_older_version |= rng.random() < 0.5


_DAMAGES: tuple[Damage, ...] = (
    _leave_out, _double, _swap, _end_early, _insert_empty, _spoil_options,
    _spoil_chunk, _spoil_chunk, _spoil_chunk,
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """A folder of checkpoints."""

    root: Path
    right: Path
    """What the packaged model is loaded from."""

    @property
    def early(self) -> list[str]:
        """Paths that are refused before anything is read."""
        return [
            "", "/", "/etc/passwd", "model", "\x00", "x" * 5000, str(tiny_model_path()),
            str(self.root / "none"), str(self.root / "right\x00"), str(self.root / ("y" * 300)),
            str(self.root / "out"), str(self.root / "round"), f"{self.root}/../../etc",
        ]  # fmt: skip


def files(folder: Path) -> Files:
    """Writes the one that is right, and links that lead elsewhere."""
    shutil.copytree(tiny_model_path(), folder / "right")
    (folder / "out").symlink_to(tiny_model_path())
    (folder / "round").symlink_to(folder / "round")
    return Files(folder, folder / "right")


def damaged_files(rng: random.Random, found: Files, name: str) -> Path:
    """A checkpoint of which something is gone or other than it was."""
    folder = found.root / name
    shutil.copytree(found.right, folder)
    victim = folder / rng.choice(("config.json", "config.json", "model.safetensors"))
    data = victim.read_bytes()
    # Other bytes of a tensor are as good as what was there: it is the header that can be wrong.
    header = 8 + int.from_bytes(data[:8], "little") if "safetensors" in victim.name else len(data)
    match rng.randrange(5):
        case 0:
            victim.unlink()
        case 1:
            victim.write_bytes(data[: rng.randrange(len(data))])
        case 2:
            victim.write_bytes(rng.choice((b"", b"{}", b"[]", b"null", rng.randbytes(4000))))
        case 3:
            victim.unlink()
            victim.mkdir()
        case _:
            victim.write_bytes(mangled(rng, data[:header]) + data[header:])
    return folder


def update(rng: random.Random, path: str, running: Weights) -> admin_pb2.UpdateWeightsRequest:
    """A request for a checkpoint."""
    options = _options(rng, running)
    options.partial = options.convert_dtypes = False
    found = admin_pb2.UpdateWeightsRequest(options=options, path=path)
    if rng.random() < 0.2:
        spoil_options(rng, found, running)
    if rng.random() < 0.05:
        found.hub.repository = rng.choice(("", "a/b", "../x", "\x00", str(path)))
    elif rng.random() < 0.05:
        setattr(found.options, rng.choice(("partial", "convert_dtypes")), True)
    return found
