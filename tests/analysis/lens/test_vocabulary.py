"""Words, entropies and divergences against whole tokens x vocabulary tables by hand, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward import float32_head
from lightning_mllm.analysis.lens.vocabulary import Vocabulary
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.jackknife import jackknife_of_means
from tests.support.alignment_by_hand import places, residuals
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches, tokenizer
from tests.support.streamed_contract import StreamedContract

SETS = ("perceptual", "textual")


class TestVocabulary(StreamedContract):
    def make(self, **options: Any) -> Vocabulary:
        return Vocabulary(**{"gaps": (1, 3), "groups": 4, **options})


class TestVocabularyWithoutSinks(StreamedContract):
    def make(self, **options: Any) -> Vocabulary:
        sets = TokenSets(sink_ratio=1.2)
        return Vocabulary(
            **{"sets": sets, "without_sinks": True, "layers": (0, 2, 4), "gaps": (2,), **options}
        )


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@torch.no_grad()
def tables(backbone: Backbone, batch: MultimodalBatch) -> list[list[tuple[Tensor, Tensor]]]:
    """Sample, layer -> log-probabilities of perceptual and textual tokens, (tokens, vocabulary)."""
    norm: Any = backbone.decoder.norm
    states = [
        backbone.lm_head(norm(each)).double().log_softmax(-1) for each in residuals(backbone, batch)
    ]
    at = [places(batch, row) for row in range(len(batch))]
    return [[(each[row][p], each[row][t]) for each in states] for row, (p, t) in enumerate(at)]


def kl(one: Tensor, other: Tensor) -> float:
    return float((one.exp() * (one - other)).sum())


def read(backbone: Backbone, checkpoint: str, parts: list[MultimodalBatch], **options: Any) -> Any:
    analysis = Vocabulary(**{"gaps": (1, 3), **options})
    analysis.prepare(tokenizer(checkpoint))
    for batch in parts:
        analysis.update(backbone, batch)
    return analysis.compute()


def curve(result: Any, measure: str) -> Any:
    return result.at(tokens=result.coords["tokens"][0], measure=measure, statistic="value")


def test_divergences_are_of_a_sample_s_own_tokens(backbone: Backbone, tiny_llava: str) -> None:
    """Released code pairs tokens of several samples (bug A4), keeps the image at layer 0 (A1)."""
    (batch,) = batches(tiny_llava, 6)
    result, expected = read(backbone, tiny_llava, [batch]), tables(backbone, batch)

    for layer in range(LAYERS + 1):
        of_means, of_tokens = [], []
        for sample in expected:
            one, other = sample[layer]
            of_means.append(kl(one.exp().mean(0).log(), other.exp().mean(0).log()))
            of_tokens.append(np.mean([kl(a, b) for a in one for b in other]))
        assert curve(result, "kl of means")[layer] == pytest.approx(np.mean(of_means), rel=1e-9)
        assert curve(result, "kl of tokens")[layer] == pytest.approx(np.mean(of_tokens), rel=1e-9)


def test_entropy_is_of_each_layer_in_nats(backbone: Backbone, tiny_llava: str) -> None:
    """In the released code the image's stays that of layer 0 (bug A1)."""
    (batch,) = batches(tiny_llava, 6)
    result, expected = read(backbone, tiny_llava, [batch]), tables(backbone, batch)

    for k, name in enumerate(SETS):
        found = curve(result, f"entropy {name}")
        for layer in range(LAYERS + 1):
            own = [float(-(s[layer][k].exp() * s[layer][k]).sum(1).mean()) for s in expected]
            assert found[layer] == pytest.approx(np.mean(own), rel=1e-9)
        assert len(set(found.round(6))) == LAYERS + 1


