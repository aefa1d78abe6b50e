"""Files are written whole or not at all, and only where a file belongs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import polars
import pytest

from tokenopt.errors import SpecError
from tokenopt.report import files

ROWS = [{"name": "a,b", "usd": 0.5, "count": 1}, {"name": 'c"d', "usd": None, "count": 2}]


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text("old")
    files.check_writable(path)
    files.write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "answer", b"x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "answer").stat().st_mode) == 0o640


def test_a_link_keeps_pointing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "answer.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    files.check_writable(link)
    files.write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_refused_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (files.check_writable, lambda path: files.write_atomically(path, b"x")):
        with pytest.raises(SpecError, match="not a regular file"):
            write(pipe)
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path, tmp_path / "no" / "answer", loop, tmp_path / ("x" * 300)):
        with pytest.raises(SpecError, match="--out"):
            files.check_writable(path)
    assert list(tmp_path.iterdir()) == [loop]


def test_a_protected_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protected = tmp_path / "answer"
    protected.write_text("old")
    # Root may write everywhere, so the system's answer is given here.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SpecError, match="write-protected"):
        files.check_writable(protected)


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(SpecError, match="cannot be written: Permission denied"):
        files.check_writable(tmp_path / "answer")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answer"
    path.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(files.to_csv(ROWS))
    (tmp_path / "a.parquet").write_bytes(files.to_parquet(ROWS))
    assert polars.read_csv(tmp_path / "a.csv").to_dicts() == ROWS
    assert polars.read_parquet(tmp_path / "a.parquet").to_dicts() == ROWS
