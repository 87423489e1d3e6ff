"""A language model of the same shape with random weights: the control of what an LLM's text gives.

Run it: `python -m lightning_mllm.real.random_llm LLM OUTPUT --seed 0`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lightning_mllm.progress import console
from lightning_mllm.store.files import replacing_folder


def make_random_llm(llm: str, output: Path, seed: int) -> Path:
    """Write a language model of the same config and tokenizer, whose weights are drawn anew.

    They are drawn as the model's own code initialises them, in float32, and written in the dtype of
    the config.

    Args:
        llm: Hub id or folder of a causal language model.
        output: Folder to create.
        seed: Seed of the weights; the CPU's random state does not change.

    Returns:
        `output`.
    """
    config: Any = AutoConfig.from_pretrained(llm)
    dtype = config.dtype or torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with replacing_folder(output) as folder:
        model.to(dtype).save_pretrained(folder)
        AutoTokenizer.from_pretrained(llm).save_pretrained(folder)
    return output


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llm", help="Hub id or folder of a causal language model.")
    parser.add_argument("output", type=Path, help="Folder to create.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights.")
    options = parser.parse_args()
    folder = make_random_llm(options.llm, options.output, options.seed)
    console.print(f"{folder} has the shape of {options.llm} and random weights.", soft_wrap=True)


if __name__ == "__main__":
    main()
