"""The parser of commands whose options are those of Lightning's classes and of ours."""

from __future__ import annotations

from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lightning.pytorch.cli import LightningArgumentParser

# a short class name in a config resolves only if the class is imported
from lightning_mllm import analysis, data, evaluation  # noqa: F401
from lightning_mllm.cli.plain_parser import PlainParser
from lightning_mllm.models.optimisation.muon import MuonAdamW  # noqa: F401
from lightning_mllm.testbed import datamodules, object_samples, pairs  # noqa: F401
from lightning_mllm.testbed.domains import datamodule  # noqa: F401


class Parser(PlainParser, LightningArgumentParser):
    """Lightning's parser with our answers to mistakes."""


def take_whole_numbers_first(parser: LightningArgumentParser) -> None:
    """Let a whole number stay one where an option takes a share, too: 1 batch, not 1.0 of all.

    Members of a union are tried in order. Lightning writes `Union[int, float]` for its limits, but
    `typing` may give it `Union[float, int]` from its cache, depending on what was imported before.
    """
    actions: list[Any] = parser._actions
    for action in actions:
        kind = getattr(action, "_typehint", None)
        if kind is not None:
            action._typehint = whole_number_first(kind)


def whole_number_first(kind: Any) -> Any:
    """Return a type; of a union that has float before int, one with int before float."""
    members = list(get_args(kind))
    if get_origin(kind) not in (Union, UnionType) or not {int, float} <= {*members}:
        return kind
    first, second = sorted((members.index(int), members.index(float)))
    members[first], members[second] = int, float
    return reduce(or_, members)  # a union of `typing` would come from its cache again
