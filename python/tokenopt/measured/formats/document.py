"""A benchmark file as readers see it: its text, and what its syntax is."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tokenopt.errors import SpecError

_HEAD = 5_000_000
"""Characters in which a log's first line of figures is looked for: launchers write megabytes before it."""
_JSON_START = re.compile(r"""\s*(\{|\[\s*(?:[{\["\]]|$|-?[0-9.]+\s*(?:,|\]\s*$)))""")
Point = dict[str, Any]
"""Columns of `tokenopt.measured.columns` that a file states."""


@dataclass(slots=True)
class Parsed:
    """What a reader made of a document.

    Attributes:
        tool: Which shape it was.
        points: The points.
        skipped: Rows left out, by reason.
    """

    tool: str
    points: list[Point] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class Document:
    """A file's text.

    Args:
        name: File name, for messages.
        path: Whole path: folders and names may state hardware.
        content: The bytes.

    Raises:
        SpecError: It is empty or not text.
    """

    def __init__(self, name: str, path: str, content: bytes) -> None:
        self.name = name
        self.path = path
        self.text = _decoded(name, content)
        if not self.text.strip():
            raise SpecError(f"{name} is empty")

    @cached_property
    def syntax(self) -> Literal["json", "text", "table"]:
        """JSON (whole or a value a line), a delimited table, or other text."""
        # A log line may begin with a bracket too: "[07/11/2025-08:17:39] ...".
        if _JSON_START.match(self.text):
            return "json"
        if ":::MLLOG" in self.text[:_HEAD] or ("=====" in self.text[:200_000] and not self._first_line_is_header):
            return "text"
        return "table" if self._first_line_is_header else "text"

    @cached_property
    def _first_line_is_header(self) -> bool:
        lines = [line for line in self.text[:100_000].splitlines() if line.strip() and not line.startswith("#")]
        return bool(lines) and max(lines[0].count(mark) for mark in ",\t;") >= 1 and not lines[0].startswith("[")

    @cached_property
    def json_value(self) -> Any:
        """The JSON value; a file with one value a line becomes their list.

        Raises:
            SpecError: It is not whole JSON.
        """
        try:
            return json.loads(self.text)
        except RecursionError as error:
            raise SpecError(f"{self.name} is nested too deeply to be a benchmark result") from error
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise SpecError(f"{self.name} is not whole JSON: {error}") from error
        values = []
        for number, line in enumerate(self.text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                values.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise SpecError(f"{self.name} is not whole JSON: line {number}: {error}") from error
        return values

    @cached_property
    def rows(self) -> list[list[str]]:
        """Cells of a table, lines that start with # left out.

        Raises:
            SpecError: It is not a table.
        """
        lines = (line for line in io.StringIO(self.text, newline="") if not line.startswith("#"))
        try:
            return list(csv.reader(lines, delimiter=self._delimiter))
        except csv.Error as error:
            raise SpecError(f"{self.name} is not a table: {error}") from error

    @cached_property
    def _delimiter(self) -> str:
        head = "\n".join(line for line in self.text[:20_000].splitlines() if not line.startswith("#"))
        first = head.split("\n", 1)[0]
        return max("\t,;", key=first.count)

    def lines_of(self, mark: str) -> Iterator[Mapping[str, Any]]:
        """JSON objects after `mark` on lines of a log; a line that is cut short is left out."""
        for line in self.text.splitlines():
            _, found, rest = line.partition(mark)
            if not found:
                continue
            try:
                value = json.loads(rest)
            except (json.JSONDecodeError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def _decoded(name: str, content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        # Exports may end in half a character.
        even = content[: len(content) // 2 * 2]
        try:
            return even.decode("utf-16")
        except UnicodeDecodeError as error:
            raise SpecError(f"{name} begins like UTF-16 but is not: {error.reason} at byte {error.start}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{name} is neither UTF-8 nor UTF-16 text: byte {error.object[error.start]:#04x} at {error.start}"
        ) from error
    if "\x00" in text[:4096]:
        raise SpecError(f"{name} is not text: it holds zero bytes")
    return text


def records(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a JSON value: itself, its members, or the members of the one list it wraps."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, Mapping)]
    if not isinstance(value, Mapping):
        return []
    for wrapper in ("data", "results", "rows", "benchmarks", "runs", "phases"):
        inner = value.get(wrapper)
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            return [item for item in inner if isinstance(item, Mapping)]
    return [value]


def is_zero(*values: float | None) -> bool:
    """Whether every value is missing or zero: how tools write that nothing was measured."""
    return all(value is None or value == 0 for value in values)


def dated(text: Any) -> str:
    """Day of a date in one of the ways tools write it, ISO; empty where it is none."""
    if isinstance(text, (int, float)) and not isinstance(text, bool) and math.isfinite(text) and 1e9 < text < 1e11:
        from datetime import UTC, datetime

        return datetime.fromtimestamp(text, UTC).date().isoformat()
    if not isinstance(text, str):
        return ""
    match = re.match(r"\s*(20\d\d)-?(\d\d)-?(\d\d)", text)
    return "-".join(match.groups()) if match else ""


def first(mapping: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these keys that is there and not null."""
    return next((mapping[name] for name in names if mapping.get(name) is not None), None)
