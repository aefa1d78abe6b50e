"""The documentation is complete: every command, hook and flag is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tokenopt.cli import COMMANDS, cli
from tokenopt.hookspecs import TokenoptSpecs

ROOT = Path(__file__).parents[2]
CLI_DOCS = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_flag_is_documented(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert f"## tokenopt {name}" in CLI_DOCS
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name} has no help"
            assert parameter.opts[0] in CLI_DOCS


def test_every_hook_is_documented() -> None:
    hooks = [name for name in vars(TokenoptSpecs) if name.startswith("tokenopt_")]
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert hooks
    for hook in hooks:
        assert f"`{hook}`" in text
        assert getattr(TokenoptSpecs, hook).__doc__


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
