"""Kept prefixes: the same when they come back, within the budget, and never half of one."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch

from cirlab.encoders.mllm.prefix import Prefix
from cirlab.encoders.mllm.prefix_cache import PrefixCache
from cirlab.errors import UserError

GIB = 1 << 30
SPAWN = multiprocessing.get_context("spawn")
TEMPLATE = "<image>Represent the given image."


def prefix(
    rows: int = 1, tokens: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Prefix:
    """Rows of `tokens`, `tokens` - 1, ... tokens."""
    draw = torch.Generator().manual_seed(seed)
    layers = tuple(
        tuple(torch.randn(rows, 2, tokens, 4, generator=draw).to(dtype) for _ in range(2))
        for _ in range(3)
    )
    counts = tokens - torch.arange(rows)
    mask = (torch.arange(tokens).flip(0) < counts[:, None]).long()
    return Prefix(layers, mask, counts + 5)


def assert_same(kept: Prefix | None, computed: Prefix) -> None:
    assert kept is not None
    torch.testing.assert_close(kept.layers, computed.layers, rtol=0, atol=0)
    torch.testing.assert_close(kept.mask, computed.mask)
    torch.testing.assert_close(kept.following, computed.following)


def taken(folder: Path) -> int:
    """Bytes of all files that hold prefixes, whole or not."""
    return sum(p.stat().st_size for p in (folder / "prefixes").glob("*.safetensors*"))


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "disk" else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_picture_comes_back_by_its_name(folder: Path | None, dtype: torch.dtype) -> None:
    cache = PrefixCache(folder, 1.0, "model")
    batch = prefix(rows=3, dtype=dtype)
    cache.put(["a", "b", "c"], batch)
    found = cache.get(["c", "unknown", "a"])
    rows = list(batch.rows())
    assert found[1] is None
    assert_same(found[0], rows[2])
    assert_same(found[2], rows[0])
    # What is kept does not hold the batch's memory.
    assert all(s.untyped_storage().nbytes() == s.nbytes for s in found[0].layers[0])


def test_of_another_encoder_nothing_is_known(folder: Path | None) -> None:
    PrefixCache(folder, 1.0, "model").put(["a"], prefix())
    assert PrefixCache(folder, 1.0, "other model").get(["a"]) == [None]


def test_on_disk_they_outlive_the_process(tmp_path: Path) -> None:
    PrefixCache(tmp_path, 1.0, "model").put(["a"], prefix())
    assert_same(PrefixCache(tmp_path, 1.0, "model").get(["a"])[0], prefix())


def test_what_has_not_been_asked_for_the_longest_makes_way(folder: Path | None) -> None:
    one = taken_by_one(folder)
    cache = PrefixCache(folder, 3.4 * one / GIB, "model")
    for name in "abc":
        cache.put([name], prefix())
    cache.get(["a"])
    cache.put(["d"], prefix())
    assert [found is not None for found in cache.get(list("abcd"))] == [True, False, True, True]


def taken_by_one(folder: Path | None) -> int:
    if folder is None:
        return prefix().size
    PrefixCache(folder / "one", 1.0, "model").put(["a"], prefix())
    return taken(folder / "one")


def test_the_budget_counts_what_others_wrote(tmp_path: Path) -> None:
    one = taken_by_one(tmp_path)
    budget = 5 * one
    caches = [PrefixCache(tmp_path, budget / GIB, f"model {i}") for i in range(3)]
    for number in range(12):
        caches[number % 3].put([str(number)], prefix(seed=number))
        assert taken(tmp_path) <= budget
    assert taken(tmp_path) >= 3 * one
    assert_same(caches[2].get(["11"])[0], prefix(seed=11))
    # Another run has less room.
    PrefixCache(tmp_path, 2 * one / GIB, "model").put(["new"], prefix())
    assert taken(tmp_path) <= 2 * one


def test_a_prefix_above_the_budget_is_told_of_and_not_kept(
    folder: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PrefixCache(folder, prefix().size / 2 / GIB, "model")
    with caplog.at_level(logging.WARNING):
        cache.put(["a"], prefix())
        cache.put(["b"], prefix())
    assert cache.get(["a", "b"]) == [None, None]
    assert len(caplog.records) == 1 and "computed again wherever" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "no header"])
def test_a_broken_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    cache = PrefixCache(tmp_path, 1.0, "model")
    cache.put(["a"], prefix())
    (path,) = (tmp_path / "prefixes").glob("*.safetensors")
    data = path.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    broken = {"cut": data[:-7], "empty": b"", "flipped": flipped, "no header": b"x" * len(data)}
    path.write_bytes(broken[damage])
    assert cache.get(["a"]) == [None]
    cache.put(["a"], prefix())
    assert_same(cache.get(["a"])[0], prefix())


@pytest.mark.parametrize("note", ["", "12x", None])
def test_a_kill_between_note_and_file_costs_no_more_than_a_look(
    tmp_path: Path, note: str | None
) -> None:
    one = taken_by_one(tmp_path)
    budget = 4 * one
    cache = PrefixCache(tmp_path, budget / GIB, "model")
    cache.put(["a"], prefix())
    left = tmp_path / "prefixes" / "b.safetensors.0.unfinished"
    left.write_bytes(b"x" * 3 * one)
    bytes_noted = tmp_path / "prefixes" / "bytes"
    bytes_noted.unlink() if note is None else bytes_noted.write_text(note)
    for name in "cdefg":
        cache.put([name], prefix())
        assert taken(tmp_path) <= budget
    assert not left.exists()
    assert_same(cache.get(["g"])[0], prefix())


def fill(folder: Path, budget: int, start: int) -> None:
    """Sixty pictures' worth of reading and writing, of forty different ones."""
    cache = PrefixCache(folder, budget / GIB, "model")
    for number in range(start, start + 60):
        seed = number % 40
        (found,) = cache.get([str(seed)])
        if found is not None:
            assert_same(found, prefix(seed=seed))
        cache.put([str(seed)], prefix(seed=seed))
        # Files come and go; nobody writes while they are counted.
        with (folder / "prefixes" / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert taken(folder) <= budget


def test_two_processes_build_it_at_once(tmp_path: Path) -> None:
    budget = 20 * taken_by_one(tmp_path)
    other = SPAWN.Process(target=fill, args=(tmp_path, budget, 20))
    other.start()
    wait_until(lambda: (tmp_path / "prefixes").exists(), other)
    fill(tmp_path, budget, 0)
    other.join()
    assert other.exitcode == 0
    found = PrefixCache(tmp_path, budget / GIB, "model").get([str(seed) for seed in range(40)])
    assert sum(kept is not None for kept in found) >= 10
    for seed, kept in enumerate(found):
        if kept is not None:
            assert_same(kept, prefix(seed=seed))


def write_half(folder: Path) -> None:
    """As a disk does that is slow."""

    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            time.sleep(600)

    Path.write_bytes = half
    PrefixCache(folder, 1.0, "model").put(["a"], prefix())


def test_what_a_kill_leaves_is_never_read_and_hinders_nobody(tmp_path: Path) -> None:
    writer = SPAWN.Process(target=write_half, args=(tmp_path,))
    writer.start()
    wait_until(lambda: taken(tmp_path) > 0, writer)
    cache = PrefixCache(tmp_path, 1.0, "model")
    assert cache.get(["a"]) == [None]
    writer.kill()
    writer.join()
    assert cache.get(["a"]) == [None] and taken(tmp_path) > 0
    cache.put(["a"], prefix())
    assert_same(cache.get(["a"])[0], prefix())


def wait_until(happened: Callable[[], bool], process: SpawnProcess) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be kept in .*prefixes .*choose another folder"):
        PrefixCache(tmp_path, 1.0, "model").put(["a"], prefix())


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_no_budget_is_refused(budget: float) -> None:
    with pytest.raises(UserError, match=f"is {budget} GiB; set it above 0"):
        PrefixCache(None, budget, "model")
