"""The paper's claims, each a list of parts which say that one number is higher than another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lightning_mllm.statistics.seeds_and_samples import Measure
from lightning_mllm.study.projection.comparison import Kind
from lightning_mllm.study.projection.study import FT_E2E, FT_PROJ, ZERO_SHOT, Study

_POLICIES = {ZERO_SHOT: "zero-shot", FT_PROJ: "FT-Proj", FT_E2E: "FT-E2E"}
_MEASURES: dict[Measure, str] = {"macro_f1": "macro-F1", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Side:
    """One of the two numbers.

    Attributes:
        kind: Who answered.
        policy: What was trained.
    """

    kind: Kind
    policy: str = ZERO_SHOT

    def __str__(self) -> str:
        if self.kind in ("model", "richness"):
            return _POLICIES[self.policy]
        return {"image-only": "image-only probe", "clip": "CLIP"}[self.kind]


@dataclass(frozen=True)
class Part:
    """One number is higher than another."""

    lower: Side
    higher: Side
    measure: Measure

    def __str__(self) -> str:
        """Return e.g. "zero-shot < FT-Proj in macro-F1"."""
        of = "richness" if self.higher.kind == "richness" else _MEASURES[self.measure]
        return f"{self.lower} < {self.higher} in {of}"


def _model(lower: str, higher: str, measure: Measure = "macro_f1") -> Part:
    return Part(Side("model", lower), Side("model", higher), measure)


def _richness(lower: str, higher: str) -> Part:
    return Part(Side("richness", lower), Side("richness", higher), "macro_f1")


CLAIMS: dict[str, tuple[Part, ...]] = {
    **{
        f"the MLLM's {name}: zero-shot < FT-Proj < FT-E2E": (
            _model(ZERO_SHOT, FT_PROJ, measure),
            _model(FT_PROJ, FT_E2E, measure),
        )
        for measure, name in _MEASURES.items()
    },
    "richness: FT-Proj < FT-E2E < original": (_richness(FT_PROJ, FT_E2E), _richness(FT_E2E, ZERO_SHOT)),
    **{
        f"{_POLICIES[policy]}: richness falls while the MLLM's macro-F1 rises": (
            _richness(policy, ZERO_SHOT),
            _model(ZERO_SHOT, policy),
        )
        for policy in (FT_PROJ, FT_E2E)
    },
    "a probe of the vision tower beats FT-E2E": (  # the paper's Table 3; there not in the humanitarian domain
        Part(Side("model", FT_E2E), Side("image-only"), "macro_f1"),
    ),
    "CLIP beats the MLLM zero-shot": (Part(Side("model"), Side("clip"), "macro_f1"),),  # there likewise
}


def claims_about(study: Study, preset: str, kinds: Collection[Kind]) -> dict[str, tuple[Part, ...]]:
    """Return the claims about policies and probes that a study has under a preset.

    Args:
        study: The study.
        preset: The preset; empty for the claims in which nothing is trained.
        kinds: Who answered, in what is finished; the baselines are not part of each study.
    """
    policies = {ZERO_SHOT, *study.presets.get(preset, ())}
    there = {"model", *kinds, *(["richness"] if study.richness is not None else [])}
    found = {}
    for claim, parts in CLAIMS.items():
        sides = [side for part in parts for side in (part.lower, part.higher)]
        trains = any(side.policy != ZERO_SHOT for side in sides)
        if trains == bool(preset) and all(side.policy in policies and side.kind in there for side in sides):
            found[claim] = parts
    return found
