"""A damaged checkpoint is refused in one sentence, whichever library would raise first."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer

from lightning_mllm import checkpoint_files
from lightning_mllm.data import load_processor
from lightning_mllm.errors import CheckpointError, UserError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.loading import load_config
from tests.support.servers import serving

LONGEST = 700  # characters of a sentence
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "image_size": 28,
    "patch_size": 7,
}


@pytest.fixture
def checkpoint(tiny_llava: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llava, tmp_path / "checkpoint"))


def open_it(checkpoint: Path) -> None:
    """Open what data and model open, as `setup` does."""
    load_processor(str(checkpoint))
    Backbone.from_pretrained(str(checkpoint))


def edit(checkpoint: Path, file: str, **changes: Any) -> None:
    """Set keys of a JSON file, `a__b` of the object under a."""
    path = checkpoint / file
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(content))


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda checkpoint: edit(checkpoint, "config.json", **changes)


def generation(**changes: Any) -> Callable[[Path], None]:
    return lambda checkpoint: edit(checkpoint, "generation_config.json", **changes)


def more_tokens(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<a new one>"])
    tokenizer.save_pretrained(checkpoint)


def without_a_shard(checkpoint: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="300KB")
    (checkpoint / "model-00002-of-00004.safetensors").unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "quantised": (
        config(quantization_config={"quant_method": "awq"}),
        "is quantised .*'awq'.* only those that bitsandbytes wrote",
    ),
    "quantised LLM": (
        config(text_config__quantization_config={"quant_method": "gptq"}),
        "is quantised .*'gptq'",
    ),
    "Pixtral behind LLaVA's processor": (
        config(vision_config=PIXTRAL),
        "vision tower .* is a 'pixtral', which takes pictures of any size, but its LlavaProcessor",
    ),
    "SigLIP 2 behind LLaVA's processor": (
        config(vision_config={"model_type": "siglip2_vision_model"}),
        "is a 'siglip2_vision_model', which takes pictures of any size",
    ),
    "a larger tower": (config(vision_config={"model_type": "dinov2"}), "takes 224 x 224 pixels"),
    "a tower without patches": (
        config(vision_config={"model_type": "swin", "image_size": 28, "patch_size": 7}),
        "vision tower \\('swin'\\) can't be tried",
    ),
    "a tower of their own": (config(vision_config={"model_type": "my_tower"}), "my_tower"),
    "a layer beyond the tower": (
        config(vision_feature_layer=4),
        "vision_feature_layer is 4.* has 3 layers.* -4 to 3",
    ),
    "one of several layers": (
        config(vision_feature_layer=[-2, -5]),
        r"vision_feature_layer is \[-2, -5\]",
    ),
    "no layer": (config(vision_feature_layer=[]), r"vision_feature_layer is \[\]"),
    "a word for a layer": (
        config(vision_feature_layer="last"),
        "'vision_feature_layer' with value 'last'",
    ),
    "a strategy that is none": (
        config(vision_feature_select_strategy="cls"),
        "vision_feature_select_strategy.*cls",
    ),
    "no patch": (config(vision_config__patch_size=0), "patch_size 0; .* at least one patch"),
    "image token beyond": (
        config(image_token_index=512),
        "image_token_index is 512 .* from 0 to 511",
    ),
    "image token of another": (
        config(image_token_index=5),
        "'<image>' .* id 3, but its model expects the id 5",
    ),
    "image token that is a word": (
        config(image_token_index="<image>"),
        "'image_token_index' expected int, got str",
    ),
    "small vocabulary": (
        config(text_config__vocab_size=400),
        "token .* with id 511, but the model embeds only 400",
    ),
    "large vocabulary": (
        config(text_config__vocab_size=600),
        r"another shape; the first is .*\[512, 64\].*\[600, 64\]",
    ),
    "more tokens than vectors": (
        more_tokens,
        "token '<a new one>' with id 512, but the model embeds only 512",
    ),
    "fewer layers": (
        config(text_config__num_hidden_layers=1),
        "9 weights of layers that its config.json does not",
    ),
    "fewer layers of the tower": (
        config(vision_config__num_hidden_layers=2),
        "16 weights of layers",
    ),
    "heads that don't divide": (
        config(text_config__num_attention_heads=3),
        "validate_architecture",
    ),
    "a missing shard": (without_a_shard, r"can't be loaded: .*model-00002-of-00004\.safetensors"),
    "end that is a word": (
        generation(eos_token_id="</s>"),
        "eos_token_id '</s>', but '</s>' is not an id of .* 512 tokens",
    ),
    "end beyond the vocabulary": (
        generation(eos_token_id=[2, 512]),
        r"eos_token_id \[2, 512\], but 512 is not an id",
    ),
    "generation that is none": (
        generation(cache_implementation="x"),
        r"generation_config\.json is refused .*\(x\)",
    ),
    "no mean": (
        lambda path: edit(path, "processor_config.json", image_processor__image_mean=[0.5]),
        "mean must have 3",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_by_name(checkpoint: Path, case: str) -> None:
    change, message = BROKEN[case]
    change(checkpoint)

    with pytest.raises(UserError, match=message) as caught:
        open_it(checkpoint)

    assert len(str(caught.value)) < LONGEST
    assert "attention=" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_each_json_file_that_is_damaged_is_named(checkpoint: Path, text: str) -> None:
    files = [path for path in checkpoint.iterdir() if path.suffix == ".json"]
    assert len(files) >= 5

    for file in files:
        sound = file.read_text()
        file.write_text(text)

        with pytest.raises(
            CheckpointError, match=f"its {file.name} (is not valid JSON|holds a list)"
        ):
            open_it(checkpoint)

        file.write_text(sound)


def test_what_a_forward_returns_is_not_for_the_checkpoint_to_say(
    checkpoint: Path, tiny_llava: str
) -> None:
    for part in ("", "text_config__", "vision_config__"):
        options: dict[str, Any] = {f"{part}return_dict": False, f"{part}output_attentions": True}
        edit(checkpoint, "config.json", **options)

    changed, untouched = (
        Backbone.from_pretrained(path).model.config.to_dict()
        for path in (str(checkpoint), tiny_llava)
    )

    assert {**changed, "_name_or_path": tiny_llava} == untouched


# ---- the hub -------------------------------------------------------------------------------------


def test_a_hub_that_is_not_there_is_said_in_seconds_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # nobody listens there

    for open_one in (load_processor, Backbone.from_pretrained):
        with pytest.raises(
            CheckpointError,
            match=r"'llava-hf/none' is not a folder .* and http://127\.0\.0\.1:9 can't be",
        ):
            open_one("llava-hf/none")


def test_a_folder_that_is_not_there_is_said_without_a_word_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be opened: there is no such folder"):
        load_config(str(tmp_path / "misspelt"), revision=None, trust_remote_code=False)


def test_a_folder_needs_no_hub(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        checkpoint_files, "is_reachable", lambda url: pytest.fail("The hub was asked.")
    )

    checkpoint_files.check_checkpoint_available(str(checkpoint), None)


def test_without_a_hub_what_is_in_the_cache_is_read_and_the_hub_asked_once_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llava: str
) -> None:
    cache = tmp_path / "models--acme--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_llava, cache / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    began = time.monotonic()

    processor = load_processor("acme/tiny")

    assert processor.tokenizer.is_fast
    assert time.monotonic() - began < 8  # the library's first second try comes after as long
    assert huggingface_hub.constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


def test_what_is_not_in_the_cache_is_refused_where_the_hub_must_not_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(CheckpointError, match=r"not in the cache .* unset HF_HUB_OFFLINE"):
        load_processor("llava-hf/none")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            401,
            "RepoNotFound",
            "'some/model': some/model is not .* a valid model identifier.* right spelling",
        ),
        (403, "GatedRepo", "gated repo.* accept its licence and set HF_TOKEN"),
        (404, "RevisionNotFound", "v9 is not a valid git identifier.* revision"),
    ],
    ids=["unknown", "gated", "revision"],
)
def test_what_the_hub_refuses_is_said_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(status, {"X-Error-Code": code}) as url:
        for name, value in (
            ("HF_HUB_OFFLINE", False),
            ("ENDPOINT", url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)

        with pytest.raises(CheckpointError, match=message):
            load_processor("some/model", revision="v9")
