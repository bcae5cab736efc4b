"""Numbers of things that a client is given."""

from numbers import Integral


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things.

    Raises:
        ValueError: it is no integer, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer and at least 1, got {value!r}")
