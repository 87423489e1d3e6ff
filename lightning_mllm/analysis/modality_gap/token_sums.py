"""What is kept of a batch's tokens: moments, all norms, and the few tokens that may be replaced.

Whether a token is an outlier is known at the end only, from the norms of all. So besides the
moments of all tokens, those with the largest and with the smallest norms are kept themselves, to be
taken out of the moments; and some that are drawn, of which the coordinate-wise median is taken that
stands for an outlier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.store.seeds import numpy_generator

KEPT = 1024  # tokens with the largest, with the smallest norms, and drawn ones, of each set
ENDS = ("largest", "smallest")


class TokenSums:
    """Takes in the states of a batch, layer by layer.

    Args:
        found: Gets the sums and lists, in `finish`.
        masks: (batch, sets, sequence) bool, the tokens.
        groups: (batch,), which group each sample is in.
        number: How many groups there are.
        depth: Number of layers.
    """

    def __init__(
        self, found: RunningSums, masks: Tensor, groups: Tensor, number: int, depth: int
    ) -> None:
        self._found, self._masks, self._groups, self._number = found, masks, groups, number
        self._layers: list[dict[str, Tensor]] = [{} for _ in range(depth)]
        self._drawn: dict[str, tuple[Tensor, Tensor]] = {}  # set -> which tokens, their draws

    def draw(self, sample_ids: Sequence[str], seed: int) -> None:
        """Draw the tokens of which medians are taken: those with the lowest random numbers."""
        for name, mask in zip(SETS, self._masks.unbind(1), strict=True):
            rows = []
            for sample_id, count in zip(sample_ids, mask.sum(1).tolist(), strict=True):
                generator = numpy_generator(seed, f"{sample_id}/{name}")
                rows.append(torch.from_numpy(generator.random(count)))
            draws = torch.cat(rows)
            lowest = draws.topk(min(KEPT, len(draws)), largest=False)
            self._drawn[name] = lowest.indices.to(mask.device), lowest.values

    def observe(self, layer: int, states: Tensor) -> None:
        """Take in what leaves a layer, counted from 0: (batch, sequence, width)."""
        for name, mask in zip(SETS, self._masks.unbind(1), strict=True):
            own = self._groups[mask.nonzero()[:, 0]]  # of each token
            tokens = states[mask].double()
            norms = tokens.norm(dim=1)
            found = {"norms": norms.cpu()}
            totals = tokens.new_zeros(self._number, tokens.shape[1])
            squares = tokens.new_zeros(self._number, tokens.shape[1], tokens.shape[1])
            for group in own.unique().tolist():
                some = tokens[own == group]
                totals[group], squares[group] = some.sum(0), some.T @ some
            found |= {"totals": totals, "squares": squares}
            for end in ENDS:
                at = norms.topk(min(KEPT, len(norms)), largest=end == "largest").indices
                found[f"{end} states"] = tokens[at].float().cpu()
                found[f"{end} norms"], found[f"{end} groups"] = norms[at].cpu(), own[at].cpu()
            found["drawn states"] = tokens[self._drawn[name][0]].float().cpu()
            self._layers[layer] |= {f"{name} {key}": value for key, value in found.items()}

    def finish(self) -> None:
        """Add the batch to what is found."""
        every = {key: [layer[key] for layer in self._layers] for key in self._layers[0]}
        for name, mask in zip(SETS, self._masks.unbind(1), strict=True):
            for key in ("totals", "squares"):
                # (groups, layers, width, ...), layer by layer: it may be large
                values = every[f"{name} {key}"]
                if (total := self._found.sums.get(f"{name} {key}")) is None:
                    total = torch.stack([torch.zeros_like(each) for each in values], dim=1)
                for layer, each in enumerate(values):
                    total[:, layer] += each.to(total.device)
                self._found.sums[f"{name} {key}"] = total
            norms = torch.stack(every[f"{name} norms"], dim=1)  # (tokens, layers)
            self._found.extend(f"{name} norms", norms)
            own = self._groups[mask.nonzero()[:, 0]]
            self._found.extend(f"{name} groups", own.cpu())
            for end in ENDS:
                for key in ("states", "norms", "groups"):
                    each_layer = every[f"{name} {end} {key}"]
                    self._found.extend(f"{name} {end} {key}", torch.stack(each_layer, dim=1))
            drawn = torch.stack(every[f"{name} drawn states"], dim=1)
            self._found.extend(f"{name} drawn states", drawn)
            self._found.extend(f"{name} draws", self._drawn[name][1])
        trim_lists(self._found)


def trim_lists(found: RunningSums) -> None:
    """Keep, of the tokens that are kept themselves, only those that any order would keep."""
    lists = found.lists
    for name in SETS:
        for end in ENDS:
            norms = lists[f"{name} {end} norms"]  # (tokens, layers)
            at = norms.topk(min(KEPT, len(norms)), dim=0, largest=end == "largest").indices
            for key in ("norms", "groups"):
                lists[f"{name} {end} {key}"] = lists[f"{name} {end} {key}"].gather(0, at)
            states = lists[f"{name} {end} states"]  # (tokens, layers, width)
            index = at[..., None].expand(-1, -1, states.shape[2])
            lists[f"{name} {end} states"] = states.gather(0, index)
        draws = lists[f"{name} draws"]
        at = draws.topk(min(KEPT, len(draws)), largest=False).indices
        for key in ("draws", "drawn states"):
            lists[f"{name} {key}"] = lists[f"{name} {key}"][at]
