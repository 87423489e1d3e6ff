"""Which rows a patch can change, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.float32_head import head_states_at_once, next_token_head_logits
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun
from lightning_mllm.analysis.forward.suffix.compatibility import check_replay
from lightning_mllm.analysis.forward.suffix.edited_rows import run_edited_rows
from lightning_mllm.analysis.patching.edits import PatchCase, PatchEdit
from lightning_mllm.analysis.patching.engine.base import find_patch_kinds
from lightning_mllm.analysis.patching.patch import PatchKind
from lightning_mllm.analysis.patching.patching import change_first
from lightning_mllm.analysis.patching.source import (
    PatchSource,
    count_heads,
    patched_module,
    record_states,
)
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_result, hook_stream
from lightning_mllm.models.layers import decoder_layers


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A clean run, and its states as a source of patches.

    Attributes:
        clean: Keys, values and residuals of all positions.
        source: The states that patches take.
    """

    clean: CleanRun
    source: PatchSource

    @classmethod
    def of(cls, backbone: Backbone, prompts: Prompts, cases: Sequence[PatchCase]) -> RecordedRun:
        """Run prompts once.

        Raises:
            UnfitRunError: Single rows can't be run after such a run.
        """
        kinds = [kind for kind in find_patch_kinds(cases) if kind is not PatchKind.RESIDUAL]
        with record_states(backbone, kinds) as states:
            clean = CleanRun.of(backbone, prompts, 0)
        kept = {**states, PatchKind.RESIDUAL: list(clean.residuals)}
        return cls(clean, PatchSource(prompts.batch, kept, clean.logits))


class RowStart(NamedTuple):
    """Where the rows of a case begin.

    Attributes:
        start: The first position whose row is computed.
        from_source: Whether the rows before it are the source's, and not those of the run that is
            patched.
    """

    start: int
    from_source: bool


class PatchedRows:
    """The rows that patches change in one run, with the states of another.

    Args:
        backbone: The model.
        base: The run that is patched.
        source: The other run.
        positions: Where each case patches, (batch, sequence) bool.
        cases: What is patched.
    """

    def __init__(
        self,
        backbone: Backbone,
        base: CleanRun,
        source: RecordedRun,
        positions: Sequence[Tensor],
        cases: Sequence[PatchCase],
    ) -> None:
        self._backbone, self._base, self._source = backbone, base, source
        heads = count_heads(backbone)
        self._edits = []
        for case, mask in zip(cases, positions, strict=True):
            self._edits.append(PatchEdit(case, mask, source.source, heads))

    def groups(self) -> dict[RowStart, list[int]]:
        """Return the cases whose rows begin at one position, by their windows' first layers.

        Cases that patch no position of any prompt are in no group.
        """
        together: dict[RowStart, list[int]] = {}
        for number, edit in enumerate(self._edits):
            if edit.positions.any():
                together.setdefault(self._find_start(edit), []).append(number)
        for group in together.values():
            group.sort(key=lambda number: self._edits[number].case.window.start)
        return together

    def logits(self, at: RowStart, cases: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield numbers of cases, and their logits at LAST, (cases, batch, vocabulary).

        Args:
            at: Where their rows begin.
            cases: Numbers of the cases, by their windows' first layers.
        """
        edits = [self._edits[number] for number in cases]
        before = self._source.clean if at.from_source else self._base
        batch = len(self._base.real)
        layers, firsts = decoder_layers(self._backbone), [each.case.window.start for each in edits]
        replace = _RowPatches(edits, batch, at.start).replace
        with _hook_outputs(self._backbone, edits, replace):
            states = run_edited_rows(
                layers,
                self._base,
                before=before,
                start=at.start,
                firsts=firsts,
                edit=partial(replace, PatchKind.RESIDUAL),
            )
        size = max(1, head_states_at_once(self._backbone.lm_head) // batch)
        shift = self._find_rounding(at.start, firsts[0])
        for start in range(0, len(cases), size):
            logits = next_token_head_logits(self._backbone, states[start : start + size])
            yield list(cases[start : start + size]), logits + shift

    def _find_rounding(self, start: int, first: int) -> Tensor | float:
        """Return the logits of the clean run minus those of its own rows, (batch, vocabulary).

        In half precision rows are rounded in another way than the whole run. Where nothing is
        patched, this must not look like an effect.

        Raises:
            UnfitRunError: It is more than rounding.
        """
        base, layers = self._base, decoder_layers(self._backbone)
        if base.residuals[0].dtype.itemsize >= torch.float32.itemsize:
            return 0.0
        states = run_edited_rows(
            layers, base, before=base, start=start, firsts=[first], edit=lambda _, hidden: hidden
        )
        check_replay(self._backbone, base, states.transpose(0, 1), start)
        return base.logits - next_token_head_logits(self._backbone, states)[0]

    def _find_start(self, edit: PatchEdit) -> RowStart:
        """Return where the rows begin that a patch can change."""
        length = edit.positions.shape[1]
        first = int(self._first_seeing(edit.positions).min())
        window = edit.case.window
        added = [*self._base.between, *self._source.clean.between]
        if edit.case.patch.kind is PatchKind.RESIDUAL and all(k < window.start for k in added):
            # up to here all rows are patched, or equal in both runs
            equal = torch.arange(length, device=edit.positions.device) < self._differing[:, None]
            own = ~(edit.positions | equal | ~self._base.real)
            beginning = min(int(self._first_seeing(own).min()), length - 1)
            if beginning > first:
                return RowStart(beginning, True)
        return RowStart(first, False)

    @cached_property
    def _differing(self) -> Tensor:
        """(batch,), the first position whose state can differ between the two runs."""
        ours, theirs = self._base.residuals[0], self._source.clean.residuals[0]
        return self._first_seeing((ours != theirs).any(-1) & self._base.real)

    def _first_seeing(self, positions: Tensor) -> Tensor:
        """Return the first position that is, or can attend to, one of these, (batch,)."""
        length = positions.shape[1]
        first = positions.int().argmax(1).where(positions.any(1), length)
        if self._base.horizon is not None:
            first = (self._base.horizon < first[:, None]).sum(1)
        return first


@dataclass(frozen=True)
class _RowPatches:
    """Patches of rows that stand one after the other in a batch of `batch` prompts each."""

    edits: Sequence[PatchEdit]
    batch: int
    start: int

    def replace(self, kind: PatchKind, layer: int, values: Tensor) -> Tensor:
        """Return the states of a layer, (edits so far x batch, rows, width), each patched."""
        if not any(edit.acts_on(kind, layer) for edit in self.edits):
            return values
        parts = []
        for edit, own in zip(self.edits, values.split(self.batch), strict=False):
            # of later ones there are no rows yet
            acts = edit.acts_on(kind, layer)
            parts.append(edit.replace(layer, own, self.start) if acts else own)
        return torch.cat(parts)


@contextmanager
def _hook_outputs(
    backbone: Backbone, edits: Sequence[PatchEdit], replace: Callable[..., Tensor]
) -> Iterator[None]:
    """Patch what leaves attention, heads and FFN while rows go through the layers."""
    with ExitStack() as hooks:
        for number, layer in enumerate(decoder_layers(backbone)):
            for kind in PatchKind:
                acting = any(edit.acts_on(kind, number) for edit in edits)
                if kind is PatchKind.RESIDUAL or not acting:
                    continue
                function = partial(replace, kind, number)
                module = patched_module(layer, kind)
                if kind is PatchKind.HEAD:
                    hooks.enter_context(hook_stream(module, function))
                else:
                    hooks.enter_context(hook_result(module, partial(change_first, function)))
        yield
