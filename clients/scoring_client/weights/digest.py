"""The digest of weights, computed while they are sent."""

import hashlib

from scoring_client.errors import InvalidRequestError
from scoring_client.weights.tensors import HostTensor


class RunningDigest:
    r"""SHA-256 over the sorted (name, dtype, shape, bytes) of tensors, as the server computes it.

    Each tensor contributes the line ``name dtype shape\n``, such as ``lm_head.weight bfloat16
    49152,576``, and then its bytes; tied ones once, under the name that the model has them by.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._last: str | None = None

    def begin(self, name: str, tensor: HostTensor) -> None:
        """Take a tensor's name, type and shape.

        Args:
            name: The model's for it; of tied tensors their own, whichever of them this is.
            tensor: The rest of it.

        Raises:
            InvalidRequestError: its name does not come after the last one's.
        """
        if self._last is not None and name <= self._last:
            raise InvalidRequestError(
                f"a digest is taken in the order of the model's own names, but {tensor.name}"
                f"{'' if tensor.name == name else f', there {name},'} comes after {self._last}: "
                "push a mapping, or sort the tensors"
            )
        self._last = name
        shape = ",".join(map(str, tensor.shape))
        self._hash.update(f"{name} {tensor.dtype} {shape}\n".encode())

    def update(self, data: memoryview) -> None:
        """Take the next bytes of the tensor that was begun."""
        self._hash.update(data)

    def hexdigest(self) -> str:
        """Return the digest of what was taken so far."""
        return self._hash.hexdigest()
