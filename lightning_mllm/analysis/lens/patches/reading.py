"""The words that each patch of a picture says at each layer.

Two lenses read the residual stream at the visual tokens, un-normed, in front of layer l (index 0 is
what enters the LLM, index L what leaves its last layer):

- the logit lens: softmax(head(norm(state))), as the model does behind its last layer;
- the bank: the nearest states of words in texts, by cosine (LatentLens, arXiv 2602.00462).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.forward.float32_head import head_states_at_once, model_logits
from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.analysis.lens.bank.bank import Bank
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import Segment

_MOST_LAYERS = 9  # that are read by default


class SaidWords(NamedTuple):
    """What a lens reads in n states.

    Attributes:
        words: (n, top), the likeliest or nearest first.
        values: (n, top), their probabilities or cosines, on the CPU.
        scores: (n, candidates), how well each candidate fits, on the CPU; empty without candidates.
    """

    words: list[list[str]]
    values: Tensor
    scores: Tensor


class PatchLens(ABC):
    """Reads words in states of patches."""

    name: ClassVar[str]

    @abstractmethod
    def read(self, states: Tensor, top: int, candidates: Tensor | None = None) -> SaidWords:
        """Return what states say.

        Args:
            states: (n, width), un-normed.
            top: How many words of each.
            candidates: Tokens whose scores are returned, too; a lens without scores has none.
        """


class LogitPatchLens(PatchLens):
    """The final norm and the head, on a state of any layer.

    Args:
        backbone: The model.
        tokenizer: The model's.
    """

    name: ClassVar[str] = "logit lens"

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backbone, self._tokenizer = backbone, tokenizer
        self._texts: dict[int, str] = {}  # token -> text

    def read(self, states: Tensor, top: int, candidates: Tensor | None = None) -> SaidWords:
        """Return the likeliest tokens, and the logits of candidates; see `PatchLens.read`."""
        norm = self._backbone.final_norm
        ids, values, scores = [], [], []
        for some in states.split(head_states_at_once(self._backbone.lm_head)):
            # not called: within hooks on the norm, a call would be observed as well
            logits = model_logits(self._backbone, norm.forward(some))
            found = logits.topk(min(top, logits.shape[1]))
            ids.append(found.indices)
            values.append((found.values - logits.logsumexp(1, keepdim=True)).exp().float())
            chosen = logits[:, :0] if candidates is None else logits[:, candidates.to(some.device)]
            scores.append(chosen.float())
        rows = torch.cat(ids).tolist()
        words = [[self._text_of(token) for token in row] for row in rows]
        return SaidWords(words, torch.cat(values).cpu(), torch.cat(scores).cpu())

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.decode([token])).strip()
        return self._texts[token]


class BankPatchLens(PatchLens):
    """The words of the nearest states of a bank."""

    name: ClassVar[str] = "bank"

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def read(self, states: Tensor, top: int, candidates: Tensor | None = None) -> SaidWords:
        """Return the words of the nearest states; see `PatchLens.read`."""
        nearest = self._bank.search(states, top)
        places = nearest.indices.cpu().tolist()
        words = [[self._bank.words[place] for place in row] for row in places]
        return SaidWords(words, nearest.cosines.cpu(), torch.zeros(len(states), 0))


@dataclass(frozen=True, eq=False)
class PatchReading:
    """The words of a sample's patches.

    Attributes:
        sample_id: Id of the sample.
        layers: Numbers of layers that the states have gone through.
        tokens: Which of the sample's visual tokens the patches are, counted from 0, in order;
            separators are left out.
        words: (layers, patches, top), the likeliest or nearest first.
        values: (layers, patches, top), float32: probabilities, or cosines with a bank.
    """

    sample_id: str
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    words: list[list[list[str]]]
    values: NDArray[Any]


@torch.no_grad()
def read_patch_words(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    batch: MultimodalBatch,
    *,
    layers: Sequence[int] | None = None,
    top: int = 3,
    bank: Bank | None = None,
) -> list[PatchReading]:
    """Return the words that each patch says at each layer, per sample.

    Args:
        backbone: The model.
        tokenizer: The model's.
        batch: Samples, on the model's device; those without an image have no patches.
        layers: At which layers, 0 (what enters the LLM) to L; by default all, or nine of many.
        top: How many words of each patch.
        bank: A bank whose words are given instead of the logit lens' ones.

    Raises:
        ConfigError: There is no such layer, or the bank is of another model.
    """
    if bank is not None:
        bank.check_model(backbone)
    lens = LogitPatchLens(backbone, tokenizer) if bank is None else BankPatchLens(bank)
    chosen = choose_patch_layers(backbone, layers)
    patches = find_patches(batch)
    said: list[SaidWords] = []
    observe_patches(backbone, batch, chosen, lambda _, states: said.append(lens.read(states, top)))
    values = torch.stack([each.values for each in said])  # (layers, patches of all, top)
    readings, first = [], 0
    for row, sample_id in enumerate(batch.sample_ids):
        image = batch.spans[Segment.IMAGE][row]
        tokens = patches[row][image].nonzero()[:, 0].tolist()
        own = slice(first, first + len(tokens))
        words = [each.words[own] for each in said]
        readings.append(
            PatchReading(sample_id, chosen, tuple(tokens), words, values[:, own].numpy())
        )
        first += len(tokens)
    return readings


def find_patches(batch: MultimodalBatch) -> Tensor:
    """Return which positions are patches of images, (batch, sequence) bool; separators are none."""
    return batch.spans[Segment.IMAGE] & ~batch.spans[Segment.IMAGE_NEWLINE]


def choose_patch_layers(backbone: Backbone, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Return the layers that are read: those asked for, else all, or nine of many.

    Raises:
        ConfigError: There is no such layer.
    """
    depth = len(decoder_layers(backbone))
    if layers is None:
        count = min(depth + 1, _MOST_LAYERS)
        return tuple(round(step * depth / (count - 1)) for step in range(count))
    if unknown := [layer for layer in layers if not 0 <= layer <= depth]:
        raise ConfigError(
            f"Words of patches are asked for at layer {unknown[0]}; the model has states 0 to "
            f"{depth}. Name layers among these."
        )
    return tuple(sorted(set(layers)))


def observe_patches(
    backbone: Backbone,
    batch: MultimodalBatch,
    layers: Sequence[int],
    observe: Callable[[int, Tensor], None],
) -> None:
    """Run the LLM once, and show the states of all patches, un-normed, layer by layer.

    Args:
        backbone: The model.
        batch: What it is run on.
        layers: Numbers of the layers in front of which states are shown.
        observe: Gets the layer and (patches of all samples, width), sample by sample.
    """
    patches = find_patches(batch)

    def show(_: ObservedState, layer: int, states: Tensor) -> None:
        if layer in layers:
            observe(layer, states[patches.to(states.device)])

    observe_stream(backbone, batch, (ObservedState.RESIDUAL,), show)
