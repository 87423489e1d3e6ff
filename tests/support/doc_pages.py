"""Runs what a page of README or docs says, in an empty folder, with small stand-ins.

A model of the hub is a tiny checkpoint of its family, and folders and files of data are a few
drawn pictures. Fits take some steps, evaluations some batches.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from lightning_mllm.cli.main import main
from lightning_mllm.messages import show_messages
from lightning_mllm.testbed.language.gqa import write_questions_as_gqa
from lightning_mllm.testbed.training.exams import examination
from tests.conftest import TinyBuilder
from tests.support.command_line import (
    CONFIGS,
    conversation,
    write_image_folder,
    write_llava_json,
)
from tests.support.doc_commands import DocBlock, commands_of_block, doc_blocks
from tests.support.hf_tables import classes
from tests.support.published_datasets import write_plantdoc
from tests.support.shipped_configs import (
    FEW_PICTURES,
    MODELS,
    OTHERS_ON_THE_TESTBED,
    PATCH_WORDS_ON_THE_TESTBED,
    PROJECTION_CHANGE,
    SHALLOW,
)

_CLASSES = {
    "train/green leaf": 6,
    "train/brown leaf": 6,
    "test/green leaf": 4,
    "test/brown leaf": 4,
}
_ROWS = [conversation(f"row{number}", kind=f"kind{number % 2}") for number in range(12)]
_ON_THE_TESTBED = {  # options that make a config small
    "configs/runs/testbed/eval.yaml": ["--data.init_args.per_kind", "1"],
    f"configs/{PROJECTION_CHANGE}": FEW_PICTURES,
    "configs/runs/testbed/information_flow.yaml": ["--data.init_args.per_kind", "1"],
    **{f"configs/{name}": small for name, (small, *_) in OTHERS_ON_THE_TESTBED.items()},
    **{f"configs/{name}": small for name, small in PATCH_WORDS_ON_THE_TESTBED.items()},
}
_LEAVES_OUT_WRONG_ANSWERS = {
    "configs/analysis/information_flow.yaml",
    "configs/analysis/answer_lens.yaml",
}
_LIMITS = {  # of a command: some steps, some batches
    "fit": ("train", "val", "test"),
    "validate": ("val",),
    "test": ("test",),
    "analyze": ("predict",),
    "predict": ("predict",),
}


class PageRunner:
    """Runs the blocks of a page in their order, in one folder.

    Args:
        folder: The folder that the commands work in.
        tiny: Builds a tiny checkpoint.
        patch: Undoes afterwards what is changed in this process.
    """

    def __init__(self, folder: Path, tiny: TinyBuilder, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._tiny = folder, tiny
        self._variables: dict[str, str] = {}  # of the shell
        self._names: dict[str, Any] = {"__name__": "__main__"}  # of Python
        self._patch = patch
        patch.setattr(sys, "path", [str(folder), *sys.path])
        (folder / "configs").symlink_to(CONFIGS)
        self._write_data()

    def run(self, page: Path) -> None:
        """Run all blocks of a page that can be run."""
        with show_messages():  # a page may call it, too
            for block in doc_blocks(page):
                if block.language == "bash":
                    self._run_commands(block)
                elif block.language == "python" and not block.reason:
                    self._run_python(block)
                elif block.language == "yaml" and not block.reason:
                    self._parse_config(block)

    def _run_commands(self, block: DocBlock) -> None:
        for command in commands_of_block(block, self._variables):
            if not command.reason:
                assert command.words[0] == "lightning", command
                main([*command.words[1:], *self._in_small(command.words)])

    def _run_python(self, block: DocBlock) -> None:
        first, _, rest = block.text.partition("\n")
        if first.startswith("# ") and first.endswith(".py"):
            file = self._folder / first.removeprefix("# ")
            file.write_text(rest)
            self._patch.setitem(sys.modules, file.stem, ModuleType(file.stem))
            del sys.modules[file.stem]  # so that it is forgotten afterwards, should it be imported
            return
        place = f"{block.page.name}:{block.line}"
        exec(compile(block.text, place, "exec"), self._names)

    def _parse_config(self, block: DocBlock) -> None:
        """Parse a part of a config after a whole one."""
        file = self._folder / "page.yaml"
        file.write_text(block.text)
        configs = ["--config", "configs/quickstart.yaml", "--config", str(file)]
        with pytest.raises(SystemExit) as caught:
            main(["fit", *configs, "--print_config"])
        assert caught.value.code in (0, None), f"{block.page.name}:{block.line}"

    def _in_small(self, words: tuple[str, ...]) -> list[str]:
        """Return options that make a command small and let it do without the network."""
        if small := [option for word in words for option in _ON_THE_TESTBED.get(word, ())]:
            return small
        options: list[str] = []
        for stage in _LIMITS.get(words[1], ()):
            options += [f"--trainer.limit_{stage}_batches", "1"]
        if words[1] == "fit":
            options += ["--trainer.max_steps", "2", "--data.init_args.batch_size", "4"]
            if "ProbeEachEpoch" in words:
                options += ["--trainer.callbacks.init_args.seeds", "[0]"]
        if words[1] in _LIMITS:
            options += [
                "--data.init_args.num_workers",
                "0",
                "--data.init_args.eval_batch_size",
                "8",
            ]
        if checkpoint := self._stand_in(words):
            options += ["--model.checkpoint", checkpoint]
        if "configs/analysis/grounding.yaml" in words:
            options += ["--analysis.others", "3"]  # there are few pictures
        for word in words:
            options += SHALLOW.get(word.removeprefix("configs/"), ())
        if _LEAVES_OUT_WRONG_ANSWERS & set(words):
            options += ["--analysis.correct_only", "false"]  # random weights answer none right
        return options

    def _stand_in(self, words: tuple[str, ...]) -> str | None:
        """Return a tiny checkpoint in place of the hub's that a command names."""
        for word in words:
            found = MODELS.get(word.removeprefix("configs/"))
            if found is not None:
                return self._build(*found)
        return self._build("llava", "vicuna") if "llava-hf/llava-1.5-7b-hf" in words else None

    def _build(self, family: str, chat: str | None) -> str:
        return self._tiny(family, chat)  # type: ignore[arg-type]  # names of the shipped configs

    def _write_data(self) -> None:
        """Write the data that pages name, with a few pictures."""
        folder = self._folder
        for name in ("pictures", "plantdoc"):
            write_image_folder(folder / name, _CLASSES)
        write_plantdoc(folder / "path/to/PlantDoc-Dataset")
        classes(0, 30).to_parquet(folder / "leaves.parquet")
        rows = write_llava_json(folder, _ROWS).read_text()
        write_llava_json(folder / "images", _ROWS)
        for name in ("questions.json", "captions.json", "train.json"):
            (folder / name).write_text(rows)
        asked = [each for each in examination("seen", 2) if "ChooseAttr" in each.kind]
        write_questions_as_gqa(asked, folder / "gqa", name="GQA")
        released = "GQA_val_correct_question_with_choose_ChooseAttr.csv"
        (folder / released).write_bytes((folder / "gqa/GQA_ChooseAttr.csv").read_bytes())
        _write_leaves(folder / "leaves")


def _write_leaves(folder: Path) -> None:
    folder.mkdir()
    for split in ("train", "val", "test"):
        rows = []
        for number, disease in enumerate(["rust", "leaf_spot"] * 2):
            file = f"{split}-{number}.png"
            Image.new("RGB", (30, 40), (60 * number, 100, 20)).save(folder / file)
            rows.append(f"{file}\t{disease}\n")
        (folder / f"{split}.tsv").write_text("".join(rows))
