"""The tables of `docs/memory.md`. `python -m tests.support.memory_page` writes them."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torchao.optim import AdamW8bit, _AdamW  # type: ignore[import-untyped]

from lightning_mllm.models.freeze import Lora, ProjectorAndLLM, ProjectorOnly
from lightning_mllm.models.memory.estimate import (
    GIB,
    MemoryEstimate,
    MemoryNeed,
    estimate_memory,
)
from tests.support.doc_commands import ROOT
from tests.support.llava_configs import LLAVA_SIZES, LlavaSize, llava_config

PAGE = ROOT / "docs" / "memory.md"
_BEGIN, _END = "<!-- tables -->\n", "<!-- end of tables -->\n"
_COLUMNS = (
    "GiB on each device",
    *("weights", "gradients", "states", "activations", "exchange", "total"),
)
_CARDS = (24, 40, 80)  # GB
_DEVICES = 8
_CONTEXT = 2.0  # GiB for CUDA itself


def eight_bit(params: Any, lr: float) -> Optimizer:
    optimizer: Optimizer = AdamW8bit(params, lr=lr)
    return optimizer


def rounding(params: Any, lr: float) -> Optimizer:
    optimizer: Optimizer = _AdamW(params, lr=lr, bf16_stochastic_round=True)
    return optimizer


def rounding_8_bit(params: Any, lr: float) -> Optimizer:
    optimizer: Optimizer = AdamW8bit(params, lr=lr, bf16_stochastic_round=True)
    return optimizer


_SMALL: dict[str, Any] = {"trained_dtype": "bfloat16", "optimizer": rounding_8_bit}
_ROUNDED: dict[str, Any] = {"trained_dtype": "bfloat16", "optimizer": rounding}
_SHARDED: dict[str, Any] = {"strategy": "fsdp2", "processes": _DEVICES}
_PROJ, _E2E, _LORA = ProjectorOnly(), ProjectorAndLLM(), Lora(projector=True)
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("FT-Proj, 1 sample", {"policy": _PROJ, "micro_batch_size": 1}),
    ("FT-Proj", {"policy": _PROJ}),
    ("FT-Proj, nf4", {"policy": _PROJ, "quantize": "nf4"}),
    ("FT-Proj, fsdp2", {"policy": _PROJ, **_SHARDED}),
    ("LoRA and projector", {"policy": _LORA}),
    ("LoRA and projector, nf4", {"policy": _LORA, "quantize": "nf4"}),
    ("FT-E2E", {"policy": _E2E}),
    ("FT-E2E, 8-bit AdamW", {"policy": _E2E, "optimizer": eight_bit}),
    ("FT-E2E, bfloat16 and 8-bit AdamW", {"policy": _E2E, **_SMALL}),
    ("FT-E2E, fsdp2", {"policy": _E2E, **_SHARDED}),
    ("FT-E2E, bfloat16, fsdp2", {"policy": _E2E, **_ROUNDED, **_SHARDED}),
)


def memory_need(options: dict[str, Any]) -> MemoryNeed:
    """Return a row's need: micro-batches of 16 with gradient checkpointing, if it says no other."""
    return MemoryNeed(**{"micro_batch_size": 16, "gradient_checkpointing": True, **options})


def memory_row(size: LlavaSize, name: str, options: dict[str, Any]) -> str:
    """Return a row of a table."""
    need = memory_need(options)
    estimate = estimate_memory(llava_config(size), need)
    sharded = need.strategy == "fsdp2"
    fits = ["" if sharded else _fits(estimate.total, card) for card in _CARDS]
    # DDP holds the gradients twice
    on_all = estimate.total if sharded else estimate.total + estimate.gradients
    cells = [
        *(f"{part:.1f}" for part in _parts(estimate)),
        f"**{estimate.total:.1f}**",
        *fits,
        _fits(on_all, _CARDS[-1]),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def memory_tables() -> str:
    """Return the tables, one for each size of model."""
    parts = []
    for size in LLAVA_SIZES:
        rows = [memory_row(size, *row) for row in ROWS]
        cards = " | ".join(f"{card} GB" for card in _CARDS)
        parts += [
            f"### LLaVA-1.5-{size}\n",
            f"| {' | '.join(_COLUMNS)} | {cards} | {_DEVICES} x {_CARDS[-1]} GB |",
            "|---|" + "---:|" * 6 + ":---:|" * (len(_CARDS) + 1),
            *rows,
            "",
        ]
    return "\n".join(parts)


def tables_on_page() -> str:
    """Return the tables as the page has them."""
    return PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


def _parts(estimate: MemoryEstimate) -> tuple[float, ...]:
    return (
        estimate.weights,
        estimate.gradients,
        estimate.states,
        estimate.activations,
        estimate.exchange,
    )


def _fits(size: float, card: int) -> str:
    return "yes" if size + _CONTEXT <= card * 1e9 / GIB else "no"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(_BEGIN)[0], text.partition(_END)[2]
    PAGE.write_text(f"{before}{_BEGIN}{memory_tables()}{_END}{after}", encoding="utf-8")
