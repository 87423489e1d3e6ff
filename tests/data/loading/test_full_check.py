"""`lightning data check --all`: everything is written out once, and later starts know it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_mllm.cli.main import main
from lightning_mllm.data import ImageFolder
from lightning_mllm.data.loading.check_manifest import check_manifest_folder
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.full_check import run_full_check
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.errors import DataError
from tests.data.loading.test_bad_rows import said
from tests.data.loading.test_datamodule import Memory
from tests.support.command_line import isolate, refusal, write_image_folder

COUNTS = {"apple": 6, "pear": 6}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", COUNTS)


def damage(path: Path) -> Path:
    """Write a JPEG that only decoding shows to be damaged: a table of its codes makes no sense."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    table = content.index(b"\xff\xc4") + 5
    content[table : table + 16] = b"\xff" * 16
    path.write_bytes(content)
    return path


def full_check(root: Path, checkpoint: str, *more: str) -> None:
    data = ("--data", "ImageFolder", "--data.init_args.root", str(root))
    main(["data", "check", "--all", "--checkpoint", checkpoint, *data, *more])


def module(root: Path, checkpoint: str) -> ImageFolder:
    return ImageFolder(root=str(root), checkpoint=checkpoint)


def forbid_writing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_out(*args: object) -> int:
        raise AssertionError("written out")

    monkeypatch.setattr(Collator, "check", write_out)


def test_later_starts_write_nothing_out(
    root: Path, tiny_llava: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_check(root, tiny_llava)
    assert "12 samples were written out" in capsys.readouterr().out
    assert len(list(check_manifest_folder().iterdir())) == 3

    forbid_writing_out(monkeypatch)
    for stage in ("fit", "test"):
        module(root, tiny_llava).setup(stage)
    full_check(root, tiny_llava)

    assert "of 3 splits this was known" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change", ["file", "time", "prompt", "samples"])
def test_what_decides_the_outcome_makes_it_unknown(
    change: str, root: Path, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_check(root, tiny_llava)
    forbid_writing_out(monkeypatch)
    again = module(root, tiny_llava)
    file = root / "apple" / "3.png"
    if change == "file":
        file.write_bytes(file.read_bytes() + b"\0")
    elif change == "time":
        os.utime(file, (1, 1))
    elif change == "prompt":
        again.max_length = 900
    else:
        file.rename(file.with_name("7.png"))

    with pytest.raises(AssertionError, match="written out"):
        again.setup("fit")


def test_a_picture_that_only_decoding_shows_to_be_damaged_is_known_from_then_on(
    root: Path, tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(root / "apple" / "9.jpg")
    module(root, tiny_llava).setup("fit")  # it can't be told from header, end and checksums

    message = refusal(
        capsys,
        [
            "data",
            "check",
            "--all",
            "--checkpoint",
            tiny_llava,
            "--data",
            "ImageFolder",
            f"--data.init_args.root={root}",
        ],
    )

    assert "error:" in message
    assert "9.jpg" in message
    with pytest.raises(DataError, match=r"9\.jpg"):
        for stage in ("fit", "test"):
            module(root, tiny_llava).setup(stage)


def test_without_a_checkpoint_it_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(
        capsys,
        ["data", "check", "--all", "--data", "ImageFolder", "--data.init_args.root", str(root)],
    )

    assert "no checkpoint is named. Give its config before the data's, or --checkpoint" in message


def test_the_checkpoint_of_a_fits_config_will_do(
    root: Path, tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"model: {{checkpoint: {tiny_llava}}}\n"
        f"data: {{class_path: ImageFolder, init_args: {{root: {root}}}}}\n"
    )

    main(["data", "check", "--all", "--config", str(config), "--splits", "[train]"])

    assert "8 samples were written out" in capsys.readouterr().out


def test_what_does_not_fit_is_known_from_then_on(tiny_llava: str) -> None:
    train = [said("long", "word " * 90), *(said(str(k)) for k in range(3))]
    run_full_check(Memory(train, train[1:], checkpoint=tiny_llava, max_length=90), ["train"])
    found = run_full_check(
        again := Memory(train, train[1:], checkpoint=tiny_llava, max_length=90), ["train"]
    )
    again.setup("fit")

    assert (found.samples, found.known) == (3, 1)
    assert [sample.id for sample in again.samples["train"]] == ["0", "1", "2"]
    assert again.left_out["train"] == LeftOut(samples=1)


@pytest.mark.parametrize("option", [{"long_answers": "truncate"}, {"split_special_tokens": True}])
def test_what_changes_the_texts_of_samples_makes_it_unknown(
    tiny_llava: str, option: dict[str, Any]
) -> None:
    train = [said(str(k)) for k in range(3)]
    run_full_check(Memory(train, checkpoint=tiny_llava), ["train"])

    assert run_full_check(Memory(train, checkpoint=tiny_llava, **option), ["train"]).known == 0
