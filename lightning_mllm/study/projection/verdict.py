"""What became of the paper's claims, in every domain and over all of them.

Every part of a claim says that one number is higher than another, and is tested in each domain. Its p-values are
adjusted over the domains of the study (Holm), those that are not there yet counting as 1; then a part *holds* in a
domain if its difference is above 0 with p <= 0.05, *does not* if it is below, and is *undecided* otherwise, as where
its cells are not finished. A claim holds where all its parts do, and does not where one does not. Over all domains it
holds if it holds in each, and does not if there is one in which it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_mllm.statistics.decisions import Decision, Outcome, all_of, decide, holm, t_test
from lightning_mllm.statistics.seeds_and_samples import Estimate, difference, slope
from lightning_mllm.study.projection.claims import Part, claims_about
from lightning_mllm.study.projection.comparison import Comparison
from lightning_mllm.study.projection.study import FT_PROJ, Study

ALL_DOMAINS = "all"
_BOOTSTRAP = "t test with the variance of a paired bootstrap over seeds, test samples and the probe's training samples"
DIFFERENCE = f"{_BOOTSTRAP}, Holm over domains"
TREND = f"loss of macro-F1 per tenfold rate, {_BOOTSTRAP}, Holm over domains"
SWEEP_CLAIM = "FT-Proj loses less richness at a lower learning rate"

Tests = Mapping[str, Mapping[str, Outcome]]  # part -> domain -> what came out, where there is something


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of a claim, or of a part of it, in a domain or in all.

    Attributes:
        checkpoint: Name of the checkpoint.
        preset: Under which the policies were trained; empty where none was.
        claim: The claim.
        part: A part of it; empty for the whole.
        domain: The domain, or "all".
        decision: What is known.
        test: By which test.
        outcome: Of the test, where this is one test: a part in a domain.
        adjusted_p: Its p-value after Holm.
        seeds: Number of seeds, the least of the domains; 0 where nothing could be tested.
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


def verdicts(study: Study, comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Test all claims that the study is able to speak to once it is finished.

    Args:
        study: The study.
        comparisons: Scores of the domains that have any.
    """
    found: list[Verdict] = []
    domains = list(study.domains)
    for checkpoint in study.checkpoints:
        there = [each for each in comparisons if each.checkpoint == checkpoint]
        kinds = {who.kind for each in there for who in each.scores}
        for preset in ("", *study.presets):
            for claim, parts in claims_about(study, preset, kinds).items():
                tests: Tests = {str(part): _tests(part, preset, there) for part in parts}
                found += _judge((checkpoint, preset, claim), tests, domains, DIFFERENCE)
        if study.sweep is not None and study.richness is not None:
            rates = study.rates_of_sweep()
            trends = {each.domain: test for each in there if (test := _trend(each, rates)) is not None}
            found += _judge((checkpoint, "sweep", SWEEP_CLAIM), {"loss rises with the rate": trends}, domains, TREND)
    return found


def _tests(part: Part, preset: str, domains: Sequence[Comparison]) -> dict[str, Outcome]:
    """Return the test of a part in each domain that has both models."""
    tests = {}
    for each in domains:
        higher, lower = (each.get(side.kind, side.policy, preset, part.measure) for side in (part.higher, part.lower))
        if higher is not None and lower is not None:
            tests[each.domain] = t_test(difference(higher, lower), len(each.seeds), each.samples)
    return tests


def _trend(comparison: Comparison, rates: Mapping[str, float]) -> Outcome | None:
    """Test whether richness falls with the rate, and so the loss against the original rises; None without all rates."""
    tuned = [comparison.get("richness", FT_PROJ, preset, "macro_f1") for preset in rates]
    there = [scores for scores in tuned if scores is not None]
    if len(there) < len(rates):
        return None
    rise = slope(list(rates.values()), there)
    loss = Estimate(-rise.value, rise.variance, rise.freedom)
    return t_test(loss, len(comparison.seeds), comparison.samples)


def _judge(name: tuple[str, str, str], tests: Tests, domains: Sequence[str], test: str) -> Iterator[Verdict]:
    """Decide a claim, whole (part "") and part by part, in each domain and in all.

    Args:
        name: Checkpoint, preset and claim.
        tests: What came out.
        domains: Those of the study.
        test: By which test.
    """
    checkpoint, preset, claim = name
    adjusted = {
        (part, domain): p
        for part, by_domain in tests.items()
        for domain, p in zip(domains, holm([_p(by_domain.get(domain)) for domain in domains]), strict=True)
    }
    decisions = {key: _decision(tests[key[0]].get(key[1]), p) for key, p in adjusted.items()}
    for domain in domains:
        decisions["", domain] = all_of([decisions[part, domain] for part in tests])
    for part in ("", *tests):
        decisions[part, ALL_DOMAINS] = all_of([decisions[part, domain] for domain in domains])
    for part in ("", *tests):
        for domain in (*domains, ALL_DOMAINS):
            seeds, samples = _size_of(tests, part, domain)
            outcome = tests.get(part, {}).get(domain)
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
                outcome=outcome,
                adjusted_p=None if outcome is None else adjusted[part, domain],
            )


def _p(outcome: Outcome | None) -> float:
    return 1.0 if outcome is None else outcome.p


def _decision(outcome: Outcome | None, adjusted_p: float) -> Decision:
    return Decision.UNDECIDED if outcome is None else decide(outcome.value, adjusted_p)


def _size_of(tests: Tests, part: str, domain: str) -> tuple[int, int]:
    """Return the least number of seeds, and the number of samples over the domains."""
    chosen = {
        name: outcome
        for each, by_domain in tests.items()
        for name, outcome in by_domain.items()
        if part in ("", each) and domain in (ALL_DOMAINS, name)
    }
    return min((outcome.seeds for outcome in chosen.values()), default=0), sum(o.samples for o in chosen.values())
