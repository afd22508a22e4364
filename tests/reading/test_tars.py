from __future__ import annotations

import gzip
import io
import logging
import tarfile
from pathlib import Path

import pytest

from cirlab.errors import UserError
from cirlab.reading.tars import TarIndex


def write_tar(path: Path, files: dict[str, bytes], **options: int) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


LONG = "long/" * 30 + "ü.jpg"
FILES = {"a.txt": b"alpha", "folder/b": bytes(range(256)) * 5, "empty": b"", LONG: b"long"}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_the_archives(tmp_path: Path, form: int) -> None:
    first = write_tar(tmp_path / "0.tar", FILES, format=form)
    second = write_tar(tmp_path / "1.tar", {"a.txt": b"other"}, format=form)
    index = TarIndex([first, second])
    assert [index.name(i) for i in range(len(index))] == [*FILES, "a.txt"]
    assert [index.read(i) for i in range(len(index))] == [*FILES.values(), b"other"]


def test_the_cache_is_used_until_the_archive_changes(tmp_path: Path) -> None:
    tar, cache = write_tar(tmp_path / "0.tar", FILES), tmp_path / "cache"
    TarIndex([tar], cache=cache)
    (entry,) = cache.iterdir()
    made = entry.stat().st_mtime_ns
    again = TarIndex([tar], cache=cache)
    assert again.read(0) == b"alpha"
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [made]
    write_tar(tar, {"new": b"n" * 20000})
    changed = TarIndex([tar], cache=cache)
    assert [changed.name(0), changed.read(0)] == ["new", b"n" * 20000]


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    tar = write_tar(tmp_path / "0.tar", FILES)
    with caplog.at_level(logging.WARNING):
        index = TarIndex([tar], cache=tmp_path / "file" / "cache")
    assert index.read(0) == b"alpha"
    assert "not kept" in caplog.text


def test_an_archive_without_files_is_empty(tmp_path: Path) -> None:
    index = TarIndex([write_tar(tmp_path / "0.tar", {}), write_tar(tmp_path / "1.tar", FILES)])
    assert len(index) == len(FILES)
    assert index.read(0) == b"alpha"


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no archive .*none\.tar"):
        TarIndex([tmp_path / "none.tar"])


@pytest.mark.parametrize("keep", [100, 700, 2100])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "0.tar", {"a": b"a" * 100, "b": b"b" * 3000})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"0\.tar .*copy it again"):
        TarIndex([path])


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", FILES)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="not a whole, uncompressed tar archive"):
        TarIndex([path])


def test_an_archive_that_shrinks_or_vanishes_later_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"a": b"a" * 3000})
    index = TarIndex([path])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="ends within a"):
        index.read(0)
    path.unlink()
    with pytest.raises(UserError, match="cannot read a from"):
        index.read(0)
