"""What a model card says of a training: from its checkpoint, and from the folder of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.store.files import read_json

_STAGES = {"zero_shot": "test, before training", "test": "test", "val": "validation"}
_MEASURES = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class CardScore:
    """Scores of one scorer on one split.

    Attributes:
        split: What was evaluated.
        scorer: Name of the scorer.
        n: Number of samples.
        accuracy: Accuracy with its interval, as text.
        macro_f1: Macro-F1 with its interval, as text; empty for open answers.
        dtype: Dtype of the evaluation, and how the LLM was quantised if it was.
    """

    split: str
    scorer: str
    n: int
    accuracy: str
    macro_f1: str
    dtype: str


@dataclass(frozen=True)
class CardFacts:
    """What is known of an exported model.

    Attributes:
        report: What the policy trained; None if that is not known.
        steps: Number of optimiser steps.
        schedule: How the learning rates went, as `asdict` of a `Schedule`; empty if not known.
        data: `class`, `samples` per split and `classes` of the data; empty if not known.
        geometry: How pictures were made square; None for the checkpoint's own way.
        scores: Scores of these weights, and of the model before its training.
        notes: What else a user must know, a sentence each.
    """

    report: FreezeReport | None = None
    steps: int = 0
    schedule: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    geometry: str | None = None
    scores: Sequence[CardScore] = ()
    notes: Sequence[str] = ()

    @property
    def rates(self) -> dict[str, float]:
        """The option of each trained part -> its peak learning rate."""
        if self.schedule is None or self.report is None:
            return {}
        options = sorted({LearningRates.option_of(part) for part in self.report.trainable_parts})
        return {option: self.schedule["learning_rates"][option] for option in options}


def gather_card_facts(
    report: FreezeReport,
    record: Mapping[str, Any],
    checkpoint: str | Path | None,
    *,
    geometry: str | None,
    subnetwork: str | None,
) -> CardFacts:
    """Return what is known of a model that is exported.

    Args:
        report: What the policy trains.
        record: What this package wrote into the training checkpoint, with `steps`; without a
            checkpoint `inputs` and `steps` alone.
        checkpoint: The training checkpoint, in the folder of its run; None without one.
        geometry: Name of the geometry that is exported.
        subnetwork: Where the sub-network is that is exported; None for the whole model.
    """
    inputs: Mapping[str, Any] = record.get("inputs") or {}
    notes = []
    if subnetwork is not None:
        notes.append(
            f"Only the weights of the sub-network `{Path(subnetwork).name}` are kept; the LLM's "
            "other weights are 0. The scores of the whole model are not those of this one."
        )
    if inputs.get("asked") != inputs.get("template"):
        notes.append(
            "The chat template of this folder does not write the prompt that the model was trained "
            "and evaluated with; prompts must be written as in the training."
        )
    if record.get("edited"):
        notes.append(
            "In the training, computations of the model were changed (e.g. skipped); this model "
            "computes everything."
        )
    if record.get("dequantized"):
        notes.append(
            "The base checkpoint is quantised. The weights here are the numbers that its quantised "
            "ones stand for."
        )
    elif kind := record.get("quantized"):
        notes.append(
            f"In the training the weights of the LLM's linear layers were quantised ({kind}). Here "
            "they are those of the base model, unquantised: answers can differ a little."
        )
    scores: list[CardScore] = []
    if checkpoint is not None and subnetwork is None:
        scores = _read_scores(Path(checkpoint), record["steps"])
    return CardFacts(
        report=report,
        steps=record["steps"],
        schedule=record.get("schedule"),
        data=inputs.get("data"),
        geometry=geometry,
        scores=scores,
        notes=notes,
    )


def _read_scores(checkpoint: Path, steps: int) -> list[CardScore]:
    """Return the scores of a checkpoint's weights that its run has, and those before training."""
    evaluations = checkpoint.parent.parent / "evaluation"
    found: list[CardScore] = []
    for stage, split in _STAGES.items():
        path = evaluations / f"{stage}-step{0 if stage == 'zero_shot' else steps}" / "scores.json"
        if not path.is_file():
            continue
        content = read_json(path)
        scorers = dict(content.get("scorers", {}))
        if content.get("exact_match"):
            scorers["exact_match"] = content["exact_match"]
        for name, score in scorers.items():
            accuracy, macro_f1 = (_format_score(score, measure) for measure in _MEASURES)
            dtype = ", ".join(filter(None, (content.get("dtype"), content.get("quantized"))))
            found.append(CardScore(split, name, score["n"], accuracy, macro_f1, dtype))
    return found


def _format_score(score: Mapping[str, Any], measure: str) -> str:
    if score.get(measure) is None:
        return ""
    ends = score.get(f"{measure}_interval_95") or ()
    if None in ends or not ends:
        return f"{score[measure]:.3f}"
    return "{:.3f} [{:.3f}, {:.3f}]".format(score[measure], *ends)