def test_layers_are_compared_token_by_token(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    result, expected = read(backbone, tiny_llava, [batch]), tables(backbone, batch)

    for gap in (1, 3):
        for k, name in enumerate(SETS):
            found = curve(result, f"kl consecutive {gap} {name}")
            for layer in range(LAYERS + 1 - gap):
                own = [
                    np.mean([kl(a, b) for a, b in zip(s[layer][k], s[layer + gap][k], strict=True)])
                    for s in expected
                ]
                assert found[layer] == pytest.approx(np.mean(own), rel=1e-9)
            assert np.isnan(found[LAYERS + 1 - gap :]).all()


def test_without_sinks_only_the_others_are_read(backbone: Backbone, tiny_llava: str) -> None:
    """A token that is a sink at one of two layers is not compared between them."""
    (batch,) = batches(tiny_llava, 6)
    sets = TokenSets(sink_ratio=1.1)
    result = read(backbone, tiny_llava, [batch], gaps=(1,), sets=sets, without_sinks=True)
    expected, norms = (
        tables(backbone, batch),
        [states.norm(dim=-1) for states in residuals(backbone, batch)],
    )

    for k, name in enumerate(SETS):
        own = [[each[row][places(batch, row)[k]] for each in norms] for row in range(6)]
        kept = [
            [each <= 1.1 * np.median(each) for each in sample] for sample in own
        ]  # sample, layer -> tokens
        assert any(not torch.equal(sample[0], sample[1]) for sample in kept)
        for layer in range(LAYERS):
            entropies, divergences = [], []
            for sample, there in zip(expected, kept, strict=True):
                here, later = sample[layer][k], sample[layer + 1][k]
                entropies.append(float(-(here.exp() * here).sum(1)[there[layer]].mean()))
                both = there[layer] & there[layer + 1]
                divergences.append(float((here.exp() * (here - later)).sum(1)[both].mean()))
            assert curve(result, f"entropy {name}")[layer] == pytest.approx(
                np.mean(entropies), rel=1e-9
            )
            assert curve(result, f"kl consecutive 1 {name}")[layer] == pytest.approx(
                np.mean(divergences), rel=1e-9
            )
        words = (
            torch.cat([s[1][k][there[1]] for s, there in zip(expected, kept, strict=True)])
            .argmax(-1)
            .bincount()
        )
        found = result.settings["found"]["top_words"][name]["1"]
        assert found[0][1] == pytest.approx(float(100 * words.max() / words.sum()))


def test_words_are_the_tokens_likeliest_ones_with_the_model_s_own_norm_and_head(
    backbone: Backbone, tiny_llava: str
) -> None:
    """At the last layer they are what the model says; the released head is another (bug A11)."""
    (batch,) = batches(tiny_llava, 6)
    result = read(backbone, tiny_llava, [batch], top=3)
    with torch.no_grad():
        logits = backbone.model(**batch.model_inputs()).logits

    for k, name in enumerate(SETS):
        own = torch.cat([logits[row][places(batch, row)[k]] for row in range(6)])
        counts = own.argmax(-1).bincount()
        best = result.settings["found"]["top_words"][name][str(LAYERS)]
        assert [share for _, share in best] == pytest.approx(
            (100 * counts.topk(3).values / len(own)).tolist()
        )
        assert best[0][0] in {
            tokenizer(tiny_llava).decode([k]) for k in (counts == counts.max()).nonzero()[:, 0]
        }
        entropy = np.mean(
            [
                float(-(p.exp() * p).sum(1).mean())
                for p in (logits[row][places(batch, row)[k]].log_softmax(-1) for row in range(6))
            ]
        )
        assert curve(result, f"entropy {name}")[LAYERS] == pytest.approx(entropy, rel=1e-9)


def test_several_words_per_token_are_all_counted(backbone: Backbone, tiny_llava: str) -> None:
    """The released code draws the likeliest only, whatever is asked for (bug A15)."""
    (batch,) = batches(tiny_llava, 6)

    for number in (1, 5):
        words = read(backbone, tiny_llava, [batch], per_token=number, top=3).settings["found"][
            "top_words"
        ]
        for k, name in enumerate(SETS):
            own = (
                torch.cat([sample[2][k] for sample in tables(backbone, batch)])
                .topk(number)
                .indices.flatten()
            )
            expected = own.bincount().topk(3).values / len(own)
            assert [share for _, share in words[name]["2"]] == pytest.approx(
                (100 * expected).tolist()
            )


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_divergences_are_never_negative_and_all_is_finite(
    backbone: Backbone, tiny_llava: str, scale: float
) -> None:
    """The released code drops terms of zeros, and multiplies 0 by log 0 (bug A4)."""
    with torch.no_grad():
        backbone.lm_head.weight.mul_(scale)  # type: ignore[operator]  # a tensor

    result = read(backbone, tiny_llava, batches(tiny_llava, 4))

    for measure in result.coords["measure"]:
        found = curve(result, measure)
        found = found[: LAYERS + 1 - int(measure.split()[2])] if "consecutive" in measure else found
        assert np.isfinite(found).all()
        assert (found >= -1e-12).all()


def test_the_vocabulary_is_met_by_few_tokens_at_a_time(
    backbone: Backbone, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(backbone, tiny_llava, batches(tiny_llava, 6))
    met: list[int] = []
    size: int = backbone.lm_head.weight.shape[0]  # type: ignore[assignment,index]  # of a Linear
    monkeypatch.setattr(float32_head, "LOGITS", 5 * size)
    own = torch.Tensor.log_softmax

    def counted(logits: Tensor, dim: int) -> Tensor:
        met.append(len(logits))
        return own(logits, dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", counted)

    parts = read(backbone, tiny_llava, batches(tiny_llava, 6))

    assert max(met) == 5
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-9)


def test_intervals_are_those_of_the_groups(backbone: Backbone, tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    result, expected = read(backbone, tiny_llava, [batch], groups=1000), tables(backbone, batch)

    own = np.array(
        [[float(-(sample[1][1].exp() * sample[1][1]).sum(1).mean())] for sample in expected]
    )
    found = result.at(tokens="all", measure="entropy textual", layer=1)
    np.testing.assert_allclose(found, jackknife_of_means(own, np.ones(6))[0], rtol=1e-9)


def test_some_layers_are_the_same_layers(backbone: Backbone, tiny_llava: str) -> None:
    every, some = (
        read(backbone, tiny_llava, batches(tiny_llava, 6), layers=layers)
        for layers in (None, (1, 3))
    )

    assert some.coords["layer"] == (1, 3)
    for measure in some.coords["measure"]:
        np.testing.assert_allclose(curve(some, measure), curve(every, measure)[[1, 3]], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaps": (0,)}, "must be 1 or more"),
        ({"layers": (1, 1)}, r"each once, or is null for all; found \[1, 1\]"),
        ({"without_sinks": True, "sets": TokenSets(sink_ratio=None)}, r"needs sets\.sink_ratio"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Vocabulary(**options)


def test_a_layer_that_the_model_has_not_is_refused(backbone: Backbone, tiny_llava: str) -> None:
    with pytest.raises(ConfigError, match=f"layers has 9; the model has states 0 to {LAYERS}"):
        read(backbone, tiny_llava, batches(tiny_llava, 6), layers=(0, 9))


def test_what_would_fail_behind_the_last_batch_fails_before_the_first(
    backbone: Backbone, tiny_llava: str
) -> None:
    (batch,) = batches(tiny_llava, 6)

    with pytest.raises(
        ConfigError, match=r"vocabulary needs the tokenizer: call prepare\(tokenizer\)"
    ):
        Vocabulary().update(backbone, batch)
    with pytest.raises(ConfigError, match="per_token is 100000, but the model has"):
        read(backbone, tiny_llava, [batch], per_token=100_000)


def test_a_uniform_distribution_has_the_entropy_of_its_size(
    backbone: Backbone, tiny_llava: str
) -> None:
    with torch.no_grad():
        backbone.lm_head.weight.zero_()  # type: ignore[operator]  # a tensor

    result = read(backbone, tiny_llava, batches(tiny_llava, 6))

    size: int = backbone.lm_head.weight.shape[0]  # type: ignore[assignment,index]  # of a Linear
    np.testing.assert_allclose(curve(result, "entropy textual"), math.log(size))
    np.testing.assert_allclose(curve(result, "kl of tokens"), 0, atol=1e-12)
