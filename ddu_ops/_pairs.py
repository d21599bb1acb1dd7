"""Options that are a number for both axes or a pair, height first."""

from collections.abc import Sequence

IntOrPair = int | Sequence[int]


def pair(value: IntOrPair) -> tuple[int, int]:
    """``3``, ``(3,)`` and ``(3, 3)`` mean the same."""
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]
