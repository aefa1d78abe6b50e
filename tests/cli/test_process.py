"""How the process behaves around an answer: interrupts, full disks, faults, links, light start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import answer_of
from tokenopt.cli import cli, run
from tokenopt.errors import ExitCode

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_an_interrupted_search_ends_at_once_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    # Every accelerator and format exhaustively takes many seconds: the signal surely meets the core at work.
    command = [sys.executable, "-m", "tokenopt", "search", "--exhaustive", "--format", "json", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 5
    assert process.returncode == ExitCode.INTERRUPTED
    assert stdout == ""
    assert stderr.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [("prices",), ("search", "--hardware", "l4", "--format", "json"), ("--help",)])
def test_a_full_disk_is_told(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "tokenopt", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert process.returncode == ExitCode.ERROR
    assert process.stderr.splitlines() == ["error: the system refused: No space left on device"]


def test_a_fault_of_ours_is_one_sentence_without_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr("tokenopt.serve.build_problem", fail)
    monkeypatch.setattr("tokenopt.cli._drop_stdout", lambda: None)
    assert run(["search"]) == ExitCode.ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: tokenopt failed on its own fault: ZeroDivisionError: nothing to divide by" in captured.err
    assert "hint: run it again with --debug" in captured.err
    assert "Traceback" not in captured.err
    with pytest.raises(ZeroDivisionError):
        run(["search", "--debug"])


def test_a_terminal_of_another_encoding(tokenopt: Run) -> None:
    process = tokenopt("search", "--hardware", "l4", env={"PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0, process.stderr
    assert "Cheapest: l4" in process.stdout


def test_out_writes_through_a_link_and_never_replaces_a_pipe(tokenopt: Run, tmp_path: Path) -> None:
    flags = ("search", "--hardware", "l4", "--format", "json", "--out")
    (tmp_path / "target.json").write_text("old")
    (tmp_path / "link.json").symlink_to("target.json")
    assert tokenopt(*flags, "link.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "target.json").read_text())["schema"] == 1
    os.mkfifo(tmp_path / "pipe")
    process = tokenopt(*flags, "pipe")
    assert process.returncode == ExitCode.USAGE
    assert "not a regular file" in process.stderr
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (("--batch", "0"), 2, "batch is 0"),
        (("--batch", "-4"), 2, "batch is -4"),
        (("--concurrency", "99999999"), 2, "concurrency is 99999999"),
        (("--batch", "4", "--concurrency", "4"), 2, "both name the load"),
        (("--tp", "3"), 3, "with tp=3 is legal on h100-sxm"),
        (("--tp", "0"), 2, "tp holds 0"),
        (("--vendor", "amd"), 2, "no accelerator is left by --hardware h100-sxm --vendor amd"),
    ],
)
def test_explain_refuses(flags: tuple[str, ...], code: int, expected: str, tokenopt: Run) -> None:
    process = tokenopt("explain", "--hardware", "h100-sxm", *flags)
    assert process.returncode == code, process.stderr
    assert expected in process.stderr
    assert process.stdout == ""
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("concurrency", [1, 7, 100])
def test_explain_at_a_concurrency(concurrency: int, tokenopt: Run) -> None:
    flags = ("explain", "--hardware", "h100-sxm", "--engine", "vllm", "--tp", "2", "--attn-dp", "1", "--pp", "1")
    answer = answer_of(tokenopt(*flags, "--concurrency", str(concurrency), "--format", "json"))
    solution = answer["solution"]
    assert solution["concurrency"] >= concurrency
    fewer = solution["batch_per_rank"] - 1
    if fewer:
        below = answer_of(tokenopt(*flags, "--batch", str(fewer), "--format", "json"))["solution"]
        assert below["concurrency"] < concurrency


def test_explain_names_what_set_each_parameter(tokenopt: Run) -> None:
    answer = answer_of(tokenopt("explain", "--hardware", "h100-sxm", "--engine", "vllm", "--format", "json"))
    assert all(parameter["origin"] for parameter in answer["parameters"])
    assert answer["calibration"]["name"]


def _commands(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*names, name))


def test_every_command_and_option_has_help() -> None:
    commands = dict(_commands(cli))
    assert {("search",), ("explain",), ("hardware",), ("models",), ("prices",), ("plugins", "show")} <= set(commands)
    for names, command in commands.items():
        assert command.help, names
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, (names, parameter.name)


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, tokenopt, tokenopt.cli; tokenopt.cli.run(['--help']); "
        "print(sorted({'numpy', 'scipy', 'rich', 'httpx', 'polars', 'pandas', 'pluggy', 'tokenopt._core'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", ["hardware", "models", "prices", "search --hardware h100-sxm --max-chips 8"])
def test_a_reader_that_goes_away_is_no_error(arguments: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenopt", *arguments.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 0, told
    assert "error" not in told


def test_a_closed_output_is_no_error(tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    command = (
        f"exec {sys.executable} -m tokenopt search --hardware h100-sxm --max-chips 8 --format json --out {out} >&-"
    )
    process = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    assert "own fault" not in process.stderr
    assert out.stat().st_size > 100
