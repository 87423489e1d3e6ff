"""Why weights in bfloat16 need an optimiser that rounds stochastically; read without torch."""

from __future__ import annotations


def explain_lost_updates(optimizer: str) -> str:
    """Return why an optimiser can't have trained weights in bfloat16, and what to type instead.

    Args:
        optimizer: The name of its class.
    """
    return (
        f"model.trained_dtype is bfloat16, but {optimizer} does not round stochastically: small "
        "updates would be rounded away (a regression trained so ended at an error of 0.168 instead "
        "of 0.139). Add --config configs/optimizer/bfloat16_adamw_8bit.yaml, or --model.optimizer "
        "torchao.optim.AdamW8bit --model.optimizer.init_args.bf16_stochastic_round true."
    )
