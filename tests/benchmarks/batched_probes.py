"""Probes of several seeds and points: trained together against one after another.

Two baselines: our own code with one network at a time, and a plain loop over `torch.nn.Sequential`.
All train the same networks on the same batches; early stopping is evaluated, but its patience is
never exhausted, so that all take the same steps. Before anything is timed, the predictions of all
three are compared.
Run it: `python tests/benchmarks/batched_probes.py`, with `--width 4096` for the paper's network.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_mllm.probing import FeatureSet, MLPProbe
from lightning_mllm.probing.probes.networks import POST_PROJECTION, network_parameter_count
from lightning_mllm.probing.probes.training import PRESETS
from tests.benchmarks.harness import Row, print_table, synchronise
from tests.support.probes_by_hand import train_by_hand

Points = dict[str, FeatureSet]


def main() -> None:
    """Compare, time, print."""
    options = _options()
    training = replace(PRESETS[options.preset], max_epochs=options.epochs, patience=options.epochs)
    train = _points(options, options.samples, seed=0)
    test = _points(options, options.samples // 2, seed=1)
    seeds = range(options.seeds)
    sizes = POST_PROJECTION.sizes(options.width, options.classes)

    def ours(models_at_once: int) -> Callable[[], Tensor]:
        probe = MLPProbe(
            training=training,
            standardise=False,
            device=options.device,
            models_at_once=models_at_once,
        )
        return lambda: torch.stack(
            [s.predictions for s in probe.fit_score(train, test, list(seeds)).values()]
        )

    def loop() -> Tensor:
        runs = [
            train_by_hand(
                train[name],
                test[name].features,
                sizes=sizes,
                training=training,
                seed=seed,
                device=options.device,
            ).predicted
            for name in train
            for seed in seeds
        ]
        return torch.stack(runs).view(len(train), len(seeds), -1)

    together = ours(options.models_at_once)
    baselines = {"one at a time, our code": ours(1), "one at a time, nn.Sequential": loop}
    _compare(together, list(baselines.values()))
    for name, baseline in baselines.items():
        pairs = [
            (_seconds(baseline, options.device), _seconds(together, options.device))
            for _ in range(options.repetitions)
        ]
        theirs, mine = zip(*pairs, strict=True)
        print_table(
            name,
            [Row(f"{len(train) * len(seeds)} probes, s", theirs, mine, digits=2)],
            device=options.device,
            threads=torch.get_num_threads(),
            notes=[
                f"{len(seeds)} seeds x {len(train)} points, {options.samples} samples of "
                f"{options.width} numbers, {network_parameter_count(sizes):,} weights each; preset "
                f"{options.preset}, {options.epochs} epochs."
            ],
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of measurements")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    for name, default in (
        ("width", 192),
        ("samples", 1000),
        ("classes", 10),
        ("points", 3),
        ("seeds", 5),
        ("epochs", 20),
        ("models-at-once", 16),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def _points(options: argparse.Namespace, samples: int, seed: int) -> Points:
    """Draw noisy samples around the same class centres for every split."""
    points = {}
    for point in range(options.points):
        centres = torch.randn(
            options.classes, options.width, generator=torch.Generator().manual_seed(point)
        )
        noise = torch.randn(
            samples,
            options.width,
            generator=torch.Generator().manual_seed(1000 * (seed + 1) + point),
        )
        targets = torch.arange(samples) % options.classes
        points[f"point {point}"] = FeatureSet(
            features=centres[targets] + 2 * noise,
            targets=targets,
            names=tuple(str(label) for label in range(options.classes)),
            sample_ids=tuple(f"{seed}/{sample}" for sample in range(samples)),
        )
    return points


def _compare(ours: Callable[[], Tensor], baselines: Sequence[Callable[[], Tensor]]) -> None:
    predictions = ours()
    for baseline in baselines:
        same = (predictions == baseline()).float().mean()
        if same < 0.99:  # the order of additions differs, and a sample may lie on a border
            raise SystemExit(
                f"Only {same:.1%} of the predictions agree: "
                "the two sides do not train the same networks."
            )


def _seconds(work: Callable[[], Tensor], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
