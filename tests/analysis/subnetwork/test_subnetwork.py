"""The algebra of sub-networks, and a model with nothing but one: an edit that leaves no trace."""

from __future__ import annotations

import copy
from math import isnan
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.overlap import chance_iou, iou
from lightning_mllm.analysis.subnetwork.pruned import pruned
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork, intersection, same_size
from lightning_mllm.data.images.portable import portable_processor
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.export import export
from lightning_mllm.models.source import Source
from tests.support.decoders import generate, last_logits, make_backbone
from tests.support.questions import batches, load

ONE = Matrix(0, "mlp.up_proj")


def random_masks(
    *names: str, shape: tuple[int, int] = (5, 7), share: float = 0.5
) -> list[SubNetwork]:
    generator = torch.Generator().manual_seed(0)
    return [
        SubNetwork.of(name, [(ONE, torch.rand(shape, generator=generator) > share)])
        for name in names
    ]


def by(
    backbone: Backbone, score: str = "magnitude", sparsity: float = 0.5, seed: int = 0
) -> SubNetwork:
    return SubNetwork.by_score(score, backbone, Pruning(score, sparsity, seed=seed))  # type: ignore[arg-type]


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone() for name, parameter in backbone.model.named_parameters()
    }


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return load(tiny_llava)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 8), (7, 9)])
def test_eight_weights_to_a_byte_and_none_is_lost(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5

    subnetwork = SubNetwork.of("x", [(ONE, mask)])

    assert torch.equal(subnetwork.kept(ONE), mask)
    assert len(subnetwork.bits[ONE]) == -(-mask.numel() // 8)
    assert subnetwork.counts[ONE] == int(mask.sum())
    assert (
        subnetwork.sparsity
        == subnetwork.sparsity_of(ONE)
        == pytest.approx(1 - float(mask.double().mean()))
    )


def test_the_algebra_is_that_of_sets() -> None:
    one, two = random_masks("a", "b")
    a, b = one.kept(ONE), two.kept(ONE)

    for found, expected, name in (
        (one & two, a & b, "(a & b)"),
        (one | two, a | b, "(a | b)"),
        (one - two, a & ~b, "(a - b)"),
    ):
        assert torch.equal(found.kept(ONE), expected)
        assert found.counts[ONE] == int(expected.sum())
        assert found.name == name


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_what_tasks_share_is_at_least_as_sparse_as_each(
    backbone: Backbone, sparsity: float
) -> None:
    tasks = [by(backbone, "random", sparsity, seed) for seed in range(3)]

    alpha = intersection(tasks)

    assert alpha.sparsity >= max(task.sparsity for task in tasks)
    assert alpha.sparsity == pytest.approx(1 - (1 - sparsity) ** 3, abs=0.02)
    for matrix in alpha.shapes:
        assert alpha.sparsity_of(matrix) >= max(task.sparsity_of(matrix) for task in tasks)
        assert torch.equal(
            alpha.kept(matrix), torch.stack([task.kept(matrix) for task in tasks]).all(0)
        )


def test_what_none_shares_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is none"):
        intersection([])


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_random_masks_overlap_by_chance(sparsity: float) -> None:
    weight = torch.empty(200, 500)
    one, two = (Pruning("random", sparsity, seed=seed).kept(ONE, weight) for seed in (0, 1))

    assert chance_iou(sparsity, sparsity) == pytest.approx((1 - sparsity) / (1 + sparsity))
    assert iou(one, two) == pytest.approx(chance_iou(sparsity, sparsity), abs=0.01)
    assert iou(one, one) == 1


def test_chance_holds_for_masks_of_different_sparsity() -> None:
    weight = torch.empty(200, 500)
    one, two = (
        Pruning("random", sparsity, seed=seed).kept(ONE, weight)
        for seed, sparsity in ((0, 0.2), (1, 0.8))
    )

    assert iou(one, two) == pytest.approx(chance_iou(0.2, 0.8), abs=0.01)


def test_nothing_has_nothing_in_common() -> None:
    nothing = torch.zeros(2, 2, dtype=torch.bool)

    assert isnan(iou(nothing, nothing))
    assert isnan(chance_iou(1.0, 1.0))


@pytest.mark.parametrize("score", ["random", "magnitude"])
def test_a_comparison_keeps_as_many_weights_of_each_row(backbone: Backbone, score: str) -> None:
    alpha = intersection([by(backbone, "random", seed=seed) for seed in (1, 2)])

    other = same_size(alpha, backbone, score)  # type: ignore[arg-type]

    assert other.name == f"alpha {score}"
    for matrix, module in matrices(backbone).items():
        own, its = alpha.kept(matrix), other.kept(matrix)
        assert torch.equal(own.sum(1), its.sum(1))
        assert not torch.equal(own, its)
        if score == "magnitude":
            size = module.weight.abs()
            assert (size.masked_fill(~its, 9e9).amin(1) >= size.masked_fill(its, -1).amax(1)).all()


class TestPruned:
    def test_the_model_has_nothing_but_the_sub_network(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        subnetwork, batch = by(backbone, "random"), batches(tiny_llava)[0]
        by_hand = Backbone(copy.deepcopy(backbone.model))
        with torch.no_grad():
            for matrix, module in matrices(by_hand).items():
                module.weight[~subnetwork.kept(matrix)] = 0

        with pruned(backbone, subnetwork):
            found = last_logits(backbone, batch)

        assert torch.equal(found, last_logits(by_hand, batch))
        assert not torch.equal(found, last_logits(backbone, batch))

    def test_only_the_matrices_of_the_blocks_change(self, backbone: Backbone) -> None:
        before = weights_of(backbone)

        with pruned(backbone, by(backbone)):
            changed = {
                name
                for name, now in weights_of(backbone).items()
                if not torch.equal(now, before[name])
            }

        own = {f"model.language_model.layers.{matrix}.weight" for matrix in matrices(backbone)}
        assert changed == own

    def test_pruning_nothing_changes_nothing(self, backbone: Backbone, tiny_llava: str) -> None:
        before, logits = weights_of(backbone), last_logits(backbone, batches(tiny_llava)[0])

        with pruned(backbone, by(backbone, sparsity=0)):
            assert same_bits(weights_of(backbone), before)
            assert torch.equal(last_logits(backbone, batches(tiny_llava)[0]), logits)

    def test_it_is_told_that_nothing_is_pruned(
        self, backbone: Backbone, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pruned(backbone, by(backbone)):
            assert not caplog.records
        with pruned(backbone, by(backbone, sparsity=0)):
            assert "prunes nothing: each weight of the model is kept" in caplog.text

    def test_afterwards_the_weights_are_the_same_bits_in_the_same_place(
        self, backbone: Backbone
    ) -> None:
        before = weights_of(backbone)
        places = {
            name: parameter.data_ptr() for name, parameter in backbone.model.named_parameters()
        }

        with pruned(backbone, by(backbone)), pruned(backbone, by(backbone, "random")):
            pass
        with pytest.raises(RuntimeError, match="inside"), pruned(backbone, by(backbone)):
            raise RuntimeError("inside")

        assert same_bits(weights_of(backbone), before)
        assert places == {
            name: parameter.data_ptr() for name, parameter in backbone.model.named_parameters()
        }

    def test_an_error_on_the_way_in_leaves_nothing_behind(
        self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, subnetwork, kept = weights_of(backbone), by(backbone), SubNetwork.kept

        def fail(own: SubNetwork, matrix: Matrix, device: torch.device | str = "cpu") -> Tensor:
            if matrix.layer == 1:
                raise RuntimeError("out of memory")
            return kept(own, matrix, device)

        monkeypatch.setattr(SubNetwork, "kept", fail)
        with pytest.raises(RuntimeError, match="out of memory"), pruned(backbone, subnetwork):
            pass

        assert same_bits(weights_of(backbone), before)

    def test_nested_blocks_keep_what_both_keep(self, backbone: Backbone) -> None:
        one, two = by(backbone), by(backbone, "random")

        with pruned(backbone, one), pruned(backbone, two):
            nested = weights_of(backbone)
        with pruned(backbone, one & two):
            assert same_bits(nested, weights_of(backbone))

    def test_a_shared_matrix_keeps_what_all_its_masks_keep_and_comes_back(
        self, backbone: Backbone
    ) -> None:
        linear = matrices(backbone)
        first, second = Matrix(0, "mlp.up_proj"), Matrix(1, "mlp.up_proj")
        linear[second].weight = linear[first].weight
        before = weights_of(backbone)
        subnetwork = by(backbone, "random")

        with pruned(backbone, subnetwork):
            kept = subnetwork.kept(first) & subnetwork.kept(second)
            assert torch.equal(linear[first].weight != 0, kept)
            assert linear[first].weight is linear[second].weight

        assert same_bits(weights_of(backbone), before)

    def test_it_works_where_no_gradients_can_be(self, backbone: Backbone) -> None:
        with torch.inference_mode(), pruned(backbone, by(backbone)):
            assert not any(module.weight.is_inference() for module in matrices(backbone).values())

    def test_under_autocast_it_is_the_same_whether_weights_are_trained_or_not(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        subnetwork, batch = by(backbone, "random"), batches(tiny_llava)[0]

        def logits(trained: bool) -> list[Tensor]:
            backbone.model.requires_grad_(trained)
            with torch.autocast("cpu", torch.bfloat16):
                before = last_logits(backbone, batch)
                with pruned(backbone, subnetwork):
                    inside = last_logits(backbone, batch)
                return [before, inside, last_logits(backbone, batch)]

        before, inside, after = logits(trained=True)

        assert torch.equal(before, after)
        assert not torch.equal(before, inside)
        assert torch.equal(inside, logits(trained=False)[1])

    def test_generation_runs_on_the_sub_network(self, backbone: Backbone, tiny_llava: str) -> None:
        prompts = batches(tiny_llava)[0].prompts()
        options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}

        with pruned(backbone, by(backbone, "random")):
            expected = last_logits(backbone, batches(tiny_llava)[0])
            found = generate(backbone, prompts, **options)

        torch.testing.assert_close(found.logits[0], expected)

    def test_gradients_reach_what_is_trained_beside_it(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        batch = batches(tiny_llava)[0]

        with pruned(backbone, by(backbone)):
            backbone.model(**batch.model_inputs(), labels=batch.labels).loss.backward()

        assert all(parameter.grad is not None for parameter in backbone.projector.parameters())

    def test_one_of_a_model_of_another_size_is_refused(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        deeper = by(make_backbone(tiny_llava))

        with (
            pytest.raises(ConfigError, match=r"'magnitude' does not fit the model: .* has shape"),
            pruned(backbone, deeper),
        ):
            pass
        with pytest.raises(ConfigError, match="of different sizes"):
            deeper & by(backbone)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_an_export_inside_the_block_is_a_pruned_checkpoint(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        subnetwork, before = by(backbone), last_logits(backbone, batches(tiny_llava)[0])

        with pruned(backbone, subnetwork):
            inside = last_logits(backbone, batches(tiny_llava)[0])
            processor = portable_processor(tiny_llava)
            export(
                backbone,
                tmp_path / "out",
                source=Source(tiny_llava),
                processor=processor,
                dtype=dtype,
            )

        opened = Backbone(
            AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=dtype)
        )
        for matrix, module in matrices(opened).items():
            assert torch.equal(module.weight != 0, subnetwork.kept(matrix))
        assert {parameter.dtype for parameter in backbone.model.parameters()} == {dtype}
        if dtype == torch.float32:
            assert torch.equal(last_logits(opened, batches(tiny_llava)[0]), inside)
            assert torch.equal(last_logits(backbone, batches(tiny_llava)[0]), before)


def test_scores_of_activations_need_a_calibration(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"'wanda' needs activations: use calibrate"):
        by(backbone, "wanda")
