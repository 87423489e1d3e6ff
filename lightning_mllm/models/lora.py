"""LoRA adapters on chosen parts of the model, and their files; the only importer of peft.

It is imported when it is used, since most runs have no adapters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"


def inject_lora(
    backbone: Backbone,
    parts: tuple[Part, ...],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    modules: tuple[str, ...],
) -> None:
    """Put adapters on the linear layers of the given parts, in place.

    A model that already has adapters is left as it is. Names alone would not select the right
    layers: `q_proj` also names layers of the vision tower, and "all linear layers" includes the
    projector and the head. So the targets are listed in full, chosen by their part.

    Args:
        backbone: The model.
        parts: Parts that get adapters.
        rank: Rank of the update.
        alpha: Strength of the update, which is multiplied by alpha / rank.
        dropout: Probability of dropout on the adapters' input.
        modules: Names of the linear layers that get an adapter; all if empty.

    Raises:
        ConfigError: A name in `modules` is not a linear layer of these parts.
    """
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415

    if any(isinstance(module, BaseTunerLayer) for module in backbone.model.modules()):
        return
    last_names = _linear_layers(backbone, parts)
    known = set(last_names.values())
    if unknown := set(modules) - known:
        raise ConfigError(
            f"Lora: modules {sorted(unknown)} are not linear layers of {' and '.join(parts)}. "
            f"Expected some of {sorted(known)}."
        )
    targets = sorted(name for name, last in last_names.items() if not modules or last in modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it, a float will do
        lora_dropout=dropout,
        target_modules=_exactly(targets),
    )
    inject_adapter_in_model(config, backbone.model, adapter_name=ADAPTER)
    backbone.model.peft_config = {ADAPTER: config}  # type: ignore[dict-item]


def _linear_layers(backbone: Backbone, parts: tuple[Part, ...]) -> dict[str, str]:
    """Return full name -> last part of the name of the linear layers that can get an adapter."""
    idle = backbone.idle_parameters()
    found: dict[str, str] = {}
    for name, module in backbone.model.named_modules():
        if not isinstance(module, nn.Linear) or module is backbone.lm_head:
            continue
        weight = f"{name}.weight"
        if backbone.part_of(weight) in parts and weight not in idle:
            found[name] = name.rpartition(".")[2]
    return found


def has_lora(model: PreTrainedModel) -> bool:
    """Whether the model carries adapters of ours."""
    return ADAPTER in getattr(model, "peft_config", {})


def save_adapter(backbone: Backbone, base: str, revision: str | None, output: Path) -> None:
    """Write the adapters in PEFT's format.

    `PeftModel.from_pretrained(base_model, output)` opens the whole model, unless weights of the LLM
    or the tower were trained beside the adapters: the projection is written too, unless it is that
    of the base checkpoint. LLaVA-NeXT's `image_newline` is in no module that PEFT could wrap, so it
    is written under its own name: PEFT puts it into the base model, and does not take it out again
    with the adapter.

    Args:
        backbone: The model with its adapters.
        base: Hub id or folder of the base checkpoint.
        revision: Revision of the base checkpoint on the hub.
        output: Folder to write to.
    """
    from peft import get_peft_model_state_dict  # noqa: PLC0415

    config: LoraConfig = backbone.model.peft_config[ADAPTER]  # type: ignore[assignment]
    config.base_model_name_or_path = base
    config.revision = revision
    config.inference_mode = True
    state = get_peft_model_state_dict(backbone.model, adapter_name=ADAPTER)
    if not backbone.has_base_projector:
        config.modules_to_save = [backbone.family.projector_name.rpartition(".")[2]]
        state |= {
            name: parameter.detach() for name, parameter in backbone.parameters(Part.PROJECTOR)
        }
    output.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor.contiguous().cpu() for name, tensor in state.items()},
        output / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(output))


def merge_lora(model: PreTrainedModel) -> None:
    """Add the adapters to the weights and remove them, in place: the model is a plain one again."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config


def _exactly(names: list[str]) -> str:
    """Return a pattern that matches only these module names; peft matches lists by suffix."""
    return "(?:" + "|".join(re.escape(name) for name in names) + ")"
