"""Which tokens are chosen: as many as are asked for, and the same wherever the sample stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.skipping.choice import (
    choose_after_prompts,
    choose_in_prompts,
    choose_lowest,
    qualified_tokens,
)
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.types import Segment
from tests.support.decoders import make_batch

SHARES = (0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1.0)


@pytest.fixture
def tokens(tiny_llava: str) -> SampleTokens:
    return SampleTokens.of(make_batch(tiny_llava, numbers=(0, 1, 2)))


def own(table: Tensor, tokens: SampleTokens, row: int) -> list[bool]:
    chosen: list[bool] = table[row, : int(tokens.lengths[row])].tolist()
    return chosen


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_found_on_either_side(tiny_llava: str, side: Any) -> None:
    batch = make_batch(tiny_llava, side)

    tokens, cut = SampleTokens.of(batch), SampleTokens.of(batch.prompts())

    assert torch.equal(tokens.lengths, batch.prompts().attention_mask.sum(1))
    assert torch.equal(tokens.perceptual.sum(1), batch.spans[Segment.IMAGE].sum(1))
    assert torch.equal(tokens.perceptual, cut.perceptual)
    for row in range(len(batch)):
        real = batch.attention_mask[row].bool()
        first = int(batch.spans[Segment.IMAGE][row][real].int().argmax())
        assert int(tokens.perceptual[row].int().argmax()) == first


@pytest.mark.parametrize("choice", ["random", "strided"])
@pytest.mark.parametrize("kind", ["perceptual", "textual", "all"])
def test_of_n_tokens_the_share_s_floor_is_chosen_and_no_other(
    tokens: SampleTokens, choice: Any, kind: Any
) -> None:
    for share in SHARES:
        skip = Skip(share=share, tokens=kind, choice=choice)
        chosen, qualified = choose_in_prompts(tokens, skip, 0), qualified_tokens(tokens, skip)

        assert not (chosen & ~qualified).any()
        assert chosen.sum(1).tolist() == [int(share * n + 1e-9) for n in qualified.sum(1).tolist()]


def test_perceptual_and_textual_tokens_are_all_tokens(tokens: SampleTokens) -> None:
    parts = [qualified_tokens(tokens, Skip(tokens=kind)) for kind in ("perceptual", "textual")]

    assert not (parts[0] & parts[1]).any()
    assert torch.equal(parts[0] | parts[1], tokens.prompt)
    assert tokens.prompt.sum(1).tolist() == tokens.lengths.tolist()


def test_strided_tokens_are_evenly_spaced(tokens: SampleTokens) -> None:
    skip = Skip(share=0.25, choice="strided")

    (image,) = {int(count) for count in tokens.perceptual.sum(1)}
    chosen = choose_in_prompts(tokens, skip, 0)[tokens.perceptual].view(len(tokens), image)

    assert chosen.nonzero()[:, 1].view(len(tokens), -1).tolist() == [
        list(range(3, image, 4))
    ] * len(tokens)
    behind = choose_after_prompts(
        tokens, Skip(share=0.25, choice="strided", tokens="all", phase="both"), 0, 9
    )
    assert behind.nonzero()[:, 1].view(len(tokens), -1).tolist() == [[3, 7]] * len(tokens)


def test_a_random_choice_belongs_to_seed_and_sample(tiny_llava: str, tokens: SampleTokens) -> None:
    skip = Skip(share=0.5, tokens="all")
    chosen = choose_in_prompts(tokens, skip, 0)

    alone = SampleTokens.of(make_batch(tiny_llava, "right", numbers=(1,)))
    assert own(choose_in_prompts(alone, skip, 0), alone, 0) == own(chosen, tokens, 1)
    image = choose_in_prompts(tokens, Skip(share=0.5), 0)[tokens.perceptual].view(3, -1)
    assert not torch.equal(image[0], image[1])
    assert not torch.equal(
        chosen, choose_in_prompts(tokens, Skip(share=0.5, tokens="all", seed=1), 0)
    )


def test_layers_choose_anew_if_it_is_said(tokens: SampleTokens) -> None:
    once, anew = Skip(share=0.5), Skip(share=0.5, per_layer=True)

    assert torch.equal(choose_in_prompts(tokens, once, 1), choose_in_prompts(tokens, once, 2))
    assert not torch.equal(choose_in_prompts(tokens, anew, 1), choose_in_prompts(tokens, anew, 2))


def test_behind_the_prompt_more_tokens_begin_with_the_same_choice(tokens: SampleTokens) -> None:
    skip = Skip(share=0.3, tokens="textual", phase="decode")

    few, many = (choose_after_prompts(tokens, skip, 0, count) for count in (7, 4000))

    assert torch.equal(few, many[:, :7])
    assert many.double().mean(1).tolist() == pytest.approx([0.3] * len(tokens), abs=0.03)
    assert not torch.equal(many[0], many[1])


def test_a_prompt_s_tokens_are_not_chosen_for_decoding(tokens: SampleTokens) -> None:
    assert not qualified_tokens(tokens, Skip(tokens="all", phase="decode")).any()


def test_the_lowest_of_those_that_qualify_are_taken() -> None:
    values = torch.tensor([[5.0, 1.0, 2.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    qualified = torch.tensor([[True, True, True, False, True], [False, True, True, True, False]])

    found = choose_lowest(values, qualified, 0.5)

    assert found.tolist() == [[False, True, True, False, False], [False, True, False, False, False]]


@pytest.mark.parametrize(("share", "count"), [(0.29, 29), (0.57, 57), (0.295, 29)])
def test_a_share_of_a_hundred_is_not_one_less_for_rounding(share: float, count: int) -> None:
    found = choose_lowest(torch.arange(100.0)[None], torch.ones(1, 100, dtype=torch.bool), share)

    assert found.sum() == count
