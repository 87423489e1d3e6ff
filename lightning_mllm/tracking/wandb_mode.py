"""What a run can do with Weights & Biases; importing it needs neither wandb nor Lightning."""

from __future__ import annotations

from typing import Literal

WandbMode = Literal["auto", "online", "offline", "disabled"]
