"""Units: the only place where data-sheet units become SI and back."""

from __future__ import annotations

GIB = 2**30
GB = 1e9
TB = 1e12
TERA = 1e12
GBIT_BYTES = 1e9 / 8
MS_PER_S = 1e3
MILLION = 1e6
SECONDS_PER_HOUR = 3600.0


def gib_to_bytes(gib: float) -> float:
    """GiB to bytes."""
    return gib * GIB


def bytes_to_gib(size_bytes: float) -> float:
    """Bytes to GiB."""
    return size_bytes / GIB


def ms_to_s(milliseconds: float | None) -> float | None:
    """Milliseconds to seconds; None stays None."""
    return None if milliseconds is None else milliseconds / MS_PER_S
