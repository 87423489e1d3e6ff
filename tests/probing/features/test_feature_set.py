from __future__ import annotations

from tests.support.clusters import clusters


def test_a_feature_set_is_shown_by_its_sizes() -> None:
    assert repr(clusters("train")) == "FeatureSet(48 samples, width 24, 4 classes)"
