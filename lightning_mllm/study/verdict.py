"""The paper's claims about orders, each tested in every domain and over all of them.

Every part of a claim says that one number is higher than another, and is tested in each domain. Its p-values are
adjusted over the domains (Holm); then a part *holds* in a domain if its difference is above 0 with p <= 0.05, *does
not* if it is below, and is *undecided* otherwise. A claim holds where all its parts do, and does not where one does
not. Over all domains it holds if it holds in each, and does not if there is one in which it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_mllm.study.bootstrap import Measure, difference
from lightning_mllm.study.comparison import Comparison, Kind
from lightning_mllm.study.config import FT_E2E, FT_PROJ, ZERO_SHOT
from lightning_mllm.study.decisions import Decision, Outcome, all_of, decide, difference_test, holm, trend_test

ALL_DOMAINS = "all"
BOOTSTRAP = "paired bootstrap over seeds and samples, Holm over domains"
TREND = "mean Spearman correlation within seeds, permutation test, Holm over domains"

_NAMES = {ZERO_SHOT: "zero-shot", FT_PROJ: "FT-Proj", FT_E2E: "FT-E2E"}
_MEASURES: dict[Measure, str] = {"macro_f1": "macro-F1", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Part:
    """One number is higher than another: `higher` and `lower` are policies."""

    kind: Kind
    measure: Measure
    lower: str
    higher: str

    def __str__(self) -> str:
        """Return e.g. "zero-shot < FT-Proj in macro-F1"."""
        of = "richness" if self.kind == "richness" else _MEASURES[self.measure]
        return f"{_NAMES[self.lower]} < {_NAMES[self.higher]} in {of}"


CLAIMS: dict[str, tuple[Part, ...]] = {
    **{
        f"the MLLM's {name}: zero-shot < FT-Proj < FT-E2E": (
            Part("model", measure, ZERO_SHOT, FT_PROJ),
            Part("model", measure, FT_PROJ, FT_E2E),
        )
        for measure, name in _MEASURES.items()
    },
    "richness: FT-Proj < FT-E2E < original": (
        Part("richness", "macro_f1", FT_PROJ, FT_E2E),
        Part("richness", "macro_f1", FT_E2E, ZERO_SHOT),
    ),
    **{
        f"{_NAMES[policy]}: richness falls while the MLLM's macro-F1 rises": (
            Part("richness", "macro_f1", policy, ZERO_SHOT),
            Part("model", "macro_f1", ZERO_SHOT, policy),
        )
        for policy in (FT_PROJ, FT_E2E)
    },
}
SWEEP_CLAIM = "FT-Proj loses less richness at a lower learning rate"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of a claim, or of a part of it, in a domain or in all.

    Attributes:
        checkpoint: Name of the checkpoint.
        preset: Under which the policies were trained.
        claim: The claim.
        part: A part of it; empty for the whole.
        domain: The domain, or "all".
        decision: What is known.
        test: By which test.
        outcome: Of the test, where this is one test: a part in a domain.
        adjusted_p: Its p-value after Holm.
        seeds: Number of seeds, the least of the domains.
        samples: Number of test samples, over the domains.
    """

    checkpoint: str
    preset: str
    claim: str
    part: str
    domain: str
    decision: Decision
    test: str
    seeds: int
    samples: int
    outcome: Outcome | None = None
    adjusted_p: float | None = None


def verdicts(comparisons: Sequence[Comparison], presets: Sequence[str], sweep: Mapping[str, float]) -> list[Verdict]:
    """Test all claims that the finished cells speak to.

    Args:
        comparisons: Scores of the domains.
        presets: Names of the presets.
        sweep: Preset -> learning rate of the projection, of the sweep's FT-Proj.
    """
    found: list[Verdict] = []
    for checkpoint in dict.fromkeys(each.checkpoint for each in comparisons):
        domains = [each for each in comparisons if each.checkpoint == checkpoint]
        for preset in presets:
            for claim, parts in CLAIMS.items():
                tests = {str(part): _tests(part, preset, domains) for part in parts}
                found += _judge(checkpoint, preset, claim, tests, BOOTSTRAP)
        trends = {each.domain: test for each in domains if (test := _trend(each, sweep)) is not None}
        found += _judge(checkpoint, "sweep", SWEEP_CLAIM, {"loss rises with the rate": trends}, TREND)
    return found


def _tests(part: Part, preset: str, domains: Sequence[Comparison]) -> dict[str, Outcome]:
    """Return the test of a part in each domain that has both models."""
    tests = {}
    for each in domains:
        higher = each.get(part.kind, part.higher, preset, part.measure)
        lower = each.get(part.kind, part.lower, preset, part.measure)
        if higher is not None and lower is not None:
            tests[each.domain] = difference_test(*difference(higher, lower), len(each.seeds), each.samples)
    return tests


def _trend(comparison: Comparison, sweep: Mapping[str, float]) -> Outcome | None:
    original = comparison.get("richness", ZERO_SHOT, "", "macro_f1")
    tuned = [comparison.get("richness", FT_PROJ, preset, "macro_f1") for preset in sweep]
    there = [scores for scores in tuned if scores is not None]
    if original is None or len(there) < max(len(sweep), 2):
        return None
    losses = np.stack([original.observed - scores.observed for scores in there], axis=1)
    return trend_test(list(sweep.values()), losses, comparison.samples)


def _judge(
    checkpoint: str, preset: str, claim: str, tests: Mapping[str, Mapping[str, Outcome]], test: str
) -> Iterator[Verdict]:
    """Decide a claim, whole (part "") and part by part, in each domain and in all."""
    if not all(tests.values()):  # a part without any domain: the study has no such models
        return
    domains = list(dict.fromkeys(domain for by_domain in tests.values() for domain in by_domain))
    adjusted: dict[tuple[str, str], float] = {}
    decisions: dict[tuple[str, str], Decision] = {}
    for part, by_domain in tests.items():
        for domain, p in zip(by_domain, holm([outcome.p for outcome in by_domain.values()]), strict=True):
            adjusted[part, domain] = p
            decisions[part, domain] = decide(by_domain[domain].value, p)
    for domain in domains:
        decisions["", domain] = all_of([decisions.get((part, domain), Decision.UNDECIDED) for part in tests])
    for part in ("", *tests):
        decisions[part, ALL_DOMAINS] = all_of([decisions[key] for key in list(decisions) if key[0] == part])
    for part in ("", *tests):
        for domain in (*domains, ALL_DOMAINS):
            if (part, domain) in decisions:
                seeds, samples = _size_of(tests, part, domain)
                yield Verdict(
                    checkpoint=checkpoint,
                    preset=preset,
                    claim=claim,
                    part=part,
                    domain=domain,
                    decision=decisions[part, domain],
                    test=test,
                    seeds=seeds,
                    samples=samples,
                    outcome=tests.get(part, {}).get(domain),
                    adjusted_p=adjusted.get((part, domain)),
                )


def _size_of(tests: Mapping[str, Mapping[str, Outcome]], part: str, domain: str) -> tuple[int, int]:
    """Return the least number of seeds, and the number of samples over the domains."""
    chosen = {
        name: outcome
        for each, by_domain in tests.items()
        for name, outcome in by_domain.items()
        if part in ("", each) and domain in (ALL_DOMAINS, name)
    }
    return min(outcome.seeds for outcome in chosen.values()), sum(outcome.samples for outcome in chosen.values())
