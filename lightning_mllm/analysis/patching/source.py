"""The states of a run, recorded once, from which patches are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.patching.patch import PatchKind
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_before_layers, hook_inputs, hook_outputs
from lightning_mllm.models.layers import decoder_layers

_MODULES = {  # of a layer, whose output (or input, for heads) is patched
    PatchKind.ATTENTION: "self_attn",
    PatchKind.FFN: "mlp",
    PatchKind.HEAD: "self_attn.o_proj",
}
States = Mapping[PatchKind, Sequence[Tensor]]  # kind -> per layer, (batch, sequence, width)


@dataclass(frozen=True, eq=False)
class PatchSource:
    """What a run computed: the states that patches put into another run.

    Attributes:
        batch: The prompts of the run, padded on the left, on the model's device, without pixels.
        states: Kind -> per layer, the states, (batch, sequence, width).
        logits: (batch, vocabulary), at the last position.
    """

    batch: MultimodalBatch
    states: States
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        backbone: Backbone,
        batch: MultimodalBatch,
        kinds: Sequence[PatchKind] = (PatchKind.RESIDUAL,),
    ) -> PatchSource:
        """Run the prompts of a batch once, and keep their states.

        Args:
            backbone: The model, in eval mode.
            batch: With or without answers, which are cut off.
            kinds: Which states are kept; each takes the memory of all layers and positions.

        Raises:
            ConfigError: The model's layers have no such states.
        """
        check_patch_model(backbone, kinds)
        prompts = Prompts.of(backbone, batch)
        with record_states(backbone, kinds) as states:
            logits, _ = prompts.forward(backbone)
        return cls(prompts.batch, states, logits)


@contextmanager
def record_states(
    backbone: Backbone, kinds: Sequence[PatchKind]
) -> Iterator[dict[PatchKind, list[Tensor]]]:
    """Keep the states of the one forward that is run inside the `with` block."""
    layers = decoder_layers(backbone)
    found: dict[PatchKind, list[Tensor]] = {kind: [] for kind in kinds}

    def keep(key: tuple[PatchKind, int], values: Tensor) -> None:
        found[key[0]].append(values.detach().to(backbone.model.device, copy=True))

    with ExitStack() as hooks:
        for kind in kinds:
            if kind is PatchKind.RESIDUAL:
                hooks.enter_context(
                    hook_before_layers(
                        dict(enumerate(layers)),
                        lambda layer, hidden, _: keep((PatchKind.RESIDUAL, layer), hidden),
                    )
                )
                continue
            own = {(kind, layer): patched_module(each, kind) for layer, each in enumerate(layers)}
            hook = hook_inputs if kind is PatchKind.HEAD else hook_outputs
            hooks.enter_context(hook(own, keep))
        yield found


def patched_module(layer: nn.Module, kind: PatchKind) -> nn.Module:
    """Return the module of a layer whose output, or input for heads, is patched."""
    return layer.get_submodule(_MODULES[kind])


def count_heads(backbone: Backbone) -> int:
    """Return how many attention heads each layer has."""
    return int(backbone.model.get_decoder().config.num_attention_heads)


def check_patch_model(backbone: Backbone, kinds: Sequence[PatchKind]) -> None:
    """Refuse a model whose states can't be recorded or replaced.

    Raises:
        ConfigError: It is in train mode, its pictures can't be encoded once, or its layers do not
            have such states.
    """
    if backbone.decoder.training:
        raise ConfigError(
            "The LLM is in train mode, so its answers could be random. Call model.eval() first."
        )
    if getattr(backbone.model.config, "deepstack_layer_map", None):
        raise refusal(
            backbone,
            "Patching",
            "it adds the features of an image between the layers of its LLM and puts none at the "
            "input, so that they can't be encoded once",
            "Choose a model of another family.",
        )
    for kind in kinds:
        for number, layer in enumerate(decoder_layers(backbone)):
            if kind is not PatchKind.RESIDUAL and not _has_module(layer, _MODULES[kind]):
                raise refusal(
                    backbone,
                    f"Patching {kind} states",
                    f"layer {number}, a {type(layer).__name__}, has no {_MODULES[kind]}, whose "
                    "states they are",
                    f"Patch {PatchKind.RESIDUAL} states, or use a model whose LLM has Llama's "
                    "layers.",
                )


def _has_module(layer: nn.Module, name: str) -> bool:
    return name in dict(layer.named_modules())
