"""Builds a bank: texts through the LLM alone, their states into files that are mapped into memory.

Only texts of which a context was drawn are run. No more than one batch's states are in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.forward.observe import ObservedState, observe_stream
from lightning_mllm.analysis.lens.bank.bank import (
    CONTEXT_COLUMNS,
    CONTEXTS,
    STATES,
    fingerprint_language_model,
    name_of_layer_file,
)
from lightning_mllm.analysis.lens.bank.contexts import (
    BankContext,
    draw_bank_contexts,
    encode_bank_text,
)
from lightning_mllm.analysis.lens.bank.options import BankOptions
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError
from lightning_mllm.families import Family
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.progress import show_progress
from lightning_mllm.store.files import (
    replacing_folder,
    write_csv_file,
    write_json,
    write_tensor_file,
)
from lightning_mllm.store.manifest import MANIFEST, manifest_digest
from lightning_mllm.types import IGNORE_INDEX, Segment

_TOKENS = 4096  # of a batch


class BankTexts:
    """The texts of a bank, with the contexts that are drawn of them.

    Args:
        texts: The texts.
        tokenizer: The model's.
        options: How the bank is made.
        family: The model's.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        options: BankOptions,
        family: Family,
    ) -> None:
        self.contexts: list[BankContext] = draw_bank_contexts(
            texts,
            tokenizer,
            per_token=options.contexts,
            seed=options.seed,
            max_length=options.max_length,
        )
        self.of_text: Mapping[int, list[int]] = defaultdict(list)  # text -> its contexts
        for number, context in enumerate(self.contexts):
            self.of_text[context.text].append(number)
        self._encoded: dict[int, tuple[int, ...]] = {}
        for number in self.of_text:
            ids = encode_bank_text(texts[number], tokenizer, options.max_length).ids
            last = max(self.contexts[each].position for each in self.of_text[number])
            self._encoded[number] = ids[: last + 1]
        self._family = family
        self._end = int(tokenizer.eos_token_id or 0)

    def __len__(self) -> int:
        """Return the number of texts that are run."""
        return len(self._encoded)

    @property
    def digest(self) -> str:
        """A hash of what decides the states and their words, besides the LLM."""
        return manifest_digest(
            f"{each.word!r} {self._encoded[each.text][: each.position + 1]}\n"
            for each in self.contexts
        )

    def batches(self) -> Iterator[MultimodalBatch]:
        """Yield batches of texts of similar length; their ids are the texts' numbers."""
        ordered = sorted(self._encoded, key=lambda number: (len(self._encoded[number]), number))
        some: list[int] = []
        for number in ordered:
            if some and (len(some) + 1) * len(self._encoded[number]) > _TOKENS:
                yield self._make_batch(some)
                some = []
            some.append(number)
        yield self._make_batch(some)

    def _make_batch(self, numbers: Sequence[int]) -> MultimodalBatch:
        rows = {str(number): self._encoded[number] for number in numbers}
        return make_text_batch(rows, self._end, self._family)


def make_text_batch(
    rows: Mapping[str, Sequence[int]], end_id: int, family: Family
) -> MultimodalBatch:
    """Return texts without images as a batch that is padded on the right.

    LAST is each text's first token: for a model whose prompts are seen whole, the rest is an
    answer, so that each token sees those before it only, as in other models.

    Args:
        rows: Name of each text -> its tokens.
        end_id: A token that may fill padding.
        family: The model's.
    """
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(tokens) for tokens in rows.values()], batch_first=True, padding_value=end_id
    )
    lengths = torch.tensor([len(tokens) for tokens in rows.values()])
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    none = torch.zeros_like(real)
    first = none.clone()
    first[:, 0] = True
    masks = {segment: none for segment in Segment}
    masks |= {Segment.LAST: first, Segment.TEXT: real}
    count, names = len(rows), tuple(rows)
    return MultimodalBatch(
        input_ids=ids,
        attention_mask=real.long(),
        labels=torch.full_like(ids, IGNORE_INDEX),
        spans=TokenSpans(masks),
        targets=torch.full((count,), -1),
        sample_ids=names,
        pictures=names,
        kinds=(None,) * count,
        answers=(None,) * count,
        images=(),
        image_counts=(0,) * count,
        pad_id=end_id,
        end_id=end_id,
        steps=real.long(),
        offsets=torch.zeros(3, *ids.shape, dtype=torch.long) if family.axes == 3 else None,
        token_types=family.token_types,
    )


