from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.probing.features.cache import FeatureCache

FORK = multiprocessing.get_context("fork")

# out of our control: a forked child runs on; here it only writes files
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def image(number: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.full((1, 2), float(number))}


def features(number: int) -> Tensor:
    return torch.full((1, 4, 8), number / 3)


def fail() -> Tensor:
    raise AssertionError("The features were computed although they are in the cache.")


def fetch(cache: FeatureCache, number: int) -> Tensor:
    return cache.fetch("tower", image(number), lambda: features(number))[0]


def stored(cache: FeatureCache, number: int) -> Tensor:
    return cache.fetch("tower", image(number), fail)[0]


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*/*") if path.is_file())


def write_and_die(root: Path, numbers: range) -> None:
    """Fill the cache; be killed when the last entry is written, but not yet under its name."""
    cache = FeatureCache(root)
    for number in numbers[:-1]:
        fetch(cache, number)
    os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
    fetch(cache, numbers[-1])


def write(root: Path, numbers: range) -> None:
    cache = FeatureCache(root)
    for number in numbers:
        fetch(cache, number)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_hit_is_bit_equal_to_the_miss_before_it(tmp_path: Path, dtype: str) -> None:
    miss = fetch(FeatureCache(tmp_path, dtype=dtype), 1)  # type: ignore[arg-type]

    hit = stored(FeatureCache(tmp_path, dtype=dtype), 1)  # type: ignore[arg-type]

    assert miss.dtype == hit.dtype == getattr(torch, dtype)
    assert torch.equal(miss, hit)
    assert torch.equal(hit, features(1).to(hit.dtype))


def test_an_entry_belongs_to_its_tower_image_shape_and_dtype(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    fetch(cache, 1)

    for source, other in (
        ("another tower", image(1)),
        ("tower", image(2)),
        ("tower", {"pixel_values": image(1)["pixel_values"].reshape(2, 1)}),
        ("tower", {"pixel_values": image(1)["pixel_values"].double()}),
        ("tower", {**image(1), "image_sizes": torch.tensor([28, 28])}),
    ):
        assert torch.equal(cache.fetch(source, other, lambda: features(7))[0], features(7).half())
    assert fetch(FeatureCache(tmp_path, dtype="bfloat16"), 1).dtype == torch.bfloat16
    assert len(files(tmp_path)) == 7
    assert torch.equal(stored(cache, 1), features(1).half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_knows_in_which_dtype_features_were_computed(tmp_path: Path, dtype: torch.dtype) -> None:
    miss = FeatureCache(tmp_path).fetch("tower", image(1), lambda: features(1).to(dtype))

    hit = FeatureCache(tmp_path).fetch("tower", image(1), fail)

    assert miss[1] == hit[1] == dtype
    assert torch.equal(miss[0], hit[0])


@pytest.mark.parametrize("left", [0, 5, 100])
def test_a_truncated_entry_is_computed_anew_and_repaired(tmp_path: Path, left: int) -> None:
    cache = FeatureCache(tmp_path)
    for number in (1, 2):
        fetch(cache, number)
    damaged = cache._path("tower", image(1))
    damaged.write_bytes(damaged.read_bytes()[:left])

    assert torch.equal(fetch(cache, 1), features(1).half())
    assert torch.equal(stored(cache, 1), features(1).half())
    assert torch.equal(stored(cache, 2), features(2).half())


def test_a_killed_writer_loses_nothing_but_its_entry(tmp_path: Path) -> None:
    process = FORK.Process(target=write_and_die, args=(tmp_path, range(6)))
    process.start()
    process.join()

    assert process.exitcode == -signal.SIGKILL
    assert [path.suffix for path in files(tmp_path)].count(".part") == 1
    cache = FeatureCache(tmp_path)
    for number in range(5):
        assert torch.equal(stored(cache, number), features(number).half())
    with pytest.raises(AssertionError, match="were computed"):
        stored(cache, 5)
    assert torch.equal(fetch(cache, 5), features(5).half())
    assert torch.equal(stored(cache, 5), features(5).half())


def test_a_partial_file_is_never_read_and_goes_once_it_is_old(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    fetch(cache, 1)
    whole = cache._path("tower", image(1))
    fresh, old = whole.with_suffix(".1.part"), whole.with_suffix(".2.part")
    whole.rename(old)
    fresh.write_bytes(old.read_bytes())
    os.utime(old, (time.time() - 7200,) * 2)

    assert torch.equal(fetch(FeatureCache(tmp_path), 1), features(1).half())
    assert fresh.exists()
    assert not old.exists()


def test_processes_share_a_folder(tmp_path: Path) -> None:
    processes = [FORK.Process(target=write, args=(tmp_path, range(60))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(files(tmp_path)) == 60
    for number in range(60):
        assert torch.equal(stored(FeatureCache(tmp_path), number), features(number).half())


def test_writers_with_one_process_id_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # of two hosts that share the folder
    first, second = FeatureCache(tmp_path), FeatureCache(tmp_path)
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        fetch(second, 1)  # from the first byte to the last, while the first one is at it
        fsync(descriptor)

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "fsync", meanwhile)
    fetch(first, 1)

    assert not caplog.records
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"]
    assert torch.equal(stored(first, 1), features(1).half())


def test_a_full_cache_adds_nothing_warns_once_and_stays_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        fetch(FeatureCache(tmp_path), number)
    limit = sum(path.stat().st_size for path in files(tmp_path))

    cache = FeatureCache(tmp_path, max_gigabytes=(limit + 10) / 1e9)
    with caplog.at_level(logging.WARNING):
        found = [fetch(cache, number) for number in range(8)]

    assert all(torch.equal(each, features(number).half()) for number, each in enumerate(found))
    assert sum(path.stat().st_size for path in files(tmp_path)) == limit
    assert len(caplog.records) == 1
    assert f"{tmp_path} has reached its limit" in caplog.text


def test_other_processes_count_towards_the_limit(tmp_path: Path) -> None:
    fetch(FeatureCache(tmp_path), 0)
    size = files(tmp_path)[0].stat().st_size
    first, second = (FeatureCache(tmp_path, max_gigabytes=10.5 * size / 1e9) for _ in range(2))

    for number in range(1, 20):
        fetch(first, number)
        fetch(second, -number)

    assert len(files(tmp_path)) <= 11


def test_a_full_disk_turns_the_cache_off_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path)
    fetch(cache, 0)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        found = [fetch(cache, number) for number in range(4)]

    assert all(torch.equal(each, features(number).half()) for number, each in enumerate(found))
    assert len(files(tmp_path)) == 1  # not even a partial file is left
    assert len(caplog.records) == 1
    assert f"{tmp_path} can't be written to" in caplog.text
    assert "No space left" in caplog.text


def test_a_folder_that_is_a_file_turns_the_cache_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")

    assert torch.equal(fetch(FeatureCache(tmp_path / "file"), 1), features(1).half())
    assert "can't be written to" in caplog.text


def test_features_that_overflow_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reach 1e\+05.*float16 can hold.*bfloat16"):
        FeatureCache(tmp_path).fetch("tower", image(1), lambda: torch.full((1, 2, 2), 1e5))
    found, _ = FeatureCache(tmp_path, dtype="bfloat16").fetch(
        "tower", image(1), lambda: torch.full((1,), 1e5)
    )
    assert found.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gigabytes": 0}, "max_gigabytes is 0; a cache needs room"),
        ({"dtype": "float32"}, "dtype is 'float32'"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureCache(tmp_path, **options)  # type: ignore[arg-type]
