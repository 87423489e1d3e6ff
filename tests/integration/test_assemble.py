"""A model of two parts is a checkpoint like any other: made and trained from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_mllm.cli.main import main
from tests.support.command_line import (
    CONFIGS,
    conversation,
    isolate,
    refusal,
    write_llava_json,
)
from tests.support.parts_apart import build_language_model, build_vision_tower


def test_what_can_not_be_assembled_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(monkeypatch, tmp_path)
    arguments = ["assemble", "--vision", "no/where", "--llm", "no/where", "--output", "both"]
    assert "no/where" in refusal(capsys, arguments)
    assert "output" in refusal(capsys, arguments[:-2])
    assert not Path("both").exists()


@pytest.mark.slow
def test_it_is_assembled_trained_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(monkeypatch, tmp_path)
    vision = build_vision_tower(tmp_path / "vision", "siglip", torch.float32)
    llm = build_language_model(tmp_path / "llm", "llama", torch.float32)
    rows = write_llava_json(tmp_path / "data", [conversation(f"thing-{k}") for k in range(8)])

    main(["assemble", "--vision", vision, "--llm", llm, "--output", "both"])

    assert "untrained projection" in capsys.readouterr().out
    data = ["--data", "LlavaJson", "--data.init_args.train", str(rows)]
    data += ["--data.init_args.batch_size", "4", "--data.init_args.val_fraction", "0.25"]
    policy = ["--config", str(CONFIGS / "policy" / "ft_proj.yaml")]
    fit = ["fit", "--model.checkpoint", "both", *policy, *data, "--trainer.max_steps", "2"]
    main([*fit, "--trainer.run.name", "run", "--test_before", "false", "--test_after", "false"])
    main(
        ["export", "--config", "runs/run/config.yaml", "--ckpt_path", "runs/run", "--output", "out"]
    )
    before, after = (load_file(Path(each) / "model.safetensors") for each in ("both", "out"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
