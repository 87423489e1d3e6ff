"""A bank holds the states of its words, and finds the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_mllm.analysis import Bank, BankOptions, build_bank
from lightning_mllm.analysis.lens.bank import bank as bank_module
from lightning_mllm.analysis.lens.bank import building
from lightning_mllm.analysis.lens.bank.contexts import draw_bank_contexts
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.layers import decoder_layers
from tests.support.questions import load, tokenizer

TEXTS = tuple(f"the {colour} {shape} is here" for colour in ("red", "blue") for shape in "abcd")


@pytest.fixture(scope="module")
def backbone(tiny_llava: str) -> Backbone:
    return load(tiny_llava)


@pytest.fixture(scope="module")
def bank(backbone: Backbone, tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    output = tmp_path_factory.mktemp("banks") / "bank"
    build_bank(backbone, tokenizer(tiny_llava), TEXTS, output)
    return Bank(output)


def stored(bank: Bank) -> dict[int, Tensor]:
    """Return the states of each layer, by searching for none but the own."""
    from safetensors.torch import load_file

    return {
        layer: load_file(bank.folder / f"layer-{layer}.safetensors")["states"]
        for layer in bank.layers
    }


@torch.no_grad()
def test_each_state_is_that_of_its_text_alone(
    backbone: Backbone, bank: Bank, tiny_llava: str
) -> None:
    states, model = stored(bank), backbone.model
    options: dict[str, Any] = {"per_token": 20, "seed": 0, "max_length": 128}
    contexts = draw_bank_contexts(TEXTS, tokenizer(tiny_llava), **options)
    depth = len(decoder_layers(backbone))
    assert len(contexts) == len(bank) and bank.layers == tuple(range(depth + 1))
    for place in (0, len(contexts) // 2, len(contexts) - 1):
        context = contexts[place]
        ids = tokenizer(tiny_llava)(TEXTS[context.text], return_tensors="pt")
        hidden = model(**ids, output_hidden_states=True).hidden_states
        for layer in bank.layers:
            own = states[layer][place].float()
            if layer == depth:  # which the model norms
                own = normalize(backbone.final_norm(own), dim=-1)
            expected = normalize(hidden[layer][0, context.position].float(), dim=-1)
            torch.testing.assert_close(own, expected, atol=1e-3, rtol=0)


def test_a_state_of_the_bank_is_nearest_to_itself_whatever_its_length(bank: Bank) -> None:
    for layer, own in stored(bank).items():
        nearest = bank.search(3.5 * own.float(), 1)
        torch.testing.assert_close(nearest.cosines, torch.ones(len(bank), 1), atol=1e-3, rtol=0)
        found = [bank.words[place] for place in nearest.indices[:, 0].tolist()]
        assert layer == 0 or found == bank.words
        assert layer == 0 or set(nearest.layers.flatten().tolist()) == {layer}


def test_pieces_find_what_the_whole_finds(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = torch.randn(9, bank.making["width"], generator=torch.Generator().manual_seed(0))
    every = torch.cat([own.float() for own in stored(bank).values()])
    by_hand = (normalize(asked, dim=-1) @ every.T).topk(4).values
    for piece in (None, 1, 7, 1000):
        found = bank.search(asked, 4, piece)
        torch.testing.assert_close(found.cosines, by_hand, atol=1e-6, rtol=0)
        assert torch.equal(found.indices, bank.search(asked, 4).indices)
        assert torch.equal(found.layers, bank.search(asked, 4).layers)
    monkeypatch.setattr(bank_module, "_PIECE", 20)  # two states asked for, ten of the bank
    found = bank.search(asked, 4, 10)
    torch.testing.assert_close(found.cosines, by_hand, atol=1e-6, rtol=0)
    states = every[found.layers * len(bank) + found.indices]  # (asked, top, width)
    its = (states @ normalize(asked, dim=-1)[..., None])[..., 0]
    torch.testing.assert_close(its, by_hand, atol=1e-6, rtol=0)


def test_banks_of_other_texts_are_told_apart(
    backbone: Backbone, bank: Bank, tiny_llava: str, tmp_path: Path
) -> None:
    for name, texts in (("same", TEXTS), ("other", [text.replace("red", "big") for text in TEXTS])):
        build_bank(backbone, tokenizer(tiny_llava), texts, tmp_path / name)
        assert (Bank(tmp_path / name).making == bank.making) == (name == "same")


def test_another_projection_is_accepted_and_another_llm_refused(
    bank: Bank, tiny_llava: str
) -> None:
    other = load(tiny_llava)
    with torch.no_grad():
        next(iter(other.parameters(Part.PROJECTOR)))[1].add_(1)
    bank.check_model(other)
    with torch.no_grad():
        next(decoder_layers(other)[0].parameters()).add_(1)
    with pytest.raises(ConfigError, match="of an LLM with other weights"):
        bank.check_model(other)


def test_what_is_no_bank_or_damaged_is_refused(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no bank of text states .* lightning bank"):
        Bank(tmp_path)
    for path in bank.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "layer-1.safetensors").write_bytes(b"half a fi")
    with pytest.raises(DataError, match=r"layer-1.safetensors can't be read .* Build the bank"):
        Bank(tmp_path)


def test_a_bank_is_written_whole_or_not_at_all(
    backbone: Backbone, tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    output = tmp_path / "bank"
    with monkeypatch.context() as patch:
        patch.setattr(building, "write_csv_file", fail)
        with pytest.raises(OSError, match="disk full"):
            build_bank(backbone, tokenizer(tiny_llava), TEXTS, output)
    assert not [*tmp_path.iterdir()]
    build_bank(backbone, tokenizer(tiny_llava), TEXTS, output, options=BankOptions(layers=(2,)))
    assert Bank(output).layers == (2,)
    with pytest.raises(ConfigError, match="has something in it"):
        build_bank(backbone, tokenizer(tiny_llava), TEXTS, output)


def test_a_deep_llm_has_the_published_layers(backbone: Backbone) -> None:
    class Deep:
        decoder = type("Decoder", (), {"layers": [None] * 32})

    assert BankOptions().choose_layers(Deep()) == (1, 2, 4, 8, 16, 24, 30, 31)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the model has states 0 to 32"):
        BankOptions(layers=(33,)).choose_layers(Deep())  # type: ignore[arg-type]
