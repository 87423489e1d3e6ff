"""What becomes of the paper's claims, in every domain and over all of them.

Every part of a claim says that one number is higher than another, and is tested in each domain. The
p-values of a part are adjusted over the domains of the study (Holm); a domain without results
counts as p = 1. A part then *holds* in a domain if its difference is above 0 with p <= 0.05, *does
not* if it is below 0 with p <= 0.05, and is *undecided* otherwise, also while its cells are not
finished. A claim holds where all its parts do, and does not where one part does not. Over all
domains it holds if it holds in each, and does not if there is one in which it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_mllm.statistics.decisions import (
    Decision,
    DecisionOutcome,
    decide,
    decide_all,
    decide_by_holm,
    decide_by_t_test,
)
from lightning_mllm.statistics.seeds_and_samples import (
    SeedEstimate,
    difference_over_seeds,
    slope_over_seeds,
)
from lightning_mllm.study.projection.claims import ProjectionClaimPart, projection_claims
from lightning_mllm.study.projection.comparison import DomainComparison, Kind
from lightning_mllm.study.projection.study import FT_PROJ, ProjectionStudy

ALL_DOMAINS = "all"
_BOOTSTRAP = (
    "t test with the variance of a paired bootstrap over seeds, test samples and the probe's "
    "training samples"
)
DIFFERENCE = f"{_BOOTSTRAP}, Holm over domains"
TREND = f"loss of macro-F1 per tenfold rate, {_BOOTSTRAP}, Holm over domains"
SWEEP_CLAIM = "FT-Proj loses less richness at a lower learning rate"
_SWEEP_PART = "loss rises with the rate"

Tests = Mapping[str, Mapping[str, DecisionOutcome]]  # part -> domain -> outcome, where there is one
Place = tuple[str, str]  # a part, empty for the whole claim, and a domain


@dataclass(frozen=True, kw_only=True)
class ProjectionVerdict:
    """What is known of a claim, or of a part of it, in a domain or in all.

    Attributes:
        checkpoint: Name of the checkpoint.
        preset: Preset under which the policies were trained; empty where none was.
        claim: The claim, as a sentence.
        part: A part of the claim; empty for the whole.
        domain: The domain, or "all".
        decision: Whether it holds, does not, or is undecided.
        test: Name of the test.
        seeds: Number of seeds, the least of the domains; 0 where nothing could be tested.
        samples: Number of test samples, over the domains.
        outcome: Outcome of the test, for a part in a domain: only there it is a single test.
        adjusted_p: The p-value of `outcome` after Holm's correction.
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
    outcome: DecisionOutcome | None = None
    adjusted_p: float | None = None


def projection_verdicts(
    study: ProjectionStudy, comparisons: Sequence[DomainComparison]
) -> list[ProjectionVerdict]:
    """Test all claims about which the finished study will have results.

    Args:
        study: The study.
        comparisons: Scores of the domains that have any.
    """
    found: list[ProjectionVerdict] = []
    domains = list(study.domains)
    for checkpoint in study.checkpoints:
        there = [each for each in comparisons if each.checkpoint == checkpoint]
        kinds: set[Kind] = set()
        for comparison in there:
            kinds |= {answerer.kind for answerer in comparison.scores}
        for preset in ("", *study.presets):
            for claim, parts in projection_claims(study, preset, kinds).items():
                tests: Tests = {str(part): _test_part(part, preset, there) for part in parts}
                found += _judge((checkpoint, preset, claim), tests, domains, DIFFERENCE)
        if study.sweep is not None and study.richness is not None:
            trends = {_SWEEP_PART: _test_trend(study.rates_of_sweep(), there)}
            found += _judge((checkpoint, "sweep", SWEEP_CLAIM), trends, domains, TREND)
    return found


