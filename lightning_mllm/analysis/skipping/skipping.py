"""Skipping computations: while the `with` block lasts, some tokens go around a part of some layers.

What is skipped is not computed: the rows of the other tokens are gathered, computed and put back,
so that time and operations are really saved, in evaluation and in training. Keys and values keep
their places in the cache, so that generating token by token is the same as running the whole
sequence. See `Skip` for what can be skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.skipping.choice import chooses_nothing
from lightning_mllm.analysis.skipping.layer import layer_keys_and_values, run_layer
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skip_run import SkipRun
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import (
    Arguments,
    InsteadForward,
    hook_before_call,
    hook_in_layers,
    hook_outputs,
)
from lightning_mllm.models.layers import attention_of_layers, decoder_layers

logger = logging.getLogger(__name__)

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_DENSE_MASK_ATTENTION = ("sdpa", "eager")
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_WAY_OUT = "Use a checkpoint whose LLM is a Llama, Mistral, Qwen2 or Granite."
# layers that are known to compute what `run_layer` does, and keys as `layer_keys_and_values` does
_checked: WeakSet[nn.Module] = WeakSet()
_checked_keys: WeakSet[nn.Module] = WeakSet()


@contextmanager
def skipping(
    backbone: Backbone, batch: MultimodalBatch | SampleTokens, skip: Skip
) -> Iterator[None]:
    """Skip computations in whatever runs the model on this batch: forward, backward, `generate`.

    The batch may be run whole or as its `prompts()`, in one go or token by token, each sequence
    once or repeated (beams): tokens are found by their number in their sample. The backward pass
    may come after the `with` block: its gradients are those of what was computed within. Knockouts
    may be around it or in it. If no token of the batch will be skipped, a warning says so.

    Args:
        backbone: The model; its layers must be of Llama's kind.
        batch: The samples that the model will be run on, all of them and in this order.
        skip: What is skipped, and for which tokens.

    Raises:
        ConfigError: At once: the layers are of another kind, do not exist or skip something
            already; the model is compiled; rows can't be left out of its kind of attention. In the
            model's forward: it is run on other samples, or its cache is static or slides.
    """
    tokens = batch if isinstance(batch, SampleTokens) else SampleTokens.of(batch)
    if chooses_nothing(tokens, skip):
        logger.warning(
            "Nothing is skipped in any of the %d samples: a share of %s of their %s tokens is "
            "less than one token.",
            *(len(tokens), skip.share, skip.tokens),
        )
    with skipped(backbone, tokens, skip):
        yield


@contextmanager
def skipped(
    backbone: Backbone, batch: MultimodalBatch | SampleTokens, skip: Skip
) -> Iterator[None]:
    """Skip computations as `skipping` does, but without its warning.

    A batch of which no token is skipped, such as one without images, may be meant.
    """
    tokens = batch if isinstance(batch, SampleTokens) else SampleTokens.of(batch)
    layers = decoder_layers(backbone)
    check_skipping(backbone, skip)
    run = SkipRun(skip, frozenset(skip.layers(len(layers))), tokens.to(backbone.model.device))
    replaced = {index: layers[index] for index in sorted(skip.touched(len(layers)))}
    with (
        hook_before_call(backbone.decoder, run.begin),
        hook_in_layers(replaced, run.work),
        hook_outputs(replaced, run.leave),
    ):
        yield


def check_skipping(backbone: Backbone, skip: Skip) -> None:
    """Refuse what `skipping` refuses at once, before there are samples.

    Raises:
        ConfigError: The layers are of another kind, do not exist or skip something already; the
            model is compiled; rows can't be left out of its kind of attention.
    """
    layers = decoder_layers(backbone)
    replaced = {index: layers[index] for index in sorted(skip.touched(len(layers)))}
    _check_model(backbone, skip)
    _check_layers(backbone, replaced)
    if skip.visible and skip.computation in ("block", "attention"):
        _check_keys(backbone, replaced)


def _check_model(backbone: Backbone, skip: Skip) -> None:
    if backbone.family.sees != "causal":
        raise refusal(
            backbone,
            "Skipping",
            "its tokens also see later ones, by masks in which they can't be numbered",
            _WAY_OUT,
        )
    if any(module._compiled_call_impl is not None for module in backbone.model.modules()):
        raise ConfigError(
            "The model is compiled, and the compiled code would run without skipping anything. Use "
            "a model that is not compiled."
        )
    attention = attention_of_layers(backbone)
    if skip.computation in ("block", "attention") and attention not in _DENSE_MASK_ATTENTION:
        raise ConfigError(
            f"Tokens are left out of attention with a dense mask, which {attention!r} may ignore "
            "or reject. Load the model with attention=sdpa or attention=eager."
        )


def _check_layers(backbone: Backbone, layers: Mapping[int, nn.Module]) -> None:
    """Refuse layers that skip something already, or compute something else than `run_layer`."""
    for index, layer in layers.items():
        found = {name for name, _ in layer.named_children()}
        if found != _PARTS:
            raise refusal(
                backbone,
                "Skipping",
                f"layer {index} is a {type(layer).__name__} of {', '.join(sorted(found))}, and "
                "computations are skipped in layers of Llama's kind only, of "
                f"{', '.join(sorted(_PARTS))}",
                _WAY_OUT,
            )
        if isinstance(layer.__dict__.get("forward"), InsteadForward):
            raise ConfigError(
                f"Layer {index} is computed by another edit already, `skipping` or `dropping`, and "
                "the effect of two on one layer is not defined. Give them different layers."
            )
    first = next(iter(layers.values()))
    if first not in _checked and not _computes_as_here(backbone, first):
        raise refusal(
            backbone,
            "Skipping",
            f"a {type(first).__name__} has the parts of a layer of Llama's kind, but computes "
            "something else with them, so that skipping would not mean what its documentation "
            "says",
            _WAY_OUT,
        )
    _checked.add(first)


def _check_keys(backbone: Backbone, layers: Mapping[int, nn.Module]) -> None:
    """Refuse layers that make keys and values in another way than `layer_keys_and_values`."""
    for index, layer in layers.items():
        if layer not in _checked_keys and not _keys_as_here(backbone, layer):
            raise refusal(
                backbone,
                "Skip.visible",
                "it needs keys and values of tokens that skip attention, which layer "
                f"{index}, a {type(layer).__name__}, makes in another way than Llama, e.g. with a "
                "norm of its own",
                f"Set visible: false. {_WAY_OUT}",
            )
        _checked_keys.add(layer)


@torch.no_grad()
def _keys_as_here(backbone: Backbone, layer: Any) -> bool:
    """Return whether a layer makes keys and values of tokens as `layer_keys_and_values`."""
    attention = layer.self_attn
    hidden, embeddings = _make_tokens(backbone, layer)
    named = {name for name, _ in attention.named_children()} == _PROJECTIONS
    if not named or embeddings[0].shape[-1] != attention.head_dim:
        return False
    projected: dict[str, Tensor] = {}
    modules = {name: getattr(attention, name) for name in ("k_proj", "v_proj")}
    made = _RecordingCache()
    with hook_outputs(modules, projected.__setitem__), _same_draws(hidden.device):
        normed = layer.input_layernorm(hidden)
        attention(normed, position_embeddings=embeddings, attention_mask=None, past_key_values=made)
    keys, values = (projected[name].to(hidden.device) for name in ("k_proj", "v_proj"))
    expected = layer_keys_and_values(attention, keys, values, embeddings)
    return all(map(torch.equal, (each.to(hidden.device) for each in made.given), expected))


class _RecordingCache:
    """Takes the place of a cache, and keeps what it is given."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.given = (keys, values)
        return self.given


@torch.no_grad()
def _computes_as_here(backbone: Backbone, layer: nn.Module) -> bool:
    """Return whether a layer computes, of three tokens, what `run_layer` does, to the bit."""
    hidden, embeddings = _make_tokens(backbone, layer)
    others: Arguments = {"attention_mask": None, "position_embeddings": embeddings}
    with _same_draws(hidden.device):
        own = layer.forward(hidden, **others)
    with _same_draws(hidden.device):
        ours = run_layer(layer, others, None, None, hidden)
    return torch.equal(own, ours)


def _make_tokens(backbone: Backbone, layer: nn.Module) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return three tokens, (1, 3, width), and the cosines and sines of their places."""
    dtype, device = next(layer.parameters()).dtype, backbone.model.device
    width: int = backbone.model.get_decoder().config.hidden_size
    values = torch.linspace(-1, 1, 3 * width, device=device, dtype=dtype)
    hidden = values.view(1, 3, width)
    rotary: Any = backbone.decoder.rotary_emb
    places, axes = torch.arange(3, device=device)[None], backbone.family.axes
    return hidden, rotary(hidden, places if axes == 1 else places.expand(axes, 1, 3))


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Let dropout, if there is any, draw the same each time; the generators are restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
