from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from lightning_mllm.testbed.training import checkpoints
from lightning_mllm.testbed.training.checkpoints import (
    STAGES,
    Stage,
    checkpoint,
    graft_checkpoint,
    pack_checkpoints,
    part_of_checkpoint,
    read_checkpoint_weights,
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: build_tiny_checkpoint(folder / name, seed=seed)
        for seed, name in enumerate(("llm", "vision", "projector"))
    }


def test_a_graft_has_each_part_of_its_own_source(sources: dict[str, Path], tmp_path: Path) -> None:
    graft_checkpoint(tmp_path / "grafted", **sources)

    grafted = read_checkpoint_weights(tmp_path / "grafted")
    assert {part_of_checkpoint(name) for name in grafted} == set(sources)
    for name, tensor in grafted.items():
        assert torch.equal(tensor, read_checkpoint_weights(sources[part_of_checkpoint(name)])[name])


def test_checkpoints_of_another_shape_can_not_be_grafted(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    wide = build_tiny_checkpoint(tmp_path / "wide", size=TinySize(text_width=32))

    with pytest.raises(CheckpointError, match="not checkpoints of one shape"):
        graft_checkpoint(
            tmp_path / "grafted", llm=wide, vision=sources["vision"], projector=sources["projector"]
        )
    assert not (tmp_path / "grafted").exists()


def test_packed_checkpoints_share_what_is_equal_and_open_as_they_were(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    graft_checkpoint(
        tmp_path / "other",
        llm=sources["llm"],
        vision=sources["llm"],
        projector=sources["projector"],
    )
    stages = {"first": sources["llm"], "second": tmp_path / "other"}

    pack_checkpoints(tmp_path / "packed", stages, dtype=torch.float32)

    files = sorted(path.name for path in (tmp_path / "packed/parts").iterdir())
    assert files == [
        f"{name}.safetensors"
        for name in ("llm-first", "projector-first", "projector-second", "vision-first")
    ]
    for stage, folder in stages.items():
        opened = AutoModelForImageTextToText.from_pretrained(tmp_path / "packed" / stage)
        expected = AutoModelForImageTextToText.from_pretrained(folder)
        for name, tensor in expected.state_dict().items():
            assert torch.equal(opened.state_dict()[name], tensor), name
        AutoProcessor.from_pretrained(tmp_path / "packed" / stage)


def test_packed_checkpoints_are_small_files_that_open_as_float32(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    half = AutoModelForImageTextToText.from_pretrained(sources["llm"], dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")

    pack_checkpoints(tmp_path / "packed", {"first": tmp_path / "half"})

    opened = AutoModelForImageTextToText.from_pretrained(tmp_path / "packed/first")
    configs = (opened.config, opened.config.text_config, opened.config.vision_config)
    assert {config.dtype for config in configs} == {
        parameter.dtype for parameter in opened.parameters()
    }
    assert opened.dtype == torch.float32
    with safe_open(tmp_path / "packed/parts/llm-first.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_an_interrupted_graft_leaves_nothing(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graft_checkpoint(tmp_path / "grafted", **sources)
    with pytest.raises(KeyboardInterrupt):
        pack_checkpoints(tmp_path / "packed", {"first": sources["llm"]})

    assert not list(tmp_path.iterdir())


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lightning export"):
        read_checkpoint_weights(tmp_path)


def test_an_unknown_stage_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no stage 'final'.*before, aligned, instructed"):
        checkpoint("final")


def test_the_shipped_stages_differ_only_in_what_their_training_trained() -> None:
    weights = {
        stage: AutoModelForImageTextToText.from_pretrained(checkpoint(stage)).state_dict()
        for stage in STAGES
    }

    def changed(one: Stage, other: Stage) -> set[str]:
        pairs = weights[one], weights[other]
        return {
            part_of_checkpoint(name)
            for name in pairs[0]
            if not torch.equal(pairs[0][name], pairs[1][name])
        }

    assert changed("before", "aligned") == {"projector"}
    assert changed("aligned", "instructed") == {"projector", "llm"}


def test_the_shipped_weights_are_of_the_promised_size() -> None:
    files = [path for path in Path(checkpoint("before")).parent.rglob("*") if path.is_file()]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("instructed"))

    assert sum(path.stat().st_size for path in files) < 20e6
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 6e6
