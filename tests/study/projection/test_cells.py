from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.study import ProjectionStudyRates
from lightning_mllm.study.engine.plan import planned_cells_of_machine
from lightning_mllm.study.projection.cells import projection_cells
from tests.study.conftest import Change, option


def test_the_grid_is_the_product_with_one_zero_shot_per_checkpoint_domain_and_seed(
    study: Change,
) -> None:
    cells = projection_cells(study(checkpoints={"a": "x", "b": "y"}))

    assert len({cell.id for cell in cells}) == len(cells) == 2 * 2 * 2 * (1 + 2)
    assert sum(not cell.trains for cell in cells) == 2 * 2 * 2


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 30])
def test_the_shares_of_all_machines_are_the_grid(study: Change, parts: int) -> None:
    cells = projection_cells(study())

    shares = [planned_cells_of_machine(cells, f"{k}/{parts}") for k in range(1, parts + 1)]

    assert sorted(cell.id for share in shares for cell in share) == sorted(
        cell.id for cell in cells
    )
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_share_has_its_part_of_every_policy(study: Change) -> None:
    cells = projection_cells(study(seeds=[0, 1, 2]))  # 3 kinds of cells: every third is of one

    for k in (1, 2, 3):
        assert Counter(
            cell.policy for cell in planned_cells_of_machine(cells, f"{k}/3")
        ) == dict.fromkeys(("zero_shot", "ft_proj", "ft_e2e"), 2)


def test_a_fit_and_a_zero_shot_are_commands_of_our_own_line(study: Change) -> None:
    zero_shot, projector, _ = projection_cells(study())[:3]

    assert zero_shot.id == "tiny.leaves.zero_shot.seed0"
    assert zero_shot.arguments()[0] == "test"
    arguments = projector.arguments()
    assert projector.id == "tiny.leaves.paper.ft_proj.seed0"
    assert arguments[:7] == [
        "fit",
        "--config",
        "common.yaml",
        "--config",
        "leaves.yaml",
        "--config",
        "proj.yaml",
    ]
    assert option(arguments, "--model.checkpoint") == "checkpoints/tiny"
    assert option(arguments, "--test_after") == "true"


def test_a_seed_is_that_of_training_data_order_and_class_lists(study: Change) -> None:
    arguments = projection_cells(study(seeds=[7]))[1].arguments()

    assert {
        argument: arguments[k + 1] for k, argument in enumerate(arguments) if "seed" in argument
    } == {
        "--seed_everything": "7",
        "--data.init_args.seed": "7",
        "--data.init_args.prompt.init_args.seed": "7",
    }


def test_the_sweep_adds_only_the_rates_that_the_preset_does_not_have(study: Change) -> None:
    swept = study(sweep=ProjectionStudyRates(preset="paper", rates=[1e-4, 1e-3, 3e-3]))

    assert swept.rates_of_sweep() == {"paper": 1e-3, "paper-0.0001": 1e-4, "paper-0.003": 3e-3}
    added = {cell.id: cell for cell in projection_cells(swept)}.keys() - {
        cell.id for cell in projection_cells(study())
    }
    assert added == {
        f"tiny.{domain}.paper-{rate}.ft_proj.seed{seed}"
        for domain in ("leaves", "plantdoc")
        for rate in ("0.0001", "0.003")
        for seed in (0, 1)
    }
    cell = next(cell for cell in projection_cells(swept) if cell.preset == "paper-0.003")
    assert option(cell.arguments(), "--model.learning_rates.projector") == "0.003"


def test_cells_that_are_made_in_the_same_way_are_one(study: Change) -> None:
    paper = study().presets["paper"]
    Path("slow.yaml").write_text("model:\n  learning_rates:\n    projector: 1.0e-4\n")
    matched = {"ft_proj": ["slow.yaml"], "ft_e2e": paper["ft_e2e"]}
    sweep = ProjectionStudyRates(preset="paper", rates=[1e-4, 1e-3], also=["matched"])
    made = study(presets={"paper": paper, "matched": matched}, sweep=sweep)

    cells = [cell for cell in projection_cells(made) if (cell.domain, cell.seed) == ("leaves", 0)]

    assert {(cell.policy, cell.preset): cell.also for cell in cells} == {
        ("zero_shot", ""): (),
        ("ft_proj", "paper"): (),
        ("ft_e2e", "paper"): ("matched",),
        ("ft_proj", "matched"): ("paper-0.0001",),
    }


def test_a_rate_that_is_no_number_is_named(study: Change) -> None:
    Path("proj.yaml").write_text("model: {learning_rates: {projector: fast}}")

    with pytest.raises(ConfigError, match="projector is 'fast' in a config file"):
        projection_cells(study(sweep=ProjectionStudyRates(preset="paper", rates=[1e-4, 1e-3])))