def _test_part(
    part: ProjectionClaimPart, preset: str, comparisons: Sequence[DomainComparison]
) -> dict[str, DecisionOutcome]:
    """Test a part of a claim in each domain that has both models."""
    tests = {}
    for each in comparisons:
        higher = each.get(part.higher.kind, part.higher.policy, preset, part.measure)
        lower = each.get(part.lower.kind, part.lower.policy, preset, part.measure)
        if higher is not None and lower is not None:
            above = difference_over_seeds(higher, lower)
            tests[each.domain] = decide_by_t_test(above, len(each.seeds), each.samples)
    return tests


def _test_trend(
    rates: Mapping[str, float], comparisons: Sequence[DomainComparison]
) -> dict[str, DecisionOutcome]:
    """Test whether richness falls with the rate, in each domain that has all rates.

    The loss against the original then rises with the rate.
    """
    tests = {}
    for each in comparisons:
        scores = [each.get("richness", FT_PROJ, preset, "macro_f1") for preset in rates]
        there = [score for score in scores if score is not None]
        if len(there) == len(rates):
            rise = slope_over_seeds(list(rates.values()), there)
            loss = SeedEstimate(-rise.value, rise.variance, rise.freedom)
            tests[each.domain] = decide_by_t_test(loss, len(each.seeds), each.samples)
    return tests


def _judge(
    name: tuple[str, str, str], tests: Tests, domains: Sequence[str], test: str
) -> Iterator[ProjectionVerdict]:
    """Decide a claim, whole (part "") and part by part, in each domain and in all.

    Args:
        name: Checkpoint, preset and claim.
        tests: Outcomes of the tests.
        domains: Domains of the study.
        test: Name of the test.
    """
    checkpoint, preset, claim = name
    adjusted = _adjust(tests, domains)
    decisions = _decide(tests, domains, adjusted)
    for part in ("", *tests):
        for domain in (*domains, ALL_DOMAINS):
            chosen = _outcomes_at(tests, part, domain)
            outcome = tests.get(part, {}).get(domain)
            yield ProjectionVerdict(
                checkpoint=checkpoint,
                preset=preset,
                claim=claim,
                part=part,
                domain=domain,
                decision=decisions[part, domain],
                test=test,
                seeds=min((each.seeds for each in chosen.values()), default=0),
                samples=sum(each.samples for each in chosen.values()),
                outcome=outcome,
                adjusted_p=None if outcome is None else adjusted[part, domain],
            )


def _adjust(tests: Tests, domains: Sequence[str]) -> dict[Place, float]:
    """Return the p-value of each part in each domain, adjusted over the domains."""
    adjusted = {}
    for part, outcomes in tests.items():
        p_values = [outcomes[domain].p if domain in outcomes else 1.0 for domain in domains]
        for domain, p_value in zip(domains, decide_by_holm(p_values), strict=True):
            adjusted[part, domain] = p_value
    return adjusted


def _decide(
    tests: Tests, domains: Sequence[str], adjusted: Mapping[Place, float]
) -> dict[Place, Decision]:
    """Return the decision about each part and the whole claim, in each domain and in all."""
    decisions = {}
    for (part, domain), p_value in adjusted.items():
        outcome = tests[part].get(domain)
        decision = Decision.UNDECIDED if outcome is None else decide(outcome.value, p_value)
        decisions[part, domain] = decision
    for domain in domains:
        decisions["", domain] = decide_all([decisions[part, domain] for part in tests])
    for part in ("", *tests):
        of_domains = [decisions[part, domain] for domain in domains]
        decisions[part, ALL_DOMAINS] = decide_all(of_domains)
    return decisions


def _outcomes_at(tests: Tests, part: str, domain: str) -> dict[str, DecisionOutcome]:
    """Return the outcomes that a verdict rests on, by domain.

    All parts of a claim are tested on the same seeds and samples of a domain: one stands for all.
    """
    chosen = {}
    for each, outcomes in tests.items():
        for name, outcome in outcomes.items():
            if part in ("", each) and domain in (ALL_DOMAINS, name):
                chosen[name] = outcome
    return chosen
