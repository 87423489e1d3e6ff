"""Which samples the model answered rightly in an evaluation, by each way to score answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.processes import gather_from_processes

OPEN = "exact_match"  # what open answers are scored by


class RightAnswers:
    """Notes, batch by batch, which samples of a split are answered rightly."""

    def __init__(self) -> None:
        self._step = -1  # of the weights that answered
        self._found: list[tuple[str, str, bool]] = []  # scorer, sample, whether it is right

    def reset(self, step: int) -> None:
        """Forget all; what comes is answered by weights that were trained for some steps."""
        self._step, self._found = step, []

    def add(self, batch: MultimodalBatch, outputs: Mapping[str, Any]) -> None:
        """Note a batch.

        Args:
            batch: The batch.
            outputs: What `MLLMModule.validation_step` returns of it.
        """
        targets = batch.targets.tolist()
        for scorer, found in outputs["predictions"].items():
            for row, predicted in enumerate(found.predicted.tolist()):
                is_right = predicted == targets[row]
                self._found.append((scorer, batch.sample_ids[row], is_right))
        for answer in outputs["answers"]:
            self._found.append((OPEN, answer.sample_id, answer.correct))

    def gather(self, step: int) -> dict[str, dict[str, bool]]:
        """Return scorer -> sample id -> whether its answer is right, of all processes.

        It is empty where the last answers are not of weights that were trained for as many steps.
        """
        found: dict[str, dict[str, bool]] = {}
        if step != self._step:
            return found
        for scorer, sample_id, is_right in gather_from_processes(self._found):
            found.setdefault(scorer, {})[sample_id] = is_right
        return found
