"""LoRA adapters, scoped to the parts that were asked for: the only importer of peft."""

from __future__ import annotations

import re
from pathlib import Path

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part

ADAPTER = "default"


def inject_lora(
    backbone: Backbone, parts: tuple[Part, ...], *, rank: int, alpha: float, dropout: float, modules: tuple[str, ...]
) -> None:
    """Put adapters on the linear layers of the given parts, in place; a model that has them is left as it is.

    Names alone would not do: `q_proj` also names layers of the vision tower, and "all linear layers" includes the
    projector and the head. So the targets are listed in full, chosen by the part to which they belong.

    Raises:
        ConfigError: A name in `modules` is no linear layer of these parts.
    """
    if any(isinstance(module, BaseTunerLayer) for module in backbone.model.modules()):
        return
    linear = {
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear) and module is not backbone.lm_head and backbone.part_of(f"{name}.") in parts
    }
    linear -= {name for name in linear if f"{name}.weight" in backbone.idle_parameters()}
    leaves = {name.rpartition(".")[2] for name in linear}
    if unknown := set(modules) - leaves:
        raise ConfigError(
            f"Lora: modules {sorted(unknown)} are no linear layers of {' and '.join(parts)}. "
            f"Expected some of {sorted(leaves)}."
        )
    targets = sorted(name for name in linear if not modules or name.rpartition(".")[2] in modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it, a float will do
        lora_dropout=dropout,
        target_modules=_exactly(targets),
    )
    inject_adapter_in_model(config, backbone.model, adapter_name=ADAPTER)
    backbone.model.peft_config = {ADAPTER: config}  # type: ignore[dict-item]


def has_lora(model: PreTrainedModel) -> bool:
    """Whether the model carries adapters of ours."""
    return ADAPTER in getattr(model, "peft_config", {})


def save_adapter(backbone: Backbone, base: str, revision: str | None, output: Path) -> None:
    """Write the adapters in PEFT's format.

    `PeftModel.from_pretrained(base_model, output)` opens the whole model: the projection is
    written too, unless it is that of the base checkpoint. LLaVA-NeXT's `image_newline`, which is in
    no module that PEFT could wrap, then goes by its own name: PEFT puts it into the base model, and
    does not take it out again with the adapter.
    """
    config: LoraConfig = backbone.model.peft_config[ADAPTER]  # type: ignore[assignment]
    config.base_model_name_or_path = base
    config.revision = revision
    config.inference_mode = True
    state = get_peft_model_state_dict(backbone.model, adapter_name=ADAPTER)
    if not backbone.has_base_projector:
        config.modules_to_save = [backbone.family.projector[0].rstrip(".").rpartition(".")[2]]
        state |= {name: parameter.detach() for name, parameter in backbone.parameters(Part.PROJECTOR)}
    output.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor.contiguous().cpu() for name, tensor in state.items()},
        output / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(output))


def merge_lora(model: PreTrainedModel) -> None:
    """Add the adapters to the weights and remove them, in place: the model is then a plain one again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config


def _exactly(names: list[str]) -> str:
    """Return a pattern that matches these module names and no other: peft matches lists by suffix."""
    return "(?:" + "|".join(re.escape(name) for name in names) + ")"
