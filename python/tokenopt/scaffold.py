"""A new plugin package from the skeleton that ships with tokenopt."""

from __future__ import annotations

import keyword
import re
import shutil
from pathlib import Path

from tokenopt.errors import SpecError

SKELETON = Path(__file__).parent / "plugin_template"
_WORD = "template"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_OWN_NAMES = frozenset({_WORD, "prices", "tokenopt"})


def new_plugin(name: str, folder: Path | None = None) -> Path:
    """Writes a package that builds, installs and passes the conformance kit, with made-up figures to replace.

    Args:
        name: Vendor or source, lower case, for instance `acme`; a leading `tokenopt-` is taken off.
        folder: Where the package's own folder is made; the present one by default.

    Returns:
        The folder of the package.

    Raises:
        SpecError: The name cannot be used, or the folder is there already.
    """
    plain = name.strip().lower().removeprefix("tokenopt-")
    if not _NAME.fullmatch(plain) or plain in _OWN_NAMES or keyword.iskeyword(plain):
        raise SpecError(
            f"name is {name!r}, expected a vendor's name of lower-case letters, digits and dashes, e.g. acme"
        )
    target = (folder or Path.cwd()) / f"tokenopt-{plain}"
    if target.exists():
        raise SpecError(f"{target} is there already: remove it or choose another name")
    try:
        for source in sorted(SKELETON.rglob("*")):
            if source.is_dir() or "__pycache__" in source.parts or source.suffix == ".pyc":
                continue
            file = target / _renamed(str(source.relative_to(SKELETON)), plain)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_renamed(source.read_text(encoding="utf-8"), plain), encoding="utf-8")
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise SpecError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _renamed(text: str, plain: str) -> str:
    """Module names take underscores, other names dashes, names for people capitals."""
    text = text.replace(f"tokenopt_{_WORD}", f"tokenopt_{plain.replace('-', '_')}")
    title = "".join(part.capitalize() for part in plain.split("-"))
    return text.replace(_WORD.capitalize(), title).replace(_WORD, plain)
