"""Analyses of a model whose layers compute on several devices find what they find on one.

There is one device where tests run; torch's lazy backend, which computes on the CPU, stands for the
second one: as with two GPUs, work with tensors of both is refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._lazy.ts_backend
from accelerate import dispatch_model

from lightning_mllm.analysis import (
    ActivatedWeights,
    Alignment,
    Analysis,
    AnswerLens,
    Bootstrap,
    Distinguishability,
    InformationFlow,
    Skip,
    Vocabulary,
    skipping,
)
from lightning_mllm.analysis.skipping.skip import Computation
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.models import placement
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import LabelSet
from tests.support.decoders import generate
from tests.support.family_questions import ask
from tests.support.questions import tokenizer

FEW: dict[str, Any] = {"correct_only": False, "bootstrap": Bootstrap(resamples=5)}
QUICK = (
    InformationFlow(blocks=["question->last", "image->question"], **FEW),
    Alignment(states=["residual", "SA", "FC1"], noise=True),
)
OTHERS = (
    InformationFlow(blocks=["image->last"], engine="reference", label="reference", **FEW),
    AnswerLens(**FEW),
    Vocabulary(),
    Distinguishability(seed=2),
    ActivatedWeights(samples=2, folds=1),
)
ANALYSES = [*QUICK, *[pytest.param(each, marks=pytest.mark.slow) for each in OTHERS]]


@pytest.fixture(scope="module")
def on_two_devices(tiny_llava: str) -> Backbone:
    """A model of two layers, of which the second one computes elsewhere."""
    torch._lazy.ts_backend.init()
    backbone = Backbone.from_pretrained(tiny_llava)
    model: Any = backbone.model
    names = {id(module): name for name, module in model.named_modules()}
    first, second = (names[id(layer)] for layer in model.get_decoder().layers)
    rest = placement._names_of_rest(model, [first, second])
    places = {**dict.fromkeys(rest, "cpu"), first: "cpu", second: "lazy:0"}
    skipped = model._skip_keys_device_placement
    dispatch_model(model, places, main_device="cpu", skip_keys=skipped)
    placement.return_to_caller(model)
    return backbone


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda each: each.name)
def test_an_analysis_finds_on_two_devices_what_it_finds_on_one(
    tiny_llava: str, on_two_devices: Backbone, analysis: Analysis
) -> None:
    tables = []
    for backbone in (Backbone.from_pretrained(tiny_llava), on_two_devices):
        analysis.prepare(tokenizer(tiny_llava))
        analysis.update(backbone, ask(tiny_llava))
        tables.append(analysis.compute().table())

    for ours, theirs in zip(*[rows for _, rows in tables], strict=True):
        assert theirs == [_nearly(cell) for cell in ours]


def _nearly(cell: Any) -> Any:
    if isinstance(cell, str) or cell is None:
        return cell
    return pytest.approx(cell, rel=1e-3, abs=1e-4, nan_ok=True)


@torch.no_grad()
def test_labels_are_scored_on_two_devices_as_on_one(
    tiny_llava: str, on_two_devices: Backbone
) -> None:
    labels, batch = LabelSet(("a", "b"), ((5, 6, 7), (8, 9))), ask(tiny_llava)
    scores = []
    for backbone in (Backbone.from_pretrained(tiny_llava), on_two_devices):
        found = Likelihood().predict(backbone.model, tokenizer(tiny_llava), batch, labels).scores
        assert found is not None
        scores.append(found)

    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("computation", "visible"),
    [
        ("block", True),
        ("attention", False),
        *[pytest.param(each, True, marks=pytest.mark.slow) for each in ("ffn", "parallel")],
    ],
)
def test_skipping_on_two_devices_is_skipping_on_one(
    tiny_llava: str, on_two_devices: Backbone, computation: Computation, visible: bool
) -> None:
    skip = Skip(phase="both", tokens="all", computation=computation, share=0.5, visible=visible)
    prompts = ask(tiny_llava).prompts()
    answers, logits = [], []
    for backbone in (Backbone.from_pretrained(tiny_llava), on_two_devices):
        with skipping(backbone, prompts, skip):
            logits.append(backbone.model(**prompts.model_inputs()).logits)
        with skipping(backbone, prompts, skip):
            answers.append(generate(backbone, prompts, max_new_tokens=4).tolist())

    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
    assert answers[1] == answers[0]
