"""How many rows of logits exist at once: in a tile, and in the blocks that it is read by."""

from __future__ import annotations

from scoring_service.peak_memory import LISTED_BYTES

ROW_MULTIPLE = 16
"""Products are padded to a multiple of this many rows, unless a probe finds that they need not be:
on a CPU the bits of a row may depend on the number of rows in small or ragged matrix products."""

_TILE_BYTES = 24 << 20
_GPU_TILE_BYTES = 512 << 20

_BLOCK_BYTES = 6 << 20
"""Of logits that a CPU makes into numbers together: few enough to stay in its cache."""

_LIST_BYTES = 16 << 20
_GPU_LIST_BYTES = 512 << 20


def tile_rows(vocab_size: int, element_bytes: int, device_type: str = "cpu") -> int:
    """Rows of a tile of logits, a multiple of 16: about 24 MiB, and on a GPU 512 MiB.

    The whole weight is read for a tile, so that few rows would wait for it each time.

    Args:
        vocab_size: logits of a row.
        element_bytes: of a number of the head's product.
        device_type: as torch names it.
    """
    if device_type == "cpu":
        rows, most = _TILE_BYTES // (element_bytes * vocab_size), 256
    else:
        rows, most = _GPU_TILE_BYTES // (4 * vocab_size), 2048
    return max(ROW_MULTIPLE, min(most, rows - rows % ROW_MULTIPLE))


def plain_tile_rows(vocab_size: int, device_type: str = "cpu") -> int:
    """Rows of a tile on the plain path, where nothing is set aside for a step.

    A GPU's is a quarter of a packed step's, because torch's operators make up to 16 copies of it.

    Args:
        vocab_size: logits of a row, in fp32.
        device_type: as torch names it.
    """
    rows = tile_rows(vocab_size, 4, device_type)
    if device_type == "cpu":
        return rows
    return max(ROW_MULTIPLE, rows // 4 - rows // 4 % ROW_MULTIPLE)


def block_rows(vocab_size: int, device_type: str = "cpu", listed: int = 0) -> int:
    """Rows of a tile that are made into numbers together; a GPU takes all of them if it can.

    Args:
        vocab_size: logits of a row.
        device_type: as torch names it.
        listed: entries of a row's top-K list and candidates.
    """
    if device_type == "cpu":
        rows = _BLOCK_BYTES // (4 * vocab_size)
    else:
        rows = tile_rows(vocab_size, 4, device_type)
    if listed:
        rows = min(rows, list_bytes(device_type) // (LISTED_BYTES * listed))
    return max(1, rows)


def list_bytes(device_type: str = "cpu") -> int:
    """What top-K lists and candidates of a block may take while they are made."""
    return _LIST_BYTES if device_type == "cpu" else _GPU_LIST_BYTES
