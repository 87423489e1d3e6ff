"""Writes down how good the model is, with N and intervals."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_mllm.callbacks.score_tables import (
    score_rows_per_class,
    score_rows_per_kind,
)
from lightning_mllm.callbacks.trainer_state import (
    trainer_datamodule,
    trainer_evaluation_dir,
    trainer_figure,
    trainer_has_folder,
    trainer_mllm,
)
from lightning_mllm.evaluation import AnswerResult, ClassificationResult
from lightning_mllm.models.checkpoint import describe_quantization
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_csv_file, write_json
from lightning_mllm.tracking.figures.run import draw_confusion_matrix_of_run
from lightning_mllm.tracking.loggers import log_image, log_table


class EvaluationReport(L.Callback):
    """Writes the scores of each evaluation into its folder, `evaluation/<stage>-step<k>/`.

    The scores are in `scores.json`, with the dtype and the batch size of the evaluation. Each
    scorer has `<scorer>-per-class.csv` and `<scorer>-confusion.csv`; open answers have
    `exact-match-per-kind.csv`. A test also draws the confusion matrix, `<scorer>-confusion.png`.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the report."""
        module = trainer_mllm(pl_module)
        scored = module.results or module.exact_match
        if trainer.sanity_checking or not trainer.is_global_zero or not scored:
            return
        if not trainer_has_folder(trainer):
            return
        scores: dict[str, Any] = {
            "stage": module.stage_name,
            "step": module.trained_steps,
            # in 16 bit, dtype and batch size decide cases that are nearly a tie
            "dtype": str(module.adapted.dtype).removeprefix("torch."),
            **describe_quantization(module.backbone),
            "batch_size": trainer_datamodule(trainer).eval_batch_size,
        }
        if module.results:
            scores["scorers"] = {name: result.summary() for name, result in module.results.items()}
            for scorer, result in module.results.items():
                _report_scorer(trainer, module, scorer, result)
        if module.exact_match is not None:
            scores["exact_match"] = module.exact_match.summary()
            _report_answers(trainer, module, module.exact_match)
        folder = trainer_evaluation_dir(trainer, module)
        write_json(folder / "scores.json", scores)

    on_test_end = on_validation_end


def _report_scorer(
    trainer: L.Trainer, module: MLLMModule, scorer: str, result: ClassificationResult
) -> None:
    """Write and log the classification by one scorer."""
    folder = trainer_evaluation_dir(trainer, module)
    key, step = f"evaluation/{module.stage_name}/{scorer}", module.trained_steps
    named_counts = zip(result.names, result.confusion.tolist(), strict=True)
    write_csv_file(
        folder / f"{scorer}-confusion.csv",
        ["true \\ predicted", *result.names, "(invalid)"],
        ([name, *counts] for name, counts in named_counts),
    )
    columns, rows = score_rows_per_class(result)
    write_csv_file(folder / f"{scorer}-per-class.csv", columns, rows)
    log_table(trainer.loggers, f"{key}/per_class", columns, rows, step)
    if trainer.testing:
        path = trainer_figure(trainer, folder, f"{scorer}-confusion")
        picture = draw_confusion_matrix_of_run(result, path, title=f"{folder.name}, {scorer}")
        log_image(trainer.loggers, f"{key}/confusion", picture, step)


def _report_answers(trainer: L.Trainer, module: MLLMModule, result: AnswerResult) -> None:
    """Write and log the accuracy of open answers per kind of question."""
    columns, rows = score_rows_per_kind(result)
    folder = trainer_evaluation_dir(trainer, module)
    write_csv_file(folder / "exact-match-per-kind.csv", columns, rows)
    key = f"evaluation/{module.stage_name}/exact_match/per_kind"
    log_table(trainer.loggers, key, columns, rows, module.trained_steps)
