"""What becomes of the learning rates when a training goes on for another length than planned."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)


def follow_longer_schedule(scheduler: LambdaLR, before: float, now: float) -> None:
    """Give each parameter group the rate that the longer schedule has at the step reached.

    From there on the rates are those of a training of the new length. The steps before had the
    shorter one's: where a cosine has fallen to 0, the rates rise again at once, which is a warm
    restart, and not the same as if the training had been planned so long from its beginning.

    Args:
        scheduler: The scheduler, at the step reached.
        before: Number of steps that were planned.
        now: Number of steps that are planned now.
    """
    groups: list[dict[str, Any]] = scheduler.optimizer.param_groups
    step, earlier = scheduler.last_epoch, [float(group["lr"]) for group in groups]
    for group, peak, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = peak * factor(step)
    rates: list[Any] = [float(group["lr"]) for group in groups]  # some optimisers have tensors
    scheduler._last_lr = rates
    if rates != earlier:
        changes = ", ".join(
            f"{group.get('name', 'all parameters')} {old:.3g} -> {group['lr']:.3g}"
            for group, old in zip(groups, earlier, strict=True)
        )
        logger.warning(
            "The training is prolonged from %d to %d steps. From step %d on the learning rates are "
            "those of a schedule of %d steps: %s. Planned so long from the beginning, the steps "
            "before would have had other rates.",
            before,
            now,
            step,
            now,
            changes,
        )


def warn_of_no_steps(taken: int | None, steps: float) -> None:
    """Warn if a checkpoint has had all steps of the training that goes on from it.

    Args:
        taken: How many steps the checkpoint has had; None if there is none.
        steps: Number of steps of the training.
    """
    if (taken or 0) >= steps:
        logger.warning(
            "The checkpoint has had all %d steps of this training: nothing is left to train. To "
            "prolong it, raise trainer.max_epochs, or trainer.max_steps if it is set.",
            steps,
        )


def explain_other_schedule(
    earlier: Mapping[str, Any],
    now: Mapping[str, Any],
    checkpoint: str | Path | None,
    epochs: int | None,
) -> str:
    """Return why a training can't go on under another schedule, and what can be done.

    Args:
        earlier: The fields of the schedule that the checkpoint was written under.
        now: The fields of the schedule of this training.
        checkpoint: The checkpoint's file.
        epochs: Number of epochs that the steps make now, if that is what was asked for.
    """
    path = Path(checkpoint or "The checkpoint")
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    before_by_option, now_by_option = (dict(_options_of(each)) for each in (earlier, now))
    changed = [
        f"{option} was {before_by_option.get(option)} and is {value}"
        for option, value in now_by_option.items()
        if before_by_option.get(option) != value
    ]
    if {**earlier, "steps": now["steps"]} == now:
        before, after = (
            _describe_length(each["steps"], now["steps"], epochs) for each in (earlier, now)
        )
        way_out = "leave the length as it was."
        if run != path:
            way_out = f"go on as planned: lightning fit --resume {run}"
        return (
            f"{run} was planned for {before}, and this asks for {after}. A run that goes on may "
            f"become longer, but not shorter. Ask for more, or {way_out}"
        )
    return (
        f"{run} was trained under another schedule: {'; '.join(changed)}. Leave these as they were "
        "to go on; to train otherwise from its weights, `lightning export` the model and fit from "
        "the exported folder."
    )


def _options_of(schedule: Mapping[str, Any], section: str = "model") -> Iterator[tuple[str, Any]]:
    """Yield each option of a schedule as it is written on the command line, and its value."""
    for name, value in schedule.items():
        option = {"parts": f"{section}.schedules", "steps": "the number of steps"}.get(
            name, f"{section}.{name}"
        )
        if isinstance(value, Mapping):
            yield from _options_of(value, option)
        else:
            yield option, value


def _describe_length(steps: float, now: float, epochs: int | None) -> str:
    """Return a number of steps, and of epochs where these are whole ones, as `now` steps are."""
    text = f"{int(steps)} steps"
    if not epochs or steps * epochs % now:
        return text
    whole = int(steps * epochs / now)
    return f"{text} ({whole} epoch{'' if whole == 1 else 's'})"
