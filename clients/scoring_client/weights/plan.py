"""Which of the model's tensors a trainer's are, in which order, and what must not be sent."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoring_client.errors import InvalidRequestError
from scoring_client.weights.digest import RunningDigest
from scoring_client.weights.given import GivenWeights
from scoring_client.weights.joined import (
    JoinedTensor,
    Place,
    check_parts,
    checkpoint_places,
)
from scoring_client.weights.names import legacy_name, plain_name
from scoring_client.weights.results import WeightTensor
from scoring_client.weights.tensors import (
    HostTensor,
    HostTensors,
    dtype_of,
    same_memory,
)

Rename = Callable[[str], str | None]
"""From a trainer's name to the model's; None leaves the tensor out."""

_LISTED = 5
"""Names that a message about many lists."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How tensors are matched."""

    rename: Rename | None = None
    """Applied to each name first."""
    merged_lora: bool = False
    """Base layers include PEFT's adapters."""
    partial: bool = False
    """Not every tensor of the model has to be there."""
    convert_dtypes: bool = False
    """Floating-point tensors of another type than the model's are converted."""
    digest: bool = False
    """The digest of what is sent is wanted."""


class WeightPlan:
    """Matches a trainer's tensors with the model's, as the server lists them."""

    def __init__(self, tensors: Sequence[WeightTensor], options: PlanOptions) -> None:
        """Take the model's tensors, ties included."""
        if options.digest and options.partial:
            raise InvalidRequestError(
                "the digest covers every tensor of the model, so it cannot be computed from a part "
                "of them: leave out digest or partial"
            )
        self._specs = {tensor.name: tensor for tensor in tensors}
        self._places = checkpoint_places(tensors)
        self._tied = {tensor.tied_to for tensor in tensors if tensor.tied_to}
        prefixes = Counter(name.partition(".")[0] for name in self._specs)
        self._base = max(prefixes, key=prefixes.__getitem__, default="")
        self._options = options
        self._host = HostTensors()
        self._sent: dict[str, _Sent] = {}
        self.digest = RunningDigest() if options.digest else None
        self.bytes_total = sum(_bytes(tensor) for tensor in tensors if not tensor.tied_to)

    def read(self, given: GivenWeights) -> Generator[HostTensor, None, None]:
        """Yield the tensors to send, each once, in host memory.

        Raises:
            InvalidRequestError: a tensor is unknown, missing, there twice, or of another shape or
                element type than the model's.
        """
        if given.mapping is not None:
            yield from self._in_order_of_names(given.mapping)
            return
        joined: dict[str, JoinedTensor] = {}
        for name, tensor in given:
            place = self._place(name)
            # What an iterator yielded may be overwritten by what it yields next.
            if place is not None and place.count == 1:
                yield from self._take(place.spec, tensor, lasting=False)
            elif place is not None:
                yield from self._take_part(joined, place, name, tensor)
        for unfinished in joined.values():
            check_parts(unfinished.spec, unfinished.count, unfinished.there)
        self._check_complete(set(self._sent))

    def leaves_conversion(self, given: GivenWeights) -> bool:
        """Return whether a tensor may go out in its own type, for the server to convert.

        The server cannot hash while bytes arrive then, and needs room for wider elements. Of an
        iterator's tensors it is not known before they come.

        Raises:
            InvalidRequestError: a name is not the model's.
        """
        if not self._options.convert_dtypes or self._options.digest:
            return False
        unknown = {name for name, spec in self._specs.items() if not _numpy_makes(spec.dtype)}
        if not unknown or given.mapping is None:
            return bool(unknown)
        places = (self._place(n) for n, t in given.mapping.items() if isinstance(t, np.ndarray))
        return any(place is not None and place.spec.name in unknown for place in places)

    def _in_order_of_names(self, given: Mapping[str, Any]) -> Iterator[HostTensor]:
        """Server and digest take ascending names best."""
        found: dict[str, dict[int, tuple[Place, str]]] = {}
        for name in given:
            place = self._place(name)
            if place is None:
                continue
            parts = found.setdefault(place.spec.name, {})
            if place.index in parts or any(p.count != place.count for p, _ in parts.values()):
                raise InvalidRequestError(f"{name} and another name both mean {place.spec.name}")
            parts[place.index] = place, name
        for parts in found.values():
            (place, _), *_ = parts.values()
            check_parts(place.spec, place.count, parts)
        self._check_complete({_root(self._specs[name]) for name in found})
        # Tied tensors have their place where the model has them, whatever name they come under.
        for name in sorted(found, key=lambda name: (_root(self._specs[name]), name)):
            parts = found[name]
            (place, given_name), *_ = parts.values()
            if place.count == 1:
                yield from self._take(place.spec, given[given_name], lasting=True)
                continue
            joined = JoinedTensor(place.spec, place.count)
            for place, given_name in parts.values():
                joined.add(place, given_name, given[given_name])
            yield from self._take(place.spec, joined.whole, lasting=False)

    def _take_part(
        self, joined: dict[str, JoinedTensor], place: Place, name: str, tensor: Any
    ) -> Iterator[HostTensor]:
        spec = place.spec
        before = self._sent.get(_root(spec))
        if before is not None and before.spec is spec:
            raise InvalidRequestError(f"{name} is there twice")
        whole = joined.setdefault(spec.name, JoinedTensor(spec, place.count))
        whole.add(place, name, tensor)
        if len(whole.there) == whole.count:
            del joined[spec.name]
            yield from self._take(spec, whole.whole, lasting=False)

    def _take(self, spec: WeightTensor, tensor: Any, *, lasting: bool) -> Iterator[HostTensor]:
        root = _root(spec)
        before = self._sent.get(root)
        if before is not None and before.spec is spec:
            raise InvalidRequestError(f"{spec.name} is there twice")
        if before is not None and before.is_same_memory(tensor):
            return
        self._check(spec, tensor)
        brought = self._host.bring(spec.name, tensor, self._cast(spec, tensor))
        host = HostTensor(
            spec.name, brought.dtype, brought.shape, brought.data, brought.volatile or not lasting
        )
        if before is None:
            if self.digest is not None:
                self.digest.begin(root, host)
            tied = root in self._tied
            self._sent[root] = _Sent.of(spec, tensor, host, keep=tied and lasting, tied=tied)
            yield host
            return
        if not before.is_equal(tensor, host):
            raise InvalidRequestError(
                f"the model ties {spec.name} to {before.spec.name}, but they differ here: they "
                "cannot both be served"
            )

    def _place(self, name: str) -> Place | None:
        """Return where a tensor of that name belongs; None for one to leave out."""
        renamed = self._options.rename(name) if self._options.rename else name
        plain = (
            None if renamed is None else plain_name(renamed, merged_lora=self._options.merged_lora)
        )
        if plain is None:
            return None
        # As transformers loads: the base model's tensors may come without its prefix, and any
        # under the names that checkpoints have.
        old = legacy_name(plain)
        for candidate in (plain, f"{self._base}.{plain}", old, f"{self._base}.{old}"):
            if candidate in self._specs:
                return Place(self._specs[candidate])
            if candidate in self._places:
                return self._places[candidate]
        near = difflib.get_close_matches(plain, self._specs, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidRequestError(
            f"the model has no tensor {plain}{hint} (`names=` renames tensors, or leaves them out)"
        )

    def _check(self, spec: WeightTensor, tensor: Any) -> None:
        shape = tuple(getattr(tensor, "shape", ()))
        if shape != spec.shape:
            raise InvalidRequestError(
                f"{spec.name} has shape {list(shape)}, but the model's has {list(spec.shape)}"
            )
        dtype = dtype_of(tensor)
        if dtype == spec.dtype:
            return
        convertible = _is_floating(dtype) and _is_floating(spec.dtype)
        if not (convertible and self._options.convert_dtypes):
            hint = ": convert_dtypes=True converts it" if convertible else ""
            raise InvalidRequestError(
                f"{spec.name} is {dtype}, but the server holds it in {spec.dtype}{hint}"
            )

    def _cast(self, spec: WeightTensor, tensor: Any) -> str | None:
        """Return the type to cast to before sending: the model's own, where numpy or torch can."""
        if dtype_of(tensor) == spec.dtype:
            return None
        if isinstance(tensor, np.ndarray) and not _numpy_makes(spec.dtype):
            if self.digest is not None:
                raise InvalidRequestError(
                    f"numpy cannot convert {spec.name} to {spec.dtype} for the digest "
                    "(ml_dtypes adds that type)"
                )
            return None  # the server converts it
        return spec.dtype

    def _check_complete(self, roots: set[str]) -> None:
        if self._options.partial:
            return
        # Of tied names the one that the others are tied to: it is one tensor.
        missing = [n for n, spec in self._specs.items() if not spec.tied_to and n not in roots]
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            raise InvalidRequestError(
                f"{len(missing)} tensors of the model are missing: "
                f"{', '.join(missing[:_LISTED])}{more} (partial=True keeps what is not given)"
            )


@dataclass(frozen=True, slots=True)
class _Sent:
    """What has to be remembered of a tensor that others may be tied to."""

    spec: WeightTensor
    tensor: Any
    """Kept only where it lives on anyway."""
    sha256: bytes | None

    @staticmethod
    def of(spec: WeightTensor, tensor: Any, host: HostTensor, *, keep: bool, tied: bool) -> "_Sent":
        if keep or not tied:
            return _Sent(spec, tensor if keep else None, None)
        return _Sent(spec, None, hashlib.sha256(host.data).digest())

    def is_same_memory(self, tensor: Any) -> bool:
        return self.tensor is not None and same_memory(self.tensor, tensor)

    def is_equal(self, tensor: Any, host: HostTensor) -> bool:
        if self.sha256 is not None:
            return hashlib.sha256(host.data).digest() == self.sha256
        if self.is_same_memory(tensor):
            return True
        other = HostTensors().bring(self.spec.name, self.tensor, host.dtype)
        return bool(
            np.array_equal(np.frombuffer(other.data, np.uint8), np.frombuffer(host.data, np.uint8))
        )


def _root(spec: WeightTensor) -> str:
    return spec.tied_to or spec.name


def _numpy_makes(dtype: str) -> bool:
    """Return whether an array can be converted to that type here."""
    if dtype == "bfloat16":
        return True
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def _is_floating(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _bytes(spec: WeightTensor) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * item_bytes(spec.dtype)


def item_bytes(dtype: str) -> int:
    """Return the bytes of an element, from the digits of its type's name."""
    if dtype == "bool":
        return 1
    digits = dtype.partition("_")[0].lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) // 8 if digits.isdigit() else 0