@torch.no_grad()
def build_bank(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    output: Path,
    *,
    options: BankOptions | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Build a bank, whole or not at all.

    Args:
        backbone: The model, of which only the LLM is run.
        tokenizer: The model's.
        texts: The texts, whole sentences or captions.
        output: Folder of the bank; it must not exist, or be empty.
        options: How the bank is made; by default as `BankOptions` says.
        source: Which texts these are, as plain data for the bank's `making.json`.

    Returns:
        `output`.

    Raises:
        ConfigError: The folder has something in it, or there is no such layer.
        DataError: No text is long enough.
    """
    options = options or BankOptions()
    check_bank_folder(output)
    layers = options.choose_layers(backbone)
    chosen = BankTexts(texts, tokenizer, options, backbone.family)
    count = len(chosen.contexts)
    with replacing_folder(output) as folder:
        states = _StateFiles(folder, layers, count)
        with show_progress("Running texts", len(chosen)) as bar:
            for batch in chosen.batches():
                _keep_states(backbone, batch.to(backbone.model.device), chosen, states)
                bar.advance(len(batch))
        states.write()
        rows = []
        for each in chosen.contexts:
            token = str(tokenizer.decode([each.token_id])).strip()
            rows.append((each.token_id, token, each.word, each.position, each.context))
        write_csv_file(folder / CONTEXTS, CONTEXT_COLUMNS, rows)
        making = {
            "language_model": fingerprint_language_model(backbone),
            "layers": list(layers),
            "width": states.width,
            "states": count,
            "tokens": len({each.token_id for each in chosen.contexts}),
            "texts": len(texts),
            "contexts_digest": chosen.digest,
            "contexts": options.contexts,
            "max_length": options.max_length,
            "seed": options.seed,
            "source": dict(source or {}),
        }
        write_json(folder / MANIFEST, making)
    return output


def check_bank_folder(output: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        ConfigError: It has.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"{output} has something in it, and a bank is written whole or not at all. Name a "
            "folder that does not exist."
        )


class _StateFiles:
    """States of the layers of a bank, in files of the folder while they are collected."""

    width = 0  # of the states, once the first are there

    def __init__(self, folder: Path, layers: Sequence[int], count: int) -> None:
        self._folder, self.layers, self._count = folder, layers, count
        self._states: dict[int, Tensor] = {}

    def put(self, layer: int, places: Sequence[int], states: Tensor) -> None:
        """Keep some of a layer's states, (places, width)."""
        if layer not in self._states:
            self.width = states.shape[-1]
            size = self._count * self.width
            scratch = str(self._scratch(layer))
            flat = torch.from_file(scratch, shared=True, size=size, dtype=torch.float16)
            self._states[layer] = flat.view(self._count, self.width)
        unit = torch.nn.functional.normalize(states.float(), dim=-1)
        self._states[layer][list(places)] = unit.half().cpu()

    def write(self) -> None:
        """Write the bank's own files, one after the other."""
        for layer in self.layers:
            path = self._folder / name_of_layer_file(layer)
            write_tensor_file(path, {STATES: self._states.pop(layer)}, {})
            self._scratch(layer).unlink()

    def _scratch(self, layer: int) -> Path:
        return self._folder / f"layer-{layer}.scratch"


def _keep_states(
    backbone: Backbone, batch: MultimodalBatch, texts: BankTexts, states: _StateFiles
) -> None:
    """Run a batch of texts, and keep the states of their contexts."""
    rows, positions, places = [], [], []
    for row, name in enumerate(batch.sample_ids):
        for place in texts.of_text[int(name)]:
            rows.append(row)
            positions.append(texts.contexts[place].position)
            places.append(place)

    def keep(_: ObservedState, layer: int, values: Tensor) -> None:
        if layer in states.layers:
            states.put(layer, places, values[rows, positions])

    observe_stream(backbone, batch, (ObservedState.RESIDUAL,), keep)
