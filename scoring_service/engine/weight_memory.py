"""Memory that holds the weights of an update: the server writes it once, its workers map it.

It is a memfd: it has no name that could be left behind, and goes when the last process that has it
ends, however that ends. Workers open it through the server's descriptor in /proc, which other users
cannot.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod

from scoring_service.types import TensorSpec

ALIGNMENT = 64
"""Of every tensor, as allocators of tensors align them."""

HEADER_BYTES = 4096
"""Before the first tensor: how far the writer is, and whether it goes on."""

ELEMENT_BYTES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
"""Element types that an update may carry, by their names in torch."""

FLOATING = frozenset(name for name in ELEMENT_BYTES if "float" in name)
"""Those that can be converted into one another."""

_STATE = struct.Struct("<qq")
"""Bytes that can be read, counted from the first tensor; and what becomes of the rest."""

_READY = struct.Struct("<q")
"""The first of the two."""


class WriterState(IntEnum):
    """What a reader may expect."""

    WRITING = 0
    COMPLETE = 1
    ABANDONED = 2


@dataclass(frozen=True, slots=True)
class Region:
    """Where one tensor lies."""

    spec: TensorSpec
    offset: int
    """From the beginning of the memory."""
    dtype: str
    """Element type of what lies there."""

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return prod(self.spec.shape) * ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """Every tensor that has memory of its own, in ascending order of names: that of the digest."""

    regions: dict[str, Region]
    size: int
    """Bytes of the whole memory."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(region.size for region in self.regions.values())


def lay_out(specs: tuple[TensorSpec, ...], widest: int = 0) -> Layout:
    """Places tensors one after another; tied ones once, where their first name stands.

    Args:
        specs: of the model, in ascending order of names.
        widest: bytes that an element of a floating-point tensor may take at most, if more than its
            own type.
    """
    regions: dict[str, Region] = {}
    place = HEADER_BYTES
    for spec in specs:
        if spec.tied_to:
            continue
        regions[spec.name] = Region(spec, place, spec.dtype)
        width = ELEMENT_BYTES[spec.dtype]
        if spec.dtype in FLOATING:
            width = max(width, widest)
        size = prod(spec.shape) * width
        place += size + -size % ALIGNMENT
    return Layout(regions, place)


@dataclass(eq=False, slots=True)
class WeightMemory:
    """The writer's end."""

    size: int
    view: memoryview = field(init=False)
    """All of it, writable."""
    _fd: int = field(init=False)
    _map: mmap.mmap = field(init=False)
    _barrier: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._fd = os.memfd_create("weights", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, self.size)
        self._map = mmap.mmap(self._fd, self.size)
        # Where the kernel lets shared memory have large pages, they cost a fraction to touch.
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)

    @property
    def path(self) -> str:
        """What readers open."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def publish(self, ready: int, state: WriterState = WriterState.WRITING) -> None:
        """Tells readers how many bytes from the first tensor on they may read."""
        with self._barrier:
            pass  # what was written before is seen before what is written now, on any processor
        _STATE.pack_into(self.view, 0, ready, state)

    @property
    def ready(self) -> int:
        """How many bytes from the first tensor on may be read, whoever has written them."""
        return int(_READY.unpack_from(self.view, 0)[0])

    @property
    def taken(self) -> int:
        """Bytes of the host's memory that it takes: pages that were written."""
        return os.fstat(self._fd).st_blocks * 512

    def close(self) -> None:
        """Gives it up; those who have mapped it keep it until they let go."""
        self.view.release()
        self._map.close()
        os.close(self._fd)

    def discard(self) -> None:
        """Gives up what nobody reads any more: pages are free, even where they are mapped still."""
        self.view.release()
        self._map.close()
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


@dataclass(frozen=True, eq=False, slots=True)
class MappedMemory:
    """A reader's end. Nobody can write to the weights through it."""

    map: mmap.mmap
    _file: tuple[int, int]
    """Device and inode, which no other memory has as long as this one is mapped."""

    def progress(self) -> tuple[int, WriterState]:
        """How far the writer is: bytes from the first tensor on, and whether more is to come."""
        ready, state = _STATE.unpack_from(self.map, 0)
        with threading.Lock():
            pass  # nothing is read before this was
        return ready, WriterState(state)


def map_memory(path: str, before: MappedMemory | None = None) -> MappedMemory:
    """Maps memory to read it.

    Args:
        path: of it.
        before: what is given back if it is of the same memory, which the writer fills again: its
            pages need not be looked up anew, a fifth of the time of hashing them.

    Raises:
        OSError: the writer is gone.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        if before is not None and before._file == file:
            return before
        return MappedMemory(_mapped(fd, mmap.ACCESS_READ), file)
    finally:
        os.close(fd)


def publish_ready(memory: mmap.mmap, ready: int) -> None:
    """Tells readers how many bytes from the first tensor on they may read; of a helper that writes.

    What becomes of the rest is for the owner to say: it may have given the memory up meanwhile.
    """
    with threading.Lock():
        pass  # as in `WeightMemory.publish`
    _READY.pack_into(memory, 0, ready)


def map_writable(path: str) -> mmap.mmap:
    """Maps memory for a helper that writes tensors.

    Raises:
        OSError: the owner is gone.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        return _mapped(fd, mmap.ACCESS_WRITE)
    finally:
        os.close(fd)


def _mapped(fd: int, access: int) -> mmap.mmap:
    found = mmap.mmap(fd, 0, access=access)
    with contextlib.suppress(OSError):
        found.madvise(mmap.MADV_HUGEPAGE)
    return found
