"""Reads weights from files in a process of its own, as the model was read at start."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

from scoring_service.engine.weight_memory import Layout
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.types import EngineConfig, EngineInfo

READER_MODULE = "scoring_service.engine.updates.checkpoint"

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""Of the reader: a tensor's memory goes back to the system with the tensor, which glibc by itself
would leave in its heap."""


async def read_checkpoint(
    config: EngineConfig, info: EngineInfo, layout: Layout, memory: str
) -> None:
    """Fills an update's memory.

    Args:
        config: names the files.
        info: the model that they have to be of.
        layout: of the memory.
        memory: path of it.

    Raises:
        ServiceError: WEIGHTS_UNREADABLE, OUT_OF_MEMORY, or INTERNAL_ERROR when the reader died.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        READER_MODULE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        process_group=0,
        env={**os.environ, **_ENVIRONMENT},
    )
    try:
        job = (config, info.tensors, info.settings, layout, memory)
        answer, _ = await process.communicate(pickle.dumps(job))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == -signal.SIGKILL:
        message = "the process that reads weights was killed, most likely for want of memory"
        raise ServiceError(Fault(Reason.OUT_OF_MEMORY, message))
    if process.returncode != 0:
        message = f"the process that reads weights ended with {process.returncode}"
        raise ServiceError(Fault(Reason.INTERNAL_ERROR, message))
    if answer:
        reason, _, message = answer.decode().partition("\n")
        raise ServiceError(Fault(Reason(reason), message))


def allowed_path(path: str, roots: tuple[Path, ...]) -> Path:
    """Where a path leads, if it lies under one of the roots once links are followed.

    Raises:
        ServiceError: SOURCE_NOT_ALLOWED, whether it exists or not; WEIGHTS_NOT_FOUND.
    """
    given = Path(path)
    try:
        # Not strict: what lies outside of the roots must not tell whether it is there.
        resolved = given.resolve()
        allowed = any(resolved.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null character
        allowed = False
    if not given.is_absolute() or not allowed:
        message = "the path is not absolute, or outside of every --weights-root"
        raise ServiceError(Fault(Reason.SOURCE_NOT_ALLOWED, message))
    try:
        exists = resolved.exists()
    except OSError:  # a name that is longer than names can be
        exists = False
    if not exists:
        raise ServiceError(Fault(Reason.WEIGHTS_NOT_FOUND, f"there is nothing at {path}"))
    return resolved


def source_config(
    config: EngineConfig, info: EngineInfo, source: Path | str, revision: str | None = None
) -> EngineConfig:
    """How to read a checkpoint as the model was read, in the type that it runs in."""
    return replace(config, model=str(source), revision=revision, dtype=info.dtype, device="cpu")
