"""The recipe of the model of real parts: what it does in which order, and its random control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_mllm.cli.main import main
from lightning_mllm.real import recipe as real
from lightning_mllm.real.random_llm import make_random_llm
from lightning_mllm.real.recipe import FOLDER, RealRecipe
from tests.support.command_line import CONFIGS, isolate
from tests.support.parts_apart import build_language_model, build_vision_tower


def test_a_random_llm_has_the_shape_and_the_words_of_the_other_and_none_of_its_weights(
    tmp_path: Path,
) -> None:
    llm = build_language_model(tmp_path / "llm", "llama", torch.bfloat16)
    state = torch.random.get_rng_state()

    made = [make_random_llm(llm, tmp_path / str(k), seed) for k, seed in enumerate((0, 0, 1))]

    assert torch.equal(torch.random.get_rng_state(), state)
    known, first, again, other = (
        AutoModelForCausalLM.from_pretrained(each, dtype="auto").state_dict()
        for each in (Path(llm), *made)
    )
    for name, weight in known.items():
        assert (first[name].shape, first[name].dtype) == (weight.shape, weight.dtype)
        assert torch.equal(first[name], again[name])
        if weight.ndim > 1:
            assert not torch.equal(first[name], weight)
            assert not torch.equal(first[name], other[name])
    ours, theirs = (AutoTokenizer.from_pretrained(each) for each in (made[0], llm))
    assert ours("a red ball").input_ids == theirs("a red ball").input_ids
    assert ours.chat_template == theirs.chat_template


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using:UserWarning")  # of Lightning's
def test_the_recipe_trains_and_examines_all_and_then_has_nothing_to_do(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(real, "_SHAPE", ())
    monkeypatch.setattr(real, "_SEEDS", (1,))
    monkeypatch.setattr(real, "_STEPS", (2,))
    monkeypatch.setattr(real, "_LATER_STEPS", ())
    calls: list[str] = []

    def lightning(arguments: Any) -> None:
        calls.append(arguments[0])
        main(list(arguments))

    recipe = RealRecipe(
        FOLDER,
        _make_small_configs(tmp_path / "configs"),
        parts=parts,
        vision=build_vision_tower(tmp_path / "vision", "dinov2", torch.float32),
        llm=build_language_model(tmp_path / "llm", "llama", torch.float32),
        lightning=lightning,
    )

    recipe.run()

    assert calls.count("fit") == calls.count("export") == 4
    assert calls.count("assemble") == 3
    for name in ("grounding-captions", "alignment-captions_seed1_step2", "flow-questions"):
        (folder,) = (FOLDER / "runs" / name / "analysis").iterdir()
        assert [*folder.glob("*/summary.csv")]
    (folder,) = (FOLDER / "runs/described-captions_blind/evaluation").iterdir()
    assert (folder / "cider.json").is_file()
    assert (folder / "chair.json").is_file()
    done = len(calls)
    recipe.run()
    assert len(calls) == done


def _make_small_configs(folder: Path) -> Path:
    """The shipped configs with a few steps, for a model that gives no right answer."""
    folder.mkdir()
    for path in (CONFIGS / "real").glob("*.yaml"):
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        content["data"]["init_args"]["eval_batch_size"] = 4
        for callback in content["trainer"].get("callbacks", []):
            callback["init_args"]["max_new_tokens"] = 4
        if "max_steps" in content["trainer"]:
            content["trainer"] |= {"max_steps": 2, "val_check_interval": 1}
            content["data"]["init_args"]["batch_size"] = 4
        if "checkpointing" in content:
            content["checkpointing"]["every_n_train_steps"] = 2
        analyses = content.get("analysis", [])
        for each in analyses if isinstance(analyses, list) else [analyses]:
            if each["class_path"] in ("InformationFlow", "AnswerLens"):
                each.setdefault("init_args", {})["correct_only"] = False
            if each["class_path"] == "InformationFlow":
                each["init_args"]["windows"] = {"width": 1}
        (folder / path.name).write_text(yaml.safe_dump(content))
    return folder
