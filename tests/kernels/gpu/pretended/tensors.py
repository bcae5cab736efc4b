"""Tensors that say they are on a GPU, and lie in the host's memory.

What is asked of them is checked as CUDA would: tensors of two devices do not meet, the host reads
nothing without waiting, and while a stream is recorded nothing waits and nothing is done. What is
launched is computed at once by torch's CPU kernels; what is copied to the host without waiting is
there when somebody waits, and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_iter, tree_map

GPU = torch.device("cuda", 0)
HOST = torch.device("cpu")

aten = torch.ops.aten

_COPIES = (aten._to_copy.default, aten.copy_.default)
_BY_NUMBERS = (
    "_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "is_nonzero", "bincount",
)  # fmt: skip
"""Operators of which the host has to know numbers, or how many there will be."""
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
"""Those that take their indices from the host, too, at the price of waiting for the copy."""
_GARBAGE = 0xA5


class WaitError(RuntimeError):
    """The host waits for the device where that is forbidden."""


class GpuTensor(torch.Tensor):
    """A tensor whose device is `GPU`."""

    host: Tensor
    """Its elements."""
    device_of: PretendedDevice

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor, device_of: PretendedDevice) -> GpuTensor:
        # Views of what was made outside of inference mode are made inside of it.
        with torch.inference_mode(False):
            made: GpuTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                layout=host.layout,
                device=torch.device("meta"),
                dispatch_device=True,
            )
        made.host, made.device_of = host, device_of
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """In a thread that has not entered the device."""
        leaves = tree_iter((args, kwargs))
        own = next(leaf for leaf in leaves if isinstance(leaf, GpuTensor))
        return own.device_of.call(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, GpuTensor)
        self.host = other.host

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Recording:
    """What was asked for while a stream was recorded: done again, into the same memory."""

    def __init__(self) -> None:
        self._work: list[Callable[[], object]] = []

    def add(self, work: Callable[[], object]) -> None:
        self._work.append(work)

    def replay(self) -> None:
        with torch.inference_mode():
            for work in self._work:
                work()


class PretendedDevice:
    """Makes and computes tensors of `GPU`."""

    def __init__(self) -> None:
        self.refuses_waits = False
        self.waits = 0
        self.idled = 0
        """Waits after which nothing was left to do."""
        self.replays = 0
        self.asked = 0
        """How often something was asked of it."""
        self._done = 0
        """How much of that somebody has waited for."""
        self._thread = threading.local()
        self._on_their_way: list[tuple[int, Tensor, Tensor]] = []
        """What was asked by then, elements, and the host's tensors that they will be in."""

    def mode(self) -> TorchDispatchMode:
        """A context in which this thread's tensors may be of the device."""
        return _Mode(self)

    @property
    def recording(self) -> Recording | None:
        """What this thread records into."""
        return getattr(self._thread, "recording", None)

    @recording.setter
    def recording(self, recording: Recording | None) -> None:
        self._thread.recording = recording

    def wait(self, why: str, asked: int | None = None) -> None:
        """The host waits until what was asked of the device is done.

        Args:
            why: it does.
            asked: so much of it; None = everything.

        Raises:
            WaitError: it must not.
        """
        if self.recording is not None or self.refuses_waits:
            raise WaitError(f"called a synchronizing CUDA operation: {why}")
        asked = self.asked if asked is None else asked
        if asked <= self._done:
            return
        self.waits += 1
        self.idled += asked == self.asked
        self._done = asked
        for _, elements, host in [copy for copy in self._on_their_way if copy[0] <= asked]:
            host.copy_(elements)
        self._on_their_way = [copy for copy in self._on_their_way if copy[0] > asked]

    def launch(self, work: Callable[[], object]) -> None:
        """Does work of the device, or records it."""
        self.asked += 1
        if self.recording is None:
            work()
        else:
            self.recording.add(work)

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operator of torch."""
        if func is torch.ops.prim.device.default:
            return GPU
        if func is aten.is_pinned.default:
            return _is_pinned(args[0])
        if _is_composite(func):
            with self.mode():
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if func is aten._pin_memory.default:
            return _pinned(args[0].clone())
        if kwargs.pop("pin_memory", False):
            return _pinned(func(*args, **kwargs))
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        wanted = kwargs.get("device")
        goes_here = wanted is not None and torch.device(wanted).type == "cuda"
        if not goes_here and not any(isinstance(tensor, GpuTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        if wanted is None:
            self._check(func, tensors)
        if goes_here:
            kwargs = {**kwargs, "device": HOST}
        return self._compute(func, args, kwargs, here=wanted is None or goes_here)

    def _check(self, func: Any, tensors: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        if name in _BY_NUMBERS:
            self.wait(name)
        others = [t for t in tensors if not isinstance(t, GpuTensor) and t.dim()]
        if name in _INDEXING:
            if others or any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]):
                self.wait(f"{name} by what the host has, or by a mask")
        elif others:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! ({func})"
            )

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        into = args[0] if func is aten.copy_.default else None
        source = args[0] if into is None else args[1]
        self.asked += 1
        if into is None:
            asked = kwargs.get("device") or source.device
            here, pending = torch.device(asked).type == "cuda", kwargs.get("non_blocking", False)
            kwargs = {**kwargs, "device": HOST}
        else:
            here, pending = isinstance(into, GpuTensor), len(args) > 2 and args[2]
        if here == isinstance(source, GpuTensor):
            return self._compute(func, args, kwargs, here=here)
        if source.numel():
            self._cross(source, here=here, pending=pending)
        if into is None:
            made = func(_host_of(source), **kwargs)
            made = made.clone() if made is _host_of(source) else made
            if here:
                return GpuTensor(made, self)
        else:
            made = into
            _host_of(into).copy_(_host_of(source))
        if pending and not here and made.numel():
            self._delay(made)
        return made

    def _cross(self, source: Tensor, *, here: bool, pending: bool) -> None:
        """Waits where a copy between the devices does."""
        if here and self.recording is not None:
            raise WaitError("a stream that is recorded takes nothing from the host")
        if not here and not pending:
            self.wait("a copy to the host")
        elif here and not (pending and (_is_pinned(source) or source.dim() == 0)):
            self.wait("a copy from ordinary memory")

    def _delay(self, host: Tensor) -> None:
        """What is read too early is garbage."""
        self._on_their_way.append((self.asked, host.clone(), host))
        flat = host.as_strided((host.numel(),), (1,)) if host.is_contiguous() else host
        flat.view(torch.uint8).fill_(_GARBAGE)

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any], *, here: bool) -> Any:
        self.asked += 1
        leaves = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, GpuTensor)]
        ours = {id(leaf.host): leaf for leaf in leaves}
        args, kwargs = tree_map(_host_of, (args, kwargs))
        made = (
            _run(func, args, kwargs) if self.recording is None else self._record(func, args, kwargs)
        )

        def of_device(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not here:
                return leaf
            return ours[id(leaf)] if id(leaf) in ours else GpuTensor(leaf, self)

        return tree_map(of_device, made)

    def _record(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Nothing is done that others see; what is made anew has its place, and zeros in it."""
        assert self.recording is not None
        if func._schema.is_mutable:
            self.recording.add(lambda: _run(func, args, kwargs))
            written = [
                kwargs[of.name] if of.name in kwargs else args[place]
                for place, of in enumerate(func._schema.arguments)
                if of.alias_info is not None and of.alias_info.is_write
            ]
            return written[0] if len(func._schema.returns) == 1 else tuple(written)
        made = _run(func, args, kwargs)
        read = {t.untyped_storage().data_ptr() for t in tree_iter((args, kwargs)) if _is_tensor(t)}

        def is_new(leaf: Any) -> bool:
            return _is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in read

        places = tree_flatten(made)[0]
        for place in filter(is_new, places):
            place.zero_()

        def again() -> None:
            for place, new in zip(places, tree_flatten(_run(func, args, kwargs))[0], strict=True):
                if is_new(place):
                    place.copy_(new)

        if "empty" not in func.overloadpacket.__name__ and any(map(is_new, places)):
            self.recording.add(again)
        return made


class _Mode(TorchDispatchMode):
    """What this thread asks of torch goes to the device first."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._device.call(func, args, dict(kwargs or {}))


def _pinned(host: Tensor) -> Tensor:
    host.is_page_locked = True  # type: ignore[attr-defined]
    return host


def _is_pinned(host: Tensor) -> bool:
    return any(hasattr(t, "is_page_locked") for t in (host, host._base) if t is not None)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _host_of(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, GpuTensor) else leaf


def _is_composite(func: Any) -> bool:
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """By the CPU's kernels, and what only CUDA has by others."""
    if func is aten.histc.default:
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    if func is aten.mm.dtype:
        return torch.mm(args[0].to(args[2]), args[1].to(args[2]))
    return func(*args, **kwargs)
