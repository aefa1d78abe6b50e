"""Every error a user can meet. Defined once here; the Rust binding imports these classes.

Three kinds of trouble are kept apart: bad input (a `TokenoptError`), an infeasible problem (`InfeasibleError`, exit
code 3) and a bug (any other exception, shown as a traceback under ``--debug``).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns to the shell."""

    FOUND = 0
    ERROR = 1
    USAGE = 2
    INFEASIBLE = 3
    INTERRUPTED = 130


class TokenoptError(Exception):
    """Base of all errors that are told to the user in one sentence.

    Args:
        message: One sentence: what, where and what to do.
        hints: Further lines, each printed after ``hint:``.
    """

    exit_code = ExitCode.ERROR

    def __init__(self, message: str, hints: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hints)


class SpecError(TokenoptError):
    """A flag, field or file holds a value that cannot be used."""

    exit_code = ExitCode.USAGE


class MissingDataError(TokenoptError):
    """A figure that the answer needs is not in the catalogue."""


class PluginError(TokenoptError):
    """A plugin is broken, clashes with another or hands over unusable data."""


class PriceSourceError(TokenoptError):
    """A price source cannot be read."""


class StoreError(TokenoptError):
    """The local store cannot be read or written."""


class InfeasibleError(TokenoptError):
    """Nothing satisfies the limits. The nearest miss and the limit to relax are in the message and hints."""

    exit_code = ExitCode.INFEASIBLE
