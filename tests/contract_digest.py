"""The digest of weights, word for word as the contract defines it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

Tensors = Mapping[str, tuple[str, Sequence[int], bytes]]
"""name -> (dtype, shape, little-endian bytes in C order)"""


def contract_digest(tensors: Tensors) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes)."""
    digest = hashlib.sha256()
    for name, (dtype, shape, data) in sorted(tensors.items()):
        digest.update(f"{name} {dtype} {','.join(map(str, shape))}\n".encode())
        digest.update(data)
    return digest.hexdigest()
