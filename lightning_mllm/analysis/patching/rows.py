"""What is kept of a pair, a patch, a window and a direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.core.per_question import PerQuestionAnswer
from lightning_mllm.analysis.patching.edits import PatchCase
from lightning_mllm.analysis.patching.engine.base import DIRECTIONS, PatchReadings
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.types import AnswerForms, Segment

WRONG = "wrong answer"
ALIKE = "same first token"


@dataclass(frozen=True, kw_only=True)
class PatchRow:
    """A pair, a patch, a window and a direction; a pair that is left out has one row.

    D is the logit of the token with which the clean answer begins, minus that of the corrupted one,
    at the last position of the prompt.

    Attributes:
        sample_id: Id of the clean sample.
        kind: Kind of its question.
        picture: Name of the picture that it is about.
        correct: Whether the model answers it right.
        partner: Id of the corrupted sample.
        partner_picture: Name of the picture that that is about.
        partner_correct: Whether the model answers that right.
        measured: Whether patches are tried on the pair.
        left_out: Why not; empty where they are.
        patch: What is patched.
        start: First layer of the window.
        stop: The layer after the window's last one.
        direction: `denoising`: clean states in the corrupted run; `noising`: corrupted states in
            the clean run.
        size: Number of patched positions.
        overlap: Patches that the control, `image random`, shares with the object.
        d_clean: D of the clean run.
        d_corrupted: D of the corrupted run.
        d_patched: D of the patched run.
        logprob_change: Change of the log-probability of the source's answer.
        flipped: Whether the token with which the source's answer begins becomes the likeliest.
        estimate: What attribution patching says of d_patched minus D of the run that is patched.
        engine: Name of the engine that computed it.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    partner: str = ""
    partner_picture: str = ""
    partner_correct: bool = False
    measured: bool = True
    left_out: str = ""
    patch: str = ""
    start: int = -1
    stop: int = -1
    direction: str = ""
    size: int = 0
    overlap: int = 0
    d_clean: float = nan
    d_corrupted: float = nan
    d_patched: float = nan
    logprob_change: float = nan
    flipped: bool = False
    estimate: float = nan
    engine: str = ""


def find_first_token(question: PerQuestionAnswer, forms: AnswerForms) -> int:
    """Return the token with which an answer begins: as the model writes it, if it is right."""
    firsts = [tokens[0] for tokens in (forms.true.lower, forms.true.capitalised) if tokens]
    return question.first_token if question.first_token in firsts else firsts[0]


def make_left_out_row(
    clean: PerQuestionAnswer, corrupted: PerQuestionAnswer, reason: str
) -> PatchRow:
    """Return the one row of a pair that does not count."""
    return PatchRow(
        **clean.columns,
        partner=corrupted.sample_id,
        partner_picture=corrupted.columns["picture"],
        partner_correct=corrupted.correct,
        measured=False,
        left_out=reason,
    )


def make_patch_rows(
    questions: Sequence[tuple[PerQuestionAnswer, PerQuestionAnswer]],
    batch: MultimodalBatch,
    cases: Sequence[PatchCase],
    *,
    readings: PatchReadings,
    ids: Tensor,
    estimates: Tensor | None,
) -> list[list[PatchRow]]:
    """Return the rows of each pair, a row per direction and case.

    Args:
        questions: Clean and corrupted question of each pair.
        batch: The clean samples.
        cases: What was patched.
        readings: What the model said.
        ids: (batch, 2), the tokens of the clean and of the corrupted answer.
        estimates: (2, batch, cases), from attribution patching; None without it.
    """
    base = readings.base.double().cpu()  # (2, batch, 2)
    patched = readings.logprobs.double().cpu()  # (2, batch, cases, 2)
    # the source of denoising says the clean answer, that of noising the corrupted one
    said = torch.stack([patched[k, ..., k] - base[k, :, None, k] for k in range(2)])
    wanted = ids.T[:, :, None].cpu()
    is_source, was = readings.top.cpu() == wanted, readings.base_top[..., None].cpu() == wanted
    plain = base[..., 0] - base[..., 1]
    columns = {
        "d_patched": patched[..., 0] - patched[..., 1],
        "logprob_change": said,
        "flipped": is_source & ~was,
        "estimate": torch.full_like(said, nan) if estimates is None else estimates.double().cpu(),
    }
    cells = {name: column.tolist() for name, column in columns.items()}
    sizes, overlap = readings.size.tolist(), _control_overlap(batch)
    rows: list[list[PatchRow]] = []
    for number, (clean, corrupted) in enumerate(questions):
        common = {
            **clean.columns,
            "partner": corrupted.sample_id,
            "partner_picture": corrupted.columns["picture"],
            "partner_correct": corrupted.correct,
            "overlap": overlap[number],
            "d_clean": float(plain[1, number]),
            "d_corrupted": float(plain[0, number]),
            "engine": readings.engine,
        }
        found = []
        for k, direction in enumerate(DIRECTIONS):
            for place, case in enumerate(cases):
                size = sizes[number][place]
                numbers = {name: column[k][number][place] for name, column in cells.items()}
                found.append(_make_row(common, case, direction, size, numbers))
        rows.append(found)
    return rows


def _make_row(
    common: dict[str, Any], case: PatchCase, direction: str, size: int, numbers: dict[str, Any]
) -> PatchRow:
    return PatchRow(
        **common,
        patch=str(case.patch),
        start=case.window.start,
        stop=case.window.stop,
        direction=direction,
        size=size,
        **numbers,
    )


def _control_overlap(batch: MultimodalBatch) -> list[int]:
    """Return how many patches of the control are the object's, for each sample."""
    control = batch.spans.masks.get(Segment.IMAGE_RANDOM)
    own = batch.spans.masks.get(Segment.IMAGE_OBJECT)
    if control is None or own is None:
        return [0] * len(batch)
    return (control & own).sum(1).tolist()
