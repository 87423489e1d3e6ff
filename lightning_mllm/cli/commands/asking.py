"""What `lightning ask` does once its arguments look right: asks the model, and shows the answer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from rich.table import Table
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks import SkipComputations
from lightning_mllm.cli.commands import PROGRAM
from lightning_mllm.cli.commands.model import fill_in_seeds
from lightning_mllm.cli.parser import Parser
from lightning_mllm.cli.resolvers import register_resolvers, resolved
from lightning_mllm.cli.resumed_fit import checkpoint_file
from lightning_mllm.data.datasets.asked import ask_about_samples
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Generation
from lightning_mllm.evaluation.evaluator import EvaluatedBatch
from lightning_mllm.messages import send_library_messages
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.option_lists import trainer_option_as_list
from lightning_mllm.progress import console, show_progress
from lightning_mllm.trainer import Trainer
from lightning_mllm.types import Sample

_NOT_USED = (  # what the config of a run may say, too
    *("checkpointing", "test_before", "test_after", "analysis", "split", "resume"),
    *("images", "return_predictions", "verbose", "weights_only"),
)


def run(name: str, arguments: list[str]) -> None:
    """Ask, and show the answer; on a pipe it is all that is printed."""
    send_library_messages()  # of those that are imported now
    register_resolvers()
    parser = make_parser(f"{PROGRAM} {name}")
    config = parser.parse_args([resolved(argument) for argument in arguments])
    if config.seed_everything is not False:  # as in a run
        fill_in_seeds(config, config.seed_everything)
    options = parser.instantiate(config)
    trainer = options.trainer or {}
    asking = Asking(
        options.model,
        options.data,
        trainer.get("accelerator") or "auto",
        skips=make_skips(trainer.get("callbacks")),
    )
    with show_progress("Asking the model"):
        found = asking.ask(
            options.image or [],
            options.question,
            options.classes or [],
            ckpt_path=options.ckpt_path and str(checkpoint_file(options.ckpt_path)),
            max_new_tokens=options.max_new_tokens,
        )
    console.print(found.answer, markup=False, soft_wrap=True)
    if found.scores and console.is_terminal:
        console.print(_make_table(found.scores))


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        answer: The answer as the model writes it; of classes that are named, the likeliest one.
        scores: Class -> log-likelihood as the answer; empty without classes.
    """

    answer: str
    scores: dict[str, float]


class Asking:
    """Asks a model single questions, as a test asks about its samples.

    Args:
        module: The model.
        data: The data of the run that it was trained in; None if there is no run.
        accelerator: What it runs on, as in Lightning.
        skips: What the run lets the model skip, in a test too.
    """

    def __init__(
        self,
        module: MLLMModule,
        data: MLLMDataModule | None,
        accelerator: str = "auto",
        *,
        skips: Sequence[SkipComputations] = (),
    ) -> None:
        self._module, self._data, self._accelerator = module, data, accelerator
        self._skips = skips

    def ask(
        self,
        images: Sequence[str],
        question: str | None = None,
        classes: Sequence[str] = (),
        *,
        ckpt_path: str | None = None,
        max_new_tokens: int = 128,
    ) -> Answer:
        """Ask about pictures, or without any.

        Args:
            images: Files.
            question: The question; by default what the run asks, or for one of the classes.
            classes: The classes to choose from; by default those of the run if it asks for them.
            ckpt_path: Training checkpoint.
            max_new_tokens: Length at which an answer is cut.

        Raises:
            ConfigError: There is no question, or no token may be written.
            DataError: A picture can't be read, or the model takes no such question.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"--max_new_tokens is {max_new_tokens}; give 1 or more.")
        name = " ".join(images) or "the question"
        sample = Sample(id=name, images=[Path(image) for image in images])
        source = astuple(self._module.source)
        asked = ask_about_samples([sample], source, self._data, question, classes)
        answering = _Answering(max_new_tokens)
        trainer = Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator=self._accelerator,
            devices=1,
            callbacks=[*self._skips, answering],
        )
        trainer.predict(
            self._module, datamodule=asked, ckpt_path=ckpt_path, return_predictions=False
        )
        return _describe_answer(answering.found, asked.classes, chooses=bool(classes))


class _Answering(L.Callback):
    """Keeps the answer to the only batch."""

    found: EvaluatedBatch

    def __init__(self, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens

    def on_predict_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Answer the batch."""
        assert isinstance(pl_module, MLLMModule)  # `Asking` has it so
        self.found = pl_module.answer(batch, self._max_new_tokens)


def _describe_answer(found: EvaluatedBatch, classes: Sequence[str], *, chooses: bool) -> Answer:
    if not classes:
        return Answer(next(iter(found.texts.values())), {})
    by_scorer = found.predictions
    shown = by_scorer.get(Generation.name) or next(iter(by_scorer.values()))
    scores: dict[str, float] = {}
    for predictions in by_scorer.values():
        if predictions.scores is not None:
            scores = dict(zip(classes, predictions.scores[0].tolist(), strict=True))
    likeliest = max(scores, key=scores.__getitem__) if scores and chooses else None
    return Answer(likeliest or shown.answers[0], scores)


def make_skips(callbacks: Any) -> list[SkipComputations]:
    """Return those callbacks of a run's config that decide what the model computes."""
    parser = Parser()
    parser.add_argument("--callbacks", type=list[L.Callback])
    config = parser.parse_object({"callbacks": trainer_option_as_list(callbacks)})
    made = parser.instantiate(config).callbacks
    return [each for each in made if isinstance(each, SkipComputations)]


def _make_table(scores: dict[str, float]) -> Table:
    """Return the classes, the likeliest first."""
    table = Table("class", "probability", "log-likelihood")
    shares = Tensor([*scores.values()]).softmax(0).tolist()
    rows = sorted(zip(shares, scores.items(), strict=True), reverse=True)
    for share, (name, score) in rows:
        table.add_row(name, f"{share:.3f}", f"{score:.2f}")
    return table


def make_parser(prog: str) -> Parser:
    """Return a parser that accepts the config of any run, and reads of it what a test would."""
    parser = Parser(
        prog=prog,
        description="Ask a model a question, about pictures or without.",
        parser_mode="omegaconf",
        allow_abbrev=False,
    )
    parser.add_argument("question", nargs="?", type=str, help="What is asked.")
    parser.add_argument("--config", action="config", help="Config of a run, runs/*/config.yaml.")
    parser.add_argument("--image", action="append", type=str, help="A picture; may be repeated.")
    parser.add_argument(
        "--classes",
        nargs="+",
        type=str,
        help="Answers to choose from, two or more; each gets a probability.",
    )
    parser.add_argument(
        "--ckpt_path", type=str, help="Training checkpoint, or the folder of its run."
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=128, help="Length at which an answer is cut."
    )
    parser.add_argument("--seed_everything", type=int | bool, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--trainer", type=dict[str, Any], default={}, help=argparse.SUPPRESS)
    for section in _NOT_USED:
        parser.add_argument(f"--{section}", type=Any, help=argparse.SUPPRESS)
    parser.add_lightning_class_args(MLLMModule, "model")
    parser.add_lightning_class_args(MLLMDataModule, "data", subclass_mode=True, required=False)
    for option in ("checkpoint", "revision", "trust_remote_code"):
        parser.link_arguments(f"model.{option}", f"data.init_args.{option}")
    return parser
