"""What becomes of the learning rates when a training goes on for longer than it was planned."""

from __future__ import annotations

import logging
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
    step, earlier = scheduler.last_epoch, [group["lr"] for group in groups]
    for group, peak, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = peak * factor(step)
    rates = [group["lr"] for group in groups]
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
