"""What set-up has found is kept, told again, and shared by all processes."""

import json
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_mllm.data import ImageFolder, LlavaJson
from lightning_mllm.data.loading import set_up
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.set_up_record import set_up_record_path
from lightning_mllm.errors import DataError, UserError
from tests.data.conftest import picture
from tests.support.command_line import write_image_folder

Make = Callable[[], MLLMDataModule]


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(set_up, "KEPT_FROM", 1)


def settle(folder: Path) -> None:
    """Give files a time in the past: those changed just now are looked at again."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 60, time.time() - 60))


def write_rows(folder: Path) -> Path:
    (folder / "images").mkdir()
    rows: list[dict[str, Any]] = []
    for k in range(30):
        picture(20 + k, 24).save(folder / "images" / f"{k}.png")
        turns = [("human", f"<image>\nWhat is {k}?"), ("gpt", "thirty é" if k % 3 else "two")]
        row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
        rows.append({**row, "id": str(k % 25), "image": f"{k}.png", "unread": 1})
    rows[7]["image"] = "gone.png"
    file = folder / "train.json"
    file.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    return file


@pytest.fixture(params=["folder", "json"])
def make(request: pytest.FixtureRequest, tmp_path: Path, tiny_llava: str) -> Make:
    if request.param == "folder":
        root = write_image_folder(tmp_path / "images", {"a_b": 12, "c": 12})
        (root / "c" / "notes.txt").touch()
        settle(root)
        return lambda: ImageFolder(root=str(root), checkpoint=tiny_llava, batch_size=4)
    file = write_rows(tmp_path)
    settle(tmp_path / "images")
    return lambda: LlavaJson(
        train=str(file),
        image_root=str(tmp_path / "images"),
        checkpoint=tiny_llava,
        batch_size=4,
        on_bad_row="skip",
    )


def read(module: MLLMDataModule) -> list[Any]:
    loaders = (module.train_dataloader(), module.val_dataloader())
    batches = []
    for loader in loaders:
        batches += [(batch.sample_ids, batch.input_ids.tolist()) for batch in loader]
    options = module.train_dataloader().batch_sampler.options
    return [batches, options, module.label_set, module.kinds, module.left_out_metrics("train")]


def test_a_second_start_gives_the_same_batches_and_warnings_and_checks_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = make()
    first.setup("fit")
    said = sorted(record.getMessage() for record in caplog.records)
    caplog.clear()
    monkeypatch.setattr(set_up, "_check", None)

    second = make()
    second.setup("fit")

    assert said
    assert sorted(record.getMessage() for record in caplog.records) == said
    assert read(second) == read(first)


def test_a_split_that_was_not_kept_is_whole_after_one_that_was(make: Make) -> None:
    expected, first = make(), make()
    expected.setup("fit")
    first.setup("validate")

    second = make()
    second.setup("validate")
    kept = second.left_out_metrics("val")
    second.setup("fit")

    assert read(second) == read(expected)
    assert second.left_out_metrics("val") == kept


def test_one_process_may_ask_for_a_split_alone(make: Make) -> None:
    module = make()
    module.trainer = SimpleNamespace(world_size=2, global_rank=0, loggers=[])  # type: ignore[assignment]
    module.plain_dataloader("val")
    module.trainer = None
    assert len(module.samples["val"])


def test_a_changed_picture_of_another_split_that_is_drawn_draws_anew(
    tmp_path: Path, tiny_llava: str
) -> None:
    root = write_image_folder(tmp_path / "images", {"a": 12, "c": 12})
    settle(root)
    drawn = []
    for _ in range(2):
        module = ImageFolder(root=str(root), checkpoint=tiny_llava)
        module.setup("fit")
        fitted = {sample.id for part in module.samples.values() for sample in part}
        module.setup("test")
        drawn.append(fitted)
        tested = {sample.id for sample in module.samples["test"]}
        assert not fitted & tested
        one, other = sorted(tested)[0], sorted(fitted)[0]
        (root / one).write_bytes((root / other).read_bytes())

    assert drawn[0] != drawn[1]


def test_a_cache_that_can_not_be_written_is_said_and_the_data_are_used(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    module = make()
    module.setup("fit")

    assert "can't be kept" in caplog.text
    assert "Set XDG_CACHE_HOME" in caplog.text
    assert len(module.samples["train"])


def test_bad_files_count_for_the_split_that_they_are_in(tmp_path: Path, tiny_llava: str) -> None:
    root = write_image_folder(tmp_path / "images", {"a": 12, "c": 12})
    (root / "c" / "x.heic").touch()
    for _ in range(2):
        module = ImageFolder(root=str(root), checkpoint=tiny_llava, on_bad_row="skip")
        module.setup("fit")
        assert module.left_out_metrics("train") == {"bad_rows/train": 1.0}


def test_a_changed_file_is_checked_again_and_that_is_said(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    module = make()
    module.setup("fit")
    file = Path(module.samples["train"][3].images[0])  # type: ignore[arg-type]
    file.write_bytes(file.read_bytes()[:40])
    caplog.clear()

    again = make()
    again.bad_rows.policy = module.bad_rows.policy
    if module.bad_rows.policy == "raise":
        with pytest.raises(DataError, match=file.name):
            again.setup("fit")
    else:
        again.setup("fit")
        assert str(file) in " ".join(row.problem for row in again.bad_rows)

    assert f"were changed since the last check (e.g. {file})" in caplog.text


def test_a_file_that_was_not_there_is_seen_once_it_is(tmp_path: Path, tiny_llava: str) -> None:
    file = write_rows(tmp_path)
    settle(tmp_path / "images")
    images = str(tmp_path / "images")
    counts = []
    for _ in range(2):
        module = LlavaJson(
            train=str(file), image_root=images, checkpoint=tiny_llava, on_bad_row="skip"
        )
        module.setup("fit")
        counts.append(sum(map(len, module.samples.values())))
        picture(9, 9).save(tmp_path / "images" / "gone.png")

    assert counts == [29, 30]


def test_a_record_that_can_not_be_read_is_made_again(make: Make) -> None:
    make().setup("fit")
    (record,) = set_up_record_path("x").parent.iterdir()
    whole = record.read_bytes()
    for broken in (b"", b"nothing", whole[:-100], whole[: len(whole) // 2]):
        record.write_bytes(broken)
        make().setup("fit")
        assert len(record.read_bytes()) > 100


class Processes:
    """Two processes as set-up sees them: the second hears what the first says."""

    def __init__(self) -> None:
        self.said: Queue[Any] = Queue()

    def trainer(self, rank: int) -> Any:
        def broadcast(message: Any) -> Any:
            if rank:
                return pickle.loads(self.said.get(timeout=60))
            self.said.put(pickle.dumps(message))
            return message

        strategy = SimpleNamespace(broadcast=broadcast)
        return SimpleNamespace(
            world_size=2, global_rank=rank, is_global_zero=not rank, loggers=[], strategy=strategy
        )

    def run(self, modules: list[MLLMDataModule]) -> list[BaseException | None]:
        errors: list[BaseException | None] = [None, None]

        def work(rank: int) -> None:
            try:
                modules[rank]._set_up(("train", "val"), together=True)
            except UserError as error:
                errors[rank] = error

        for rank, module in enumerate(modules):
            module.trainer = self.trainer(rank)
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for module in modules:
            module.trainer = None
        return errors


def test_the_first_process_checks_for_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [make(), make()]
    monkeypatch.setattr(modules[1], "load", None)
    monkeypatch.setattr(set_up, "_PATIENCE", 0.01)

    assert Processes().run(modules) == [None, None]

    assert read(modules[0]) == read(modules[1])


def test_all_processes_raise_what_the_first_one_found(make: Make) -> None:
    modules = [make(), make()]
    for module in modules:
        module.max_length = 20 if isinstance(module, ImageFolder) else 3

    first, second = Processes().run(modules)

    assert isinstance(first, UserError)
    assert type(first) is type(second)
    assert str(first) == str(second)


def test_a_time_out_of_a_disk_ends_all_processes_and_is_no_sign_of_life(make: Make) -> None:
    module, processes = make(), Processes()

    def time_out(splits: object) -> None:
        raise TimeoutError("the disk does not answer")

    module.describe_source = time_out  # type: ignore[method-assign]
    module.trainer = processes.trainer(0)
    with pytest.raises(TimeoutError, match="does not answer"):
        module._set_up(("train", "val"), together=True)
    module.trainer = None

    assert "error" in pickle.loads(processes.said.get(timeout=60))
    assert processes.said.empty()


def test_nothing_is_kept_of_small_datasets(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_up, "KEPT_FROM", logging.WARNING * 1000)
    make().setup("fit")
    assert not set_up_record_path("x").parent.exists()
