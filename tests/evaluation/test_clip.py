from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, CLIPVisionModel

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.evaluation import ClipClassifier, clip
from tests.conftest import ClipBuilder
from tests.support.clip_checkpoints import CONTEXT, DualEncoder
from tests.support.command_line import picture

NAMES = ("ash", "red beech", "Cedar", "oak", "yew")
TEMPLATES = ("a {label}.", "the bark of {label}")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
PICTURES = [
    Image.blend(
        picture(seed, (24 + 3 * seed, 40)),
        Image.new("RGB", (24 + 3 * seed, 40), COLOURS[seed % 6]),
        0.8,
    )
    for seed in range(12)
]


def logits(checkpoint: str, template: str, padding: str | bool) -> Tensor:
    """Return `logits_per_image` of the model itself, (pictures, classes)."""
    model: Any = AutoModel.from_pretrained(checkpoint)
    texts = [template.format(label=name) for name in NAMES]
    tokens = AutoTokenizer.from_pretrained(checkpoint)(
        texts,
        padding=padding,
        max_length=CONTEXT if padding == "max_length" else None,
        return_tensors="pt",
    )
    pixels = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")(
        PICTURES, return_tensors="pt"
    )
    with torch.no_grad():
        found: Tensor = model(**tokens, **pixels).logits_per_image
    return found


def similarities(checkpoint: str, *templates: str) -> Tensor:
    classifier = ClipClassifier.from_pretrained(checkpoint, NAMES, templates)
    return classifier.similarities(classifier.prepare(PICTURES))


@pytest.mark.parametrize(("family", "padding"), [("clip", True), ("siglip", "max_length")])
def test_predictions_are_those_of_the_models_own_logits(
    tiny_clip: ClipBuilder, family: DualEncoder, padding: str | bool
) -> None:
    expected = logits(tiny_clip(family), TEMPLATES[0], padding)

    found = similarities(tiny_clip(family), TEMPLATES[0])

    assert len(expected.argmax(dim=1).unique()) > 1
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
    model: Any = AutoModel.from_pretrained(tiny_clip(family))
    bias = getattr(model, "logit_bias", torch.zeros(1))
    torch.testing.assert_close(
        found * model.logit_scale.exp() + bias, expected, atol=1e-4, rtol=1e-4
    )


def test_several_templates_are_the_mean_of_their_unit_embeddings(tiny_clip: ClipBuilder) -> None:
    checkpoint = tiny_clip("clip")
    one, other = (similarities(checkpoint, template) for template in TEMPLATES)
    classes = [
        ClipClassifier.from_pretrained(checkpoint, NAMES, [template])._classes
        for template in TEMPLATES
    ]
    length = torch.stack(classes).mean(dim=0).norm(dim=1)

    both = similarities(checkpoint, *TEMPLATES)

    torch.testing.assert_close(both, (one + other) / 2 / length)
    torch.testing.assert_close(similarities(checkpoint, TEMPLATES[0], TEMPLATES[0]), one)
    assert not torch.equal(both.argmax(dim=1), one.argmax(dim=1))


def test_texts_are_embedded_once_and_in_chunks_as_at_once(
    tiny_clip: ClipBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "_TEXTS_AT_ONCE", 4)
    classifier = ClipClassifier.from_pretrained(tiny_clip("clip"), NAMES, TEMPLATES)
    embed, calls = classifier._model.get_text_features, []

    def counted(**tokens: Tensor) -> Any:
        calls.append(len(tokens["input_ids"]))
        return embed(**tokens)

    monkeypatch.setattr(classifier._model, "get_text_features", counted)
    one_by_one = torch.cat(
        [classifier.similarities(classifier.prepare([each])) for each in PICTURES]
    )

    assert calls == [4, 4, 2]
    monkeypatch.undo()
    torch.testing.assert_close(one_by_one, similarities(tiny_clip("clip"), *TEMPLATES))


def test_it_is_frozen_and_draws_nothing(tiny_clip: ClipBuilder) -> None:
    before = torch.get_rng_state()

    classifier = ClipClassifier.from_pretrained(tiny_clip("clip"), NAMES)

    assert not classifier.similarities(classifier.prepare(PICTURES)).requires_grad
    assert not classifier._model.training
    assert not [
        name for name, weights in classifier._model.named_parameters() if weights.requires_grad
    ]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "templates",
    [
        [],
        "{label}",
        ["a photo"],
        ["a {label} of {place}"],
        ["a {}"],
        ["a {label"],
        ["{label.real}"],
    ],
)
def test_what_is_no_template_is_refused_before_anything_is_loaded(templates: Any) -> None:
    with pytest.raises(ConfigError, match=r"must (be a list|have)"):
        ClipClassifier.from_pretrained("nowhere", NAMES, templates)


def test_a_text_that_would_be_cut_off_is_refused(tiny_clip: ClipBuilder) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'This is a photo of (maple )+maple\.' has \d+ tokens, .* reads 48 at most",
    ):
        ClipClassifier.from_pretrained(tiny_clip("clip"), [*NAMES, "maple " * 9 + "maple"])


def test_a_checkpoint_that_is_not_there_is_refused() -> None:
    with pytest.raises(CheckpointError, match="No CLIP can be read from 'no/where/at/all'"):
        ClipClassifier.from_pretrained("no/where/at/all", NAMES)


def test_a_model_without_a_text_tower_is_refused(
    tiny_clip: ClipBuilder, tiny_llava: str, tmp_path: Path
) -> None:
    vision = AutoConfig.from_pretrained(tiny_clip("clip")).vision_config
    CLIPVisionModel(vision).save_pretrained(tmp_path)

    for folder, model_type in ((str(tmp_path), "clip_vision_model"), (tiny_llava, "llava")):
        with pytest.raises(
            CheckpointError, match=f"model type '{model_type}'.*without a text tower"
        ):
            ClipClassifier.from_pretrained(folder, NAMES)


def test_weights_or_a_tokenizer_that_are_missing_are_refused(
    tiny_clip: ClipBuilder, tmp_path: Path
) -> None:
    shutil.copytree(tiny_clip("clip"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "text" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks \d+ weights of a clip model; the first is text_model\."
    ):
        ClipClassifier.from_pretrained(str(tmp_path), NAMES)

    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        CheckpointError, match=r"knows \d tokens, its text tower 514\. Put its tokenizer\.json"
    ):
        ClipClassifier.from_pretrained(str(tmp_path), NAMES)


def test_names_that_are_the_same_to_its_tokenizer_are_refused(tiny_clip: ClipBuilder) -> None:
    with pytest.raises(ConfigError, match=r"'ash' and 'ASH' are the same tokens"):
        ClipClassifier.from_pretrained(tiny_clip("clip"), ["ash", "ASH"], ["{label}"])


def test_embeddings_that_are_not_finite_are_refused(tiny_clip: ClipBuilder) -> None:
    classifier = ClipClassifier.from_pretrained(tiny_clip("clip"), NAMES)
    next(classifier._model.parameters()).data.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        classifier.similarities({"pixel_values": torch.full((1, 3, 28, 28), torch.nan)})
