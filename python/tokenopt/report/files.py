"""Writing answers to files: checked before the work, atomic after it."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenopt.errors import SpecError


def check_writable(path: Path) -> None:
    """Refuses a path that cannot be written, before anything is computed.

    Raises:
        SpecError: Names the path and why.
    """
    try:
        if path.is_dir():
            raise SpecError(f"--out {path} is a directory, expected a file")
        if _is_special(path):
            # A temporary file would take the place of the pipe or device.
            raise SpecError(f"--out {path} is not a regular file", ["redirect instead: tokenopt ... > FILE"])
        if path.exists() and not os.access(path, os.W_OK):
            raise SpecError(f"--out {path} is write-protected")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise SpecError(f"--out {path}: the directory {folder} does not exist")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        # RuntimeError: symbolic links that point at each other.
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"--out {path} cannot be written: {why}") from error


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; behind a symbolic link, the file it points to.

    Raises:
        SpecError: The file cannot be written.
    """
    if _is_special(path):
        raise SpecError(f"--out {path} is not a regular file")
    path = path.resolve()
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SpecError(f"--out {path} cannot be written: {error.strerror}") from error


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file.

    Raises:
        SpecError: Neither polars nor pyarrow is installed.
    """
    buffer = io.BytesIO()
    try:
        import polars
    except ImportError:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise SpecError("--format parquet needs polars or pyarrow", ["pip install 'tokenopt[frames]'"]) from None
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
        return buffer.getvalue()
    polars.DataFrame(list(rows)).write_parquet(buffer)
    return buffer.getvalue()
