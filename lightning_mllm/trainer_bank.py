"""The verb `bank` of our Trainer: text states of a model, for the analysis `PatchWords`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from lightning_mllm.analysis.lens.bank.building import build_bank, check_bank_folder
from lightning_mllm.analysis.lens.bank.options import BankOptions
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.plain_texts import list_sample_texts, read_plain_texts
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer_verbs import TrainerVerbs


class TrainerBank(TrainerVerbs):
    """A Trainer that builds banks of text states."""

    def bank(
        self,
        model: MLLMModule,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        *,
        output: str,
        texts: str | None = None,
        split: Split = "train",
        contexts: int = 20,
        layers: list[int] | None = None,
        max_length: int = 128,
        seed: int | None = None,
    ) -> Path:
        """Build a bank: states of words in texts, to which `PatchWords` compares those of patches.

        The texts go through the LLM alone. The bank is of this LLM, and of no other.

        Args:
            model: The module.
            datamodule: Data whose conversations are the texts, where no file is named.
            ckpt_path: Training checkpoint; without it the bank is of the model as it is.
            output: The folder to make.
            texts: File of texts: a text per line, or a JSON file of conversations or captions.
            split: Which split of the data has the texts.
            contexts: Most contexts of each token.
            layers: In front of which layers states are kept, 0 to L. By default all of a small LLM,
                and 1, 2, 4, 8, 16, 24, L - 2 and L - 1 of one with more than eight layers.
            max_length: How many tokens of a text are read.
            seed: Seed of the draw of contexts; on the command line `seed_everything` by default,
                else 0.

        Returns:
            The folder.

        Raises:
            ConfigError: There are no texts, the folder has something in it, or there are several
                processes.
            DataError: No text is long enough.
        """
        if self.world_size > 1:
            raise ConfigError(
                f"A bank is built by one process, not by {self.world_size}: set trainer.devices "
                "to 1."
            )
        check_bank_folder(Path(output))
        found, source = _find_texts(datamodule, texts, split)
        chosen = None if layers is None else tuple(layers)
        options = BankOptions(contexts, chosen, max_length, seed or 0)
        building = _Building(found, Path(output), options, source)
        self.go_through(model, _NoData(), ckpt_path, building)
        return Path(output)


class _NoData(L.LightningDataModule):
    """Lets the predict loop begin once; there is nothing in it."""

    label_set = None
    kinds: tuple[str, ...] = ()
    predict_split = "test"

    def predict_dataloader(self) -> DataLoader[int]:
        """Return a loader with one batch."""
        return DataLoader(range(1))  # type: ignore[arg-type]


class _Building(L.Callback):
    """Builds a bank when the predict loop has loaded the weights."""

    def __init__(
        self, texts: Sequence[str], output: Path, options: BankOptions, source: dict[str, Any]
    ) -> None:
        self._texts, self._output = texts, output
        self._options, self._source = options, source

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build it."""
        assert isinstance(pl_module, MLLMModule)  # `bank` has it so
        model = {
            "checkpoint": pl_module.source.checkpoint,
            "trained_steps": pl_module.trained_steps,
            "dtype": str(pl_module.adapted.dtype).removeprefix("torch."),
        }
        with pl_module.adapted.autocast(pl_module.device.type):
            build_bank(
                pl_module.backbone,
                pl_module.tokenizer,
                self._texts,
                self._output,
                options=self._options,
                source={**model, **self._source},
            )


def _find_texts(
    datamodule: Any, texts: str | None, split: Split
) -> tuple[list[str], dict[str, Any]]:
    """Return the texts, and where they are from."""
    if texts is not None:
        return read_plain_texts(Path(texts)), {"texts": Path(texts).name}
    if datamodule is None:
        raise ConfigError(
            "A bank needs texts. Name a file (--texts captions.txt), or data with conversations "
            "(--data LlavaJson --data.init_args.train conversations.json)."
        )
    datamodule.plain_dataloader(split)  # sets the split up
    found = list_sample_texts(datamodule.samples[split])
    name = type(datamodule).__name__
    if not found:
        raise DataError(
            f"No sample of the split {split!r} of {name} has a conversation, so there is no text "
            "for a bank. Name a file: --texts captions.txt."
        )
    return found, {"data": name, "split": split}
