"""Writes the generated parts of README and docs, or checks that they are up to date.

A generated part stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "docs/cli.md")
STABLE = ("cli help",)
"""Parts that `--check` compares; answers depend on the day and on the machine."""


def run(*arguments: str) -> str:
    """Output of the command line at a fixed width."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "tokenopt", *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return "\n".join(line.rstrip() for line in process.stdout.splitlines()).strip()


def cli_help() -> str:
    """Help of every command."""
    from tokenopt.cli import COMMANDS

    parts = []
    for name in ((), *((command,) for command in COMMANDS), ("plugins", "list"), ("plugins", "show")):
        title = " ".join(("tokenopt", *name))
        parts.append(f"## {title}\n\n```text\n{run(*name, '--help')}\n```")
    return "\n\n".join(parts)


def answer() -> str:
    """The answer of the main job in five lines."""
    lines = run("search", "--slo-ms", "50", "--target-tps", "1e6").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Cheapest:"))
    block = []
    for line in lines[start:]:
        if not line:
            break
        block.append(line)
    return "```text\n" + "\n".join(block) + "\n```"


PARTS = {"cli help": cli_help, "answer": answer}


def main() -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check")
    is_check = parser.parse_args().check
    stale = []
    for name in FILES:
        file = ROOT / name
        text = file.read_text(encoding="utf-8")
        new = text
        for part in re.findall(r"<!-- begin: (.+?) -->", text):
            if part not in PARTS or (is_check and part not in STABLE):
                continue
            body = f"<!-- begin: {part} -->\n{PARTS[part]()}\n<!-- end: {part} -->"
            pattern = rf"<!-- begin: {re.escape(part)} -->.*?<!-- end: {re.escape(part)} -->"
            new = re.sub(pattern, lambda _, body=body: body, new, flags=re.DOTALL)
        if new != text:
            stale.append(name)
            if not is_check:
                file.write_text(new, encoding="utf-8")
    if is_check and stale:
        print(f"out of date: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
