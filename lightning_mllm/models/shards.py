"""The shards of a model on one process of several (FSDP2), and when they are put together.

Outside of training steps the model is held whole, so that no scorer, probe or analysis needs to
know of shards; or, if that does not fit, its layers are gathered one at a time, on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lightning_mllm.errors import ConfigError, UserError
from lightning_mllm.models.hooks import hook_before_modules
from lightning_mllm.models.sharding import Sharding

_METHOD = "run_as_forward"  # of the model, added here
_WAITS, _HAS_ENDED = -1, -2  # in a round: this process needs no layer now, or no more

ResultT = TypeVar("ResultT")


class Shards:
    """The shards of a model on this process, and when they are put together.

    All methods but `count_most` are called by all processes at the same point of the program.

    Args:
        model: The model, sharded as it was loaded; what is trained is chosen, dtypes are final.
        sharding: How it is divided.

    Attributes:
        loose: Trained parameters that came after the sharding, as adapters do: each process has
            them whole, and their gradients are averaged by `average_loose_gradients`.
        are_gathered: Whether the model can run outside of a training step.
    """

    def __init__(self, model: nn.Module, sharding: Sharding) -> None:
        self.are_gathered = False
        self._model = cast(Any, model)
        self._sharding = sharding
        self._layers = [
            each for each in model.modules() if isinstance(each, FSDPModule) and each is not model
        ]
        self._held: int | None = None  # index of the layer that was gathered on demand
        self._depth = 0  # of regions
        self._hooks = ExitStack()
        self.loose = [
            each
            for each in model.parameters()
            if each.requires_grad and not isinstance(each, DTensor)
        ]
        for parameter in self.loose:  # drawn by each process
            parameter.data = parameter.data.to(sharding.device)
            dist.broadcast(parameter.data, 0)
        # `generate` would wait for the other processes at each token
        self._model._is_fsdp_managed_module = False
        setattr(model, _METHOD, MethodType(_call, model))
        register_fsdp_forward_method(model, _METHOD)
        try:
            self._model.set_reduce_scatter_unused_params(True)  # as experts that no token chose
            _join_tied_weights(self._model)
        except AttributeError as error:  # torch has no public way, and may change its own
            raise ConfigError(
                f"trainer.strategy fsdp2 does not know this `fully_shard`, of torch "
                f"{torch.__version__}: {error}. Install torch 2.13, or use --trainer.strategy ddp."
            ) from error
        names = self._find_names()
        # from this first run on, torch knows which group is the root's
        if self.run(self._find_names) != names:
            raise ConfigError(
                "trainer.strategy fsdp2 finds weights of this model that are tied in a way that "
                "it can't keep. Use --trainer.strategy ddp."
            )
        self._model.reshard()

    @property
    def are_whole(self) -> bool:
        """Whether this process has all weights at the moment."""
        return self.are_gathered and self._sharding.whole_evaluation

    def _find_names(self) -> list[str]:
        return [name for name, _ in self._model.named_parameters()]

    def run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Run a function as a forward of the model, in which all but the layers is gathered."""
        result: ResultT = getattr(self._model, _METHOD)(function, *arguments)
        return result

    def gather(self) -> None:
        """Make the model ready to run outside of training steps, as `sharding` says."""
        if self.are_gathered:
            return
        with torch.inference_mode(False):  # the tensors outlive an evaluation
            for group in (self._model, *self._layers):
                group.set_reshard_after_forward(False, recurse=False)
                if group is self._model or self._sharding.whole_evaluation:
                    group.unshard()
        if not self._sharding.whole_evaluation:
            self._hooks.enter_context(hook_before_modules(self._find_users(), self._need))
        self.are_gathered = True

    def scatter(self) -> None:
        """Leave to each process its own shards, as training steps need it."""
        if not self.are_gathered:
            return
        self._hooks.close()
        self._held = None
        for group in (self._model, *self._layers):
            group.set_reshard_after_forward(group is not self._model, recurse=False)
            group.reshard()
        self.are_gathered = False

    @contextmanager
    def region(self) -> Iterator[None]:
        """Let processes run unequal numbers of forwards while layers are gathered on demand.

        Within the block there must be no other communication. At its end a process helps the others
        to gather layers until they are there too. After a loop over blocks, `end_regions`.
        """
        self._depth += 1
        try:
            yield
        except UserError:  # of one process; the others go on, and the Trainer ends them
            self._leave_region()
            raise
        except BaseException:
            self._depth -= 1
            raise
        self._leave_region()

    def _leave_region(self) -> None:
        self._depth -= 1
        if not self._depth:
            while self._gathers_on_demand and max(self._gather_wanted(_WAITS)) >= 0:
                pass

    def end_regions(self) -> None:
        """Help the other processes, which may have more batches, until all of them call this."""
        while self._gathers_on_demand and self._gather_wanted(_HAS_ENDED) != {_HAS_ENDED}:
            pass

    @property
    def _gathers_on_demand(self) -> bool:
        return self.are_gathered and not self._sharding.whole_evaluation

    def _find_users(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield number of a layer and each of its modules that has parameters of its own."""
        for index, layer in enumerate(self._layers):
            for module in layer.modules():
                if module is layer or next(module.parameters(recurse=False), None) is not None:
                    yield index, module

    def _need(self, index: int) -> None:
        if self._held == index:
            return
        if not self._depth:
            raise RuntimeError(
                "This runs a layer of a sharded model outside of `AdaptedModel.autocast`, where "
                "other processes do not know of it. Enter that context, or evaluate with whole "
                "weights."
            )
        self._gather_wanted(index)

    def _gather_wanted(self, wanted: int) -> set[int]:
        """Take part in one round: each layer that some process wants is gathered by all of them.

        Args:
            wanted: Index of a layer, or why none is wanted.

        Returns:
            What all processes have given.
        """
        with torch.inference_mode(False):
            if self._held is not None:
                self._layers[self._held].reshard()
                self._held = None
            own = torch.tensor([wanted], device=self._sharding.device)
            every = own.new_empty(dist.get_world_size())
            dist.all_gather_single(every, own)
            given = set(every.tolist())
            for index in sorted(given - {_WAITS, _HAS_ENDED}):
                self._layers[index].unshard()
                if index == wanted:
                    self._held = index
                else:
                    self._layers[index].reshard()
        return given

    def count_most(self, count: int) -> int:
        """Return the highest of the numbers that the processes give."""
        highest = torch.tensor(count, device=self._sharding.device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    @torch.no_grad()
    def average_loose_gradients(self) -> None:
        """Average what `fully_shard` does not know of; call it after the last backward pass."""
        if not self.loose:
            return
        grads = []
        for parameter in self.loose:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        joined = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(joined)
        joined /= dist.get_world_size()
        parts = joined.split([grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))


def _join_tied_weights(model: Any) -> None:
    """Let weights that are tied be one for torch, too.

    transformers ties head and embedding after it has sharded both. They would be gathered one by
    one, and a process with fewer rows than others would keep old values of one of them.
    """
    for group in model._get_fsdp_state()._fsdp_param_groups:
        kept: dict[int, Any] = {}
        for each in group.fsdp_params:
            place = each._module_info
            known = kept.setdefault(id(getattr(place.module, place.param_name)), each)
            if known is not each:
                known._module_info.shared_modules.append(place.module)
                known._module_info.shared_param_names.append(place.param_name)
        group.fsdp_params[:] = kept.values()


def _call(_: nn.Module, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    return function(*arguments)


def find_shards(module: object) -> Shards | None:
    """Return the shards of a LightningModule's model; None if it is whole or not loaded yet."""
    shards: Shards | None = getattr(getattr(module, "adapted", None), "shards", None)
    return shards
