"""Generated parts of a Markdown file: what stands between the markers belongs to a script, the rest to people.

A part stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def block_names(text: str) -> list[str]:
    """Names of the parts of a document, in order."""
    return re.findall(r"<!-- begin: (.+?) -->", text)


def replace_block(text: str, name: str, content: str) -> str:
    """Puts `content` between the markers of part `name`.

    Args:
        text: A Markdown document.
        name: Name of the part.
        content: New content, without the markers.

    Returns:
        The document with that part replaced.

    Raises:
        ValueError: The document does not have the part exactly once.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    replaced, found = pattern.subn(lambda _: f"{begin}\n{content.strip()}\n{end}", text)
    if found != 1:
        raise ValueError(f"part {name!r} stands {found} times in the document, expected once with both its markers")
    return replaced


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file whole, so that an interrupted run leaves the old one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
