"""Users' errors by the real command line: one clear message, before any step, exit code not 0."""

from __future__ import annotations

import csv
import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_mllm.cli.main import main
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from tests.data.loading.test_full_check import damage
from tests.support.command_line import (
    CONFIGS,
    SMALL_DIGITS,
    TRIAL,
    conversation,
    files_below,
    final_metrics,
    isolate,
    picture,
    refusal,
    write_image_folder,
    write_llava_json,
)

LONGEST_MESSAGE = 1_500  # characters


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_steps(monkeypatch)


def forbid_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any) -> None:
        raise AssertionError("training began")

    for name in ("training_step", "validation_step", "test_step"):
        monkeypatch.setattr(MLLMModule, name, step)


def check(message: str, *patterns: str) -> None:
    for pattern in patterns:
        assert re.search(pattern, message, re.DOTALL), f"{pattern!r} is not in: {message}"
    assert len(message) < LONGEST_MESSAGE, message


# ---- checkpoints ---------------------------------------------------------------------------------


def empty_folder(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def text_only(folder: Path) -> str:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=8,
        head_dim=8,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def without_weights(folder: Path) -> str:
    build_tiny_checkpoint(folder)
    next(folder.glob("*.safetensors")).unlink()
    return str(folder)


def truncated_weights(folder: Path) -> str:
    weights = next(build_tiny_checkpoint(folder).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    return str(folder)


def no_json(folder: Path) -> str:
    (build_tiny_checkpoint(folder) / "config.json").write_text("{")
    return str(folder)


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "wrong hub id": (
        lambda _: "llava-hf/llava-1.5-7bb",
        ("llava-hf/llava-1.5-7bb", "hub id|spelling"),
    ),
    "mistyped path": (lambda _: "checkpoints/quikstart", ("checkpoints/quikstart", "folder")),
    "empty folder": (empty_folder, ("checkpoint", "config.json", "folder")),
    "text only": (text_only, ("text-only", "llama", "llava")),
    "no weights": (without_weights, ("checkpoint", "safetensors")),
    "truncated weights": (truncated_weights, ("checkpoint", "weights|safetensors")),
    "malformed config": (no_json, ("checkpoint", r"config\.json|JSON")),
}


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_that_is_none_is_refused(
    command: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, patterns = BAD_CHECKPOINTS[case]

    message = refusal(
        capsys,
        [command, "--model.checkpoint", make(tmp_path / "checkpoint"), *SMALL_DIGITS, *TRIAL],
    )

    check(message, *patterns)


# ---- image folders -------------------------------------------------------------------------------


def photos(root: Path) -> Path:
    return write_image_folder(root, {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})


def change_a_file(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        change(photos(root) / "train" / "dog" / "1.png")

    return make


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


def truncate_jpeg(path: Path) -> None:
    picture(1, (200, 200)).save(path.with_suffix(".jpg"))
    truncate(path.with_suffix(".jpg"))


def huge(path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(path)


def wide(path: Path) -> None:
    Image.new("1", (30_000, 4)).save(path)


def missing_split(root: Path) -> None:
    write_image_folder(root, {"val/cat": 1, "val/dog": 1})


def misnamed_split(root: Path) -> None:
    write_image_folder(root, {"train/cat": 2, "train/dog": 2, "validation/cat": 1})


def empty_class(root: Path) -> None:
    (photos(root) / "train" / "horse").mkdir()


def new_class_in_val(root: Path) -> None:
    write_image_folder(photos(root), {"val/horse": 1})


def same_names(root: Path) -> None:
    write_image_folder(root, {"Bell_pepper leaf": 3, "bell pepper_leaf": 3})


def link_out(root: Path) -> None:
    picture(0).save(root.parent / "secret.png")
    (photos(root) / "train" / "cat" / "link.png").symlink_to(root.parent / "secret.png")


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda root: None, ("does not exist", "photos", "root")),
    "a file": (lambda root: root.write_text("x"), ("is a file", "photos")),
    "without classes": (lambda root: root.mkdir(), ("no class folders", "photos")),
    "missing split": (missing_split, ("train", "missing", "Make it")),
    "misnamed split": (misnamed_split, ("validation", "'val'", "Rename")),
    "empty class": (empty_class, ("horse", "no images", "remove the folder")),
    "class only in val": (new_class_in_val, ("horse", "val", "training")),
    "duplicate names": (same_names, ("Bell_pepper leaf", "bell pepper_leaf", "Merge|rename")),
    "link out of the root": (link_out, (r"link\.png", "out of", "Copy")),
    "truncated png": (change_a_file(truncate), (r"dog/1\.png", "truncated|broken", "Fetch")),
    "truncated jpeg": (change_a_file(truncate_jpeg), (r"dog/1\.jpg", "(?i)truncated", "Fetch")),
    "zero bytes": (
        change_a_file(lambda path: path.write_bytes(b"")),
        (r"dog/1\.png", "zero bytes", "Fetch|remove"),
    ),
    "text": (
        change_a_file(lambda path: path.write_text("<html>")),
        (r"dog/1\.png", "not an image", "remove"),
    ),
    "one pixel": (change_a_file(picture(0, (1, 1)).save), (r"dog/1\.png", "1 x 1", "at least 2")),
    "30,000 pixels wide": (
        change_a_file(wide),
        (r"dog/1\.png", "too large.*30000", "Scale it down"),
    ),
    "decompression bomb": (change_a_file(huge), (r"dog/1\.png", "too large", "Scale it down")),
}


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_image_folder_is_refused(
    case: str, tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, patterns = BAD_FOLDERS[case]
    make(tmp_path / "photos")

    message = refusal(capsys, [*folder_fit(tiny_llava, tmp_path / "photos"), *TRIAL])

    check(message, *patterns)


@pytest.mark.usefixtures("no_steps")
def test_a_test_without_test_folder_is_refused(
    tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *arguments = folder_fit(tiny_llava, photos(tmp_path / "photos"))

    message = refusal(capsys, ["test", *arguments, *TRIAL])

    check(message, "photos/test", "missing", "Make it")


@pytest.mark.usefixtures("no_steps")
def test_several_bad_images_are_listed_at_once(
    tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0.png", "2.png"):
        (photos(tmp_path / name) / "train" / "cat" / name).write_bytes(b"")
        broken = tmp_path / name
    (broken / "train" / "dog" / "0.png").write_bytes(b"")

    message = refusal(capsys, [*folder_fit(tiny_llava, broken), *TRIAL])

    check(message, "2 of 8 image files", r"cat/2\.png", r"dog/0\.png")


@pytest.mark.usefixtures("no_steps")
def test_a_class_name_longer_than_the_context_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(build_tiny_checkpoint(tmp_path / "short", size=TinySize(context=128)))
    root = write_image_folder(tmp_path / "photos", {"cat": 3, "xq" * 100: 3})

    message = refusal(capsys, [*folder_fit(checkpoint, root), *TRIAL])

    check(message, "class name", "xqxq", "tokens", "128", "Shorten")


def test_odd_but_readable_images_train(tiny_llava: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    folder = root / "train" / "cat"
    picture(1).convert("CMYK").save(folder / "cmyk.jpg")
    picture(2).convert("P").save(folder / "palette.png")
    picture(3).convert("RGBA").save(folder / "transparent.png")
    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100).save(
        folder / "16-bit.png"
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(4).save(folder / "rotated.jpg", exif=exif)
    picture(5).save(folder / "animated.gif", save_all=True, append_images=[picture(6), picture(7)])
    picture(8).convert("1").save(folder / "black and white.png")
    picture(9, (4, 900)).save(folder / "tall.png")

    main([*folder_fit(tiny_llava, root), "--trainer.fast_dev_run", "3"])


# ---- LLaVA JSON ----------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    return [conversation(f"p{k}", images=k % 3) for k in range(8)]


def third(**changes: Any) -> str:
    """Return the file's text with its third row, which has two images, changed."""
    content = rows()
    content[2] = {**content[2], **changes}
    return json.dumps(content)


def turns(question: str, answer: str = "It is.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


BAD_JSON: dict[str, tuple[str, tuple[str, ...]]] = {
    "malformed": (
        json.dumps(rows(), indent=1).replace('"id": "p2"', '"id": "p2'),
        ("row 3", "malformed JSON", "line"),
    ),
    "no list": ("{}", ("dict", "list of rows")),
    "empty": ("[]", ("train", "empty")),
    "path leaving the root": (
        third(image=["../secret.png", "p2-1.png"]),
        ("row 3", "image", "leads out"),
    ),
    "absolute path": (third(image=["/etc/passwd", "p2-1.png"]), ("row 3", "image", "leads out")),
    "missing image": (
        third(image=["p2-0.png", "gone.png"]),
        ("row 3", r"gone\.png", "does not exist"),
    ),
    "fewer placeholders": (
        third(conversations=turns("<image> What?")),
        ("row 3", "fewer <image>", "2"),
    ),
    "more placeholders": (
        third(conversations=turns("<image>" * 3)),
        ("row 3", "more <image>", "3"),
    ),
    "placeholder in an answer": (
        third(conversations=turns("<image>", "<image>")),
        ("row 3", "answer"),
    ),
    "wrong order": (
        third(conversations=turns("<image>" * 2)[::-1]),
        ("row 3", "alternate|expected"),
    ),
    "empty answer": (third(conversations=turns("<image>" * 2, " ")), ("row 3", "empty")),
    "no conversation": (third(conversations=None), ("row 3", "conversations")),
}


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("case", BAD_JSON)
def test_a_bad_llava_file_is_refused(
    case: str, tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, patterns = BAD_JSON[case]
    file = write_llava_json(tmp_path / "talks", rows())
    file.write_text(text)
    picture(0).save(tmp_path / "secret.png")

    message = refusal(
        capsys,
        [
            *(
                "fit",
                "--model.checkpoint",
                tiny_llava,
                "--data",
                "LlavaJson",
                "--data.init_args.train",
                file,
            ),
            *TRIAL,
        ],
    )

    check(message, *patterns)


# ---- options -------------------------------------------------------------------------------------

BAD_OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "negative rate": (
        ["--model.learning_rates.projector", "-0.1"],
        ("learning_rates.projector", "at least 0", "-0.1"),
    ),
    "rate nan": (["--model.learning_rates.llm", ".nan"], ("learning_rates.llm", "nan")),
    "negative rate of another part": (
        ["--model.learning_rates.lora", "-1"],
        ("learning_rates.lora", "at least 0"),
    ),
    "nothing trainable": (
        ["--model.policy", "ZeroShot"],
        ("nothing trainable", "lightning test", "ProjectorOnly"),
    ),
    "pattern of nothing": (
        ["--model.policy", "ByPattern", "--model.policy.patterns", "[multimodal_projektor]"],
        ("multimodal_projektor", "matches nothing", "Names look like"),
    ),
    "no patterns": (
        ["--model.policy", "ByPattern", "--model.policy.patterns", "[]"],
        ("nothing trainable",),
    ),
    "pattern of idle parameters": (
        ["--model.policy", "ByPattern", "--model.policy.patterns", "[post_layernorm]"],
        ("post_layernorm", "no gradient"),
    ),
    "LoRA rank 0": (
        ["--model.policy", "Lora", "--model.policy.rank", "0"],
        ("rank must be at least 1", "0"),
    ),
    "LoRA on a layer that is none": (
        ["--model.policy", "Lora", "--model.policy.modules", "[w_pack]"],
        ("w_pack", "q_proj"),
    ),
    "warm-up over 1": (["--model.warmup_ratio", "1.5"], ("warmup_ratio", "between 0 and 1", "1.5")),
    "float16": (["--model.dtype", "float16"], ("float16", "bfloat16")),
    "dtype that is none": (["--model.dtype", "fp8"], ("model.dtype", "bfloat16", "fp8")),
    "batch of none": (["--data.init_args.batch_size", "0"], ("batch_size", "0", "positive")),
    "context too long": (
        ["--data.init_args.max_length", "100000"],
        ("max_length", "100000", "1024"),
    ),
    "context too short": (["--data.init_args.max_length", "20"], ("max_length", "20")),
    "tiles for LLaVA-1.5": (
        ["--data.init_args.geometry", "tiles"],
        ("tiles", "LLaVA-NeXT", "'pad'"),
    ),
    "fractions": (["--data.init_args.val_fraction", "0.9"], ("val_fraction", "below 1")),
    "no validation split": (
        ["--data.init_args.val_fraction", "0"],
        ("val", "empty", "val_fraction"),
    ),
    "projector that is none": (
        ["--model.projector", "none.safetensors"],
        ("none.safetensors", "projector"),
    ),
    "question without classes": (
        [
            "--data.init_args.prompt",
            "ClassificationPrompt",
            "--data.init_args.prompt.init_args.question",
            "What?",
        ],
        ("question", "{classes}".replace("{", r"\{")),
    ),
    "run name": (["--trainer.run.name", "a/b"], (r"trainer\.run\.name", "a/b", "plain name")),
    "checkpoint that is missing": (
        ["--ckpt_path", "nowhere.ckpt"],
        ("nowhere.ckpt", "no checkpoint file"),
    ),
    "a word for a number": (
        ["--trainer.max_epochs", "many"],
        ("trainer.max_epochs", "many", "int"),
    ),
    "no such config": (["--config", "none.yaml"], ("none.yaml", "There is no config file")),
    "unknown key": (["--data.init_args.batchsize", "1"], ("batchsize", "Did you mean.*batch_size")),
}


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_refused(
    case: str, tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, patterns = BAD_OPTIONS[case]

    message = refusal(
        capsys,
        [
            "fit",
            "--model.checkpoint",
            tiny_llava,
            *SMALL_DIGITS,
            "--trainer.max_epochs",
            "1",
            *options,
        ],
    )

    check(message, *patterns)


@pytest.mark.parametrize(
    ("arguments", "patterns"),
    [
        ([], ("fit", "validate", "export", "tiny")),
        (["fti"], ("fti", "fit")),
        (["fit"], ("needs model.checkpoint", "For example")),
        (["fit", "--model.checkpoint", "x"], ("needs data", "For example")),
    ],
    ids=["nothing", "sub-command", "no checkpoint", "no data"],
)
def test_a_command_with_something_missing_is_refused(
    arguments: list[str], patterns: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    check(refusal(capsys, arguments), *patterns)


# ---- checkpoints of a training -------------------------------------------------------------------


def short_fit(checkpoint: str, name: str, *options: str) -> list[str]:
    return [
        *(
            "fit",
            "--model.checkpoint",
            checkpoint,
            *SMALL_DIGITS,
            "--model.scorers",
            "[]",
            "--trainer.run.root",
            "runs",
        ),
        *(
            "--trainer.run.name",
            name,
            "--trainer.limit_train_batches",
            "2",
            "--trainer.limit_val_batches",
            "1",
        ),
        *("--trainer.max_epochs", "2", *options),
    ]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_of_another_model_is_refused(
    command: str,
    tiny_llava: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = str(build_tiny_checkpoint(tmp_path / "other", seed=1))
    main(short_fit(other, "of-other"))
    forbid_steps(monkeypatch)
    _, *arguments = short_fit(
        tiny_llava, "mine", "--ckpt_path", "runs/of-other/checkpoints/last.ckpt"
    )

    message = refusal(capsys, [command, *arguments])

    check(message, "checkpoint", re.escape(other), re.escape(tiny_llava), "model.checkpoint")


def test_a_checkpoint_of_another_policy_is_refused(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(short_fit(tiny_llava, "projector"))
    resume = (
        "--ckpt_path",
        "runs/projector/checkpoints/last.ckpt",
        "--config",
        str(CONFIGS / "policy" / "lora.yaml"),
    )

    message = refusal(capsys, short_fit(tiny_llava, "lora", *resume))

    check(message, "ProjectorOnly", "Lora", "same policy", "export")


def test_a_checkpoint_that_is_damaged_is_refused(
    tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.ckpt").write_bytes(b"not a checkpoint")

    message = refusal(capsys, short_fit(tiny_llava, "resumed", "--ckpt_path", "damaged.ckpt"))

    check(message, r"damaged\.ckpt", "can't be read", "earlier")


def test_export_over_existing_files_is_refused(
    tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")

    message = refusal(
        capsys, ["export", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, "--output", "model"]
    )

    check(message, "model", "not empty", "--output")
    assert files_below(tmp_path) == {"model/notes.txt"}


def test_a_full_disk_while_saving_corrupts_nothing(
    tiny_llava: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save, checkpoints = torch.save, tmp_path / "runs" / "full" / "checkpoints"

    def until_the_disk_is_full(content: Any, part: Path) -> None:
        if content["global_step"] < 4:
            save(content, part)
            return
        part.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    monkeypatch.setattr(torch, "save", until_the_disk_is_full)
    message = refusal(
        capsys, [*short_fit(tiny_llava, "full"), "--checkpointing.every_n_train_steps", "2"]
    )
    monkeypatch.undo()

    check(message, "could not be written", "No space left", "Free some space", "--ckpt_path")
    assert not [name for name in files_below(tmp_path) if name.endswith(".part")]
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2


def folder_fit(checkpoint: str, root: Path) -> list[str]:
    return [
        *(
            "fit",
            "--model.checkpoint",
            checkpoint,
            "--data",
            "ImageFolder",
            "--data.init_args.root",
            str(root),
        ),
        *("--data.init_args.batch_size", "4", "--data.init_args.eval_batch_size", "4"),
    ]


# ---- rows that can't be used ---------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_fails_in_an_epoch_names_sample_and_file_in_one_sentence(
    num_workers: int, tiny_llava: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {f"{split}/{name}": 3 for split in ("train", "val", "test") for name in "ab"}
    root = write_image_folder(tmp_path / "images", counts)
    damage(root / "train" / "a" / "9.jpg")  # no check of headers, ends and checksums shows it

    arguments = ["--data.init_args.num_workers", num_workers, "--trainer.logger", "false"]
    message = refusal(capsys, [*folder_arguments("fit", tiny_llava, root), *arguments])

    check(
        message,
        r"^error: \S+9\.jpg \(sample 'train/a/9\.jpg'\): "
        r"broken data stream when reading image file\. Fetch",
    )
    assert "\n" not in message.strip()


def test_rows_that_are_left_out_are_counted_and_listed(tiny_llava: str, tmp_path: Path) -> None:
    root = write_image_folder(
        tmp_path / "images", {f"{split}/{name}": 4 for split in ("train", "test") for name in "ab"}
    )
    for name in ("train/a/0.png", "train/b/1.png", "test/a/2.png"):
        (root / name).write_bytes(b"<html>")
    arguments = [
        "--data.init_args.on_bad_row",
        "skip",
        "--test_after",
        "true",
        "--trainer.run.wandb",
        "disabled",
    ]
    arguments += ["--model.warmup_ratio", "0"]

    main([*folder_arguments("fit", tiny_llava, root), *arguments])

    with (tmp_path / "runs/run/bad_rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["problem"].partition(":")[0]).name for row in rows) == [
        "0.png",
        "1.png",
        "2.png",
    ]
    assert {row["kind"] for row in rows} == {"image file"}
    metrics = final_metrics(tmp_path / "runs/run")
    left_out = {name: value for name, value in metrics.items() if name.startswith("bad_rows/")}
    assert sum(left_out.values()) == 3
    assert left_out["bad_rows/test"] == 1


def folder_arguments(command: str, checkpoint: str, root: Path) -> list[str]:
    return [
        *(
            command,
            "--model.checkpoint",
            checkpoint,
            "--config",
            str(CONFIGS / "policy/ft_proj.yaml"),
        ),
        *(
            "--data",
            "ImageFolder",
            "--data.init_args.root",
            str(root),
            "--data.init_args.batch_size",
            "4",
        ),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]
