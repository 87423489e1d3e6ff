from __future__ import annotations

from lightning_mllm.study import Richness
from lightning_mllm.study.projection.claims import CLAIMS, claims_about
from tests.study.conftest import Change


def test_a_part_reads_like_an_inequality() -> None:
    (lower, _), (probe,) = (
        CLAIMS["richness: FT-Proj < FT-E2E < original"],
        CLAIMS["CLIP beats the MLLM zero-shot"],
    )

    assert str(lower) == "FT-Proj < FT-E2E in richness"
    assert str(probe) == "zero-shot < CLIP in macro-F1"


def test_a_study_is_asked_only_what_its_cells_will_tell(study: Change) -> None:
    of_models = {
        f"the MLLM's {name}: zero-shot < FT-Proj < FT-E2E" for name in ("macro-F1", "accuracy")
    }

    assert claims_about(study(), "paper", {"model"}).keys() == of_models
    assert not claims_about(
        study(presets={"paper": {"ft_proj": ["proj.yaml"]}}), "paper", {"model"}
    )
    probed = study(richness=Richness())
    everything = claims_about(probed, "paper", {"model", "richness", "image-only", "clip"})
    assert everything.keys() == CLAIMS.keys() - {"CLIP beats the MLLM zero-shot"}
    assert claims_about(probed, "", {"clip"}).keys() == {"CLIP beats the MLLM zero-shot"}
