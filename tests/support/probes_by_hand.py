"""Probes as one writes them by hand: a `torch.nn.Sequential`, a loop, one network after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_mllm.probing import FeatureSet, Training
from lightning_mllm.probing.probes.held_out import hold_out
from lightning_mllm.store.seeds import torch_generator


@dataclass(frozen=True)
class Reference:
    """What the loop gives.

    Attributes:
        predicted: (test samples,) class indices.
        epochs: Trained.
        best_epoch: Whose weights were kept.
    """

    predicted: Tensor
    epochs: int
    best_epoch: int


def train_by_hand(
    train: FeatureSet,
    test: Tensor,
    *,
    sizes: Sequence[int],
    training: Training,
    seed: int,
    device: str = "cpu",
) -> Reference:
    """Train one network and classify the test features, (samples, width)."""
    network = _network(sizes, seed, train.features.dtype).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    kept, held = hold_out(train.targets, training.val_fraction, torch_generator(seed, "slice"))
    features, targets = train.features.to(device), train.targets.to(device)
    order = torch_generator(seed, "order")
    lowest, best, best_epoch, epoch = math.inf, copy.deepcopy(network.state_dict()), 0, 0
    for epoch in range(1, training.max_epochs + 1):
        for rows in (
            kept[torch.randperm(len(kept), generator=order)].to(device).split(training.batch_size)
        ):
            optimizer.zero_grad()
            F.cross_entropy(network(features[rows]), targets[rows]).backward()
            optimizer.step()
        if training.val_fraction:
            with torch.no_grad():
                loss = F.cross_entropy(network(features[held]), targets[held]).item()
            if loss < lowest - training.min_gain:
                lowest, best, best_epoch = loss, copy.deepcopy(network.state_dict()), epoch
            if epoch - best_epoch >= training.patience:
                break
    if training.val_fraction:
        network.load_state_dict(best)
    with torch.no_grad():
        predicted = network(test.to(device)).argmax(dim=1).cpu()
    return Reference(predicted, epoch, best_epoch or epoch)


def _network(sizes: Sequence[int], seed: int, dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):  # torch.nn.Linear draws from the global generator
        torch.set_rng_state(torch_generator(seed, "weights").get_state())
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, dtype=dtype), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
