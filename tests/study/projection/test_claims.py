from __future__ import annotations

from lightning_mllm.study import ProjectionStudyRichness
from lightning_mllm.study.projection.claims import CLAIMS, projection_claims
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

    assert projection_claims(study(), "paper", {"model"}).keys() == of_models
    assert not projection_claims(
        study(presets={"paper": {"ft_proj": ["proj.yaml"]}}), "paper", {"model"}
    )
    probed = study(richness=ProjectionStudyRichness())
    everything = projection_claims(probed, "paper", {"model", "richness", "image-only", "clip"})
    assert everything.keys() == CLAIMS.keys() - {"CLIP beats the MLLM zero-shot"}
    assert projection_claims(probed, "", {"clip"}).keys() == {"CLIP beats the MLLM zero-shot"}
