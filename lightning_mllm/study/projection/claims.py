"""The paper's claims, each made of parts which say that one number is higher than another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lightning_mllm.statistics.seeds_and_samples import Measure
from lightning_mllm.study.projection.comparison import ComparedAnswerer, Kind
from lightning_mllm.study.projection.study import FT_E2E, FT_PROJ, ZERO_SHOT, ProjectionStudy

_POLICIES = {ZERO_SHOT: "zero-shot", FT_PROJ: "FT-Proj", FT_E2E: "FT-E2E"}
_BASELINES = {"image-only": "image-only probe", "clip": "CLIP"}
_MEASURES: dict[Measure, str] = {"macro_f1": "macro-F1", "accuracy": "accuracy"}


@dataclass(frozen=True)
class ProjectionClaimPart:
    """One number is higher than another.

    Attributes:
        lower: The model or probe whose score is claimed to be lower, under any preset.
        higher: The model or probe whose score is claimed to be higher, under any preset.
        measure: The score that is compared.
    """

    lower: ComparedAnswerer
    higher: ComparedAnswerer
    measure: Measure

    def __str__(self) -> str:
        """Return e.g. "zero-shot < FT-Proj in macro-F1"."""
        name = "richness" if self.higher.kind == "richness" else _MEASURES[self.measure]
        return f"{_name_of(self.lower)} < {_name_of(self.higher)} in {name}"


def _name_of(answerer: ComparedAnswerer) -> str:
    return _BASELINES.get(answerer.kind) or _POLICIES[answerer.policy]


def _model_rises(lower: str, higher: str, measure: Measure = "macro_f1") -> ProjectionClaimPart:
    return ProjectionClaimPart(
        ComparedAnswerer("model", lower), ComparedAnswerer("model", higher), measure
    )


def _richness_rises(lower: str, higher: str) -> ProjectionClaimPart:
    return ProjectionClaimPart(
        ComparedAnswerer("richness", lower), ComparedAnswerer("richness", higher), "macro_f1"
    )


def _richness_falls_while_model_rises(policy: str) -> tuple[ProjectionClaimPart, ...]:
    return _richness_rises(policy, ZERO_SHOT), _model_rises(ZERO_SHOT, policy)


CLAIMS: dict[str, tuple[ProjectionClaimPart, ...]] = {
    "the MLLM's macro-F1: zero-shot < FT-Proj < FT-E2E": (
        _model_rises(ZERO_SHOT, FT_PROJ, "macro_f1"),
        _model_rises(FT_PROJ, FT_E2E, "macro_f1"),
    ),
    "the MLLM's accuracy: zero-shot < FT-Proj < FT-E2E": (
        _model_rises(ZERO_SHOT, FT_PROJ, "accuracy"),
        _model_rises(FT_PROJ, FT_E2E, "accuracy"),
    ),
    "richness: FT-Proj < FT-E2E < original": (
        _richness_rises(FT_PROJ, FT_E2E),
        _richness_rises(FT_E2E, ZERO_SHOT),
    ),
    "FT-Proj: richness falls while the MLLM's macro-F1 rises": (
        _richness_falls_while_model_rises(FT_PROJ)
    ),
    "FT-E2E: richness falls while the MLLM's macro-F1 rises": (
        _richness_falls_while_model_rises(FT_E2E)
    ),
    # the paper's Table 3; there it is not so in the humanitarian domain
    "a probe of the vision tower beats FT-E2E": (
        ProjectionClaimPart(
            ComparedAnswerer("model", FT_E2E), ComparedAnswerer("image-only"), "macro_f1"
        ),
    ),
    # there it is not so in the humanitarian domain either
    "CLIP beats the MLLM zero-shot": (
        ProjectionClaimPart(ComparedAnswerer("model"), ComparedAnswerer("clip"), "macro_f1"),
    ),
}


def projection_claims(
    study: ProjectionStudy, preset: str, kinds: Collection[Kind]
) -> dict[str, tuple[ProjectionClaimPart, ...]]:
    """Return the claims about policies and probes that a study has under a preset.

    Args:
        study: The study.
        preset: The preset; empty for the claims in which nothing is trained.
        kinds: Kinds of models with finished cells; not every study has the baselines.
    """
    policies = {ZERO_SHOT, *study.presets.get(preset, ())}
    there: set[str] = {"model", *kinds}
    if study.richness is not None:
        there.add("richness")
    found = {}
    for claim, parts in CLAIMS.items():
        compared = [part.lower for part in parts] + [part.higher for part in parts]
        trains = {each.policy for each in compared} != {ZERO_SHOT}
        able = all(each.policy in policies and each.kind in there for each in compared)
        if able and trains == bool(preset):
            found[claim] = parts
    return found
