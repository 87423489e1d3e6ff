"""What the paper reports of LLaVA-1.5-7B, in Tables 1 to 3.

Verma et al., "Cross-Modal Projection in Multimodal LLMs Doesn't Really Project Visual Attributes to
Textual Space", ACL 2024.

Most of the reported changes of richness are truncated after two decimals (-6.227 is -6.22 there),
not rounded; the tables of a study round.
"""

from __future__ import annotations

from typing import NamedTuple

LABEL = "published (LLaVA-1.5-7B)"
DOMAINS = {
    "plantdoc": "Agriculture",
    "dtd": "Textures",
    "dermnet": "Dermatology",
    "crisismmd": "Humanitarian",
}  # our name of a domain -> the paper's


class PublishedF1Accuracy(NamedTuple):
    """Two scores on one test split."""

    macro_f1: float
    accuracy: float


class PublishedRichness(NamedTuple):
    """A row of Table 2: macro-F1 of the probe on projected features, and its change in %."""

    macro_f1: float
    change: float | None


# Table 1: state -> domain -> scores; means of five seeds according to the caption
TABLE_1: dict[str, dict[str, PublishedF1Accuracy]] = {
    "random uniform": {
        "Agriculture": PublishedF1Accuracy(0.0309, 0.0339),
        "Textures": PublishedF1Accuracy(0.0214, 0.0218),
        "Dermatology": PublishedF1Accuracy(0.0451, 0.0483),
        "Humanitarian": PublishedF1Accuracy(0.2425, 0.2664),
    },
    "CLIP zero-shot": {
        "Agriculture": PublishedF1Accuracy(0.4165, 0.4492),
        "Textures": PublishedF1Accuracy(0.4582, 0.4984),
        "Dermatology": PublishedF1Accuracy(0.1783, 0.2401),
        "Humanitarian": PublishedF1Accuracy(0.4139, 0.4718),
    },
    "zero_shot": {
        "Agriculture": PublishedF1Accuracy(0.1064, 0.1255),
        "Textures": PublishedF1Accuracy(0.1882, 0.2138),
        "Dermatology": PublishedF1Accuracy(0.0658, 0.0672),
        "Humanitarian": PublishedF1Accuracy(0.5169, 0.5678),
    },
    "ft_proj": {
        "Agriculture": PublishedF1Accuracy(0.2221, 0.2478),
        "Textures": PublishedF1Accuracy(0.4505, 0.4654),
        "Dermatology": PublishedF1Accuracy(0.2932, 0.3403),
        "Humanitarian": PublishedF1Accuracy(0.6227, 0.7151),
    },
    "ft_e2e": {
        "Agriculture": PublishedF1Accuracy(0.5984, 0.6525),
        "Textures": PublishedF1Accuracy(0.7446, 0.7496),
        "Dermatology": PublishedF1Accuracy(0.4947, 0.5464),
        "Humanitarian": PublishedF1Accuracy(0.7950, 0.8554),
    },
}
# Table 2, without its column that repeats Table 1
TABLE_2: dict[str, dict[str, PublishedRichness]] = {
    "zero_shot": {
        "Agriculture": PublishedRichness(0.5701, None),
        "Textures": PublishedRichness(0.6401, None),
        "Dermatology": PublishedRichness(0.3105, None),
        "Humanitarian": PublishedRichness(0.7498, None),
    },
    "ft_proj": {
        "Agriculture": PublishedRichness(0.4134, -27.49),
        "Textures": PublishedRichness(0.4736, -26.01),
        "Dermatology": PublishedRichness(0.2182, -29.72),
        "Humanitarian": PublishedRichness(0.6025, -19.64),
    },
    "ft_e2e": {
        "Agriculture": PublishedRichness(0.5346, -6.22),
        "Textures": PublishedRichness(0.6212, -2.95),
        "Dermatology": PublishedRichness(0.2525, -18.67),
        "Humanitarian": PublishedRichness(0.7238, -3.46),
    },
}
# Table 2, changes of the MLLM's macro-F1 in %
TABLE_2_MLLM_CHANGES: dict[str, dict[str, float]] = {
    "ft_proj": {
        "Agriculture": 108.74,
        "Textures": 139.37,
        "Dermatology": 345.59,
        "Humanitarian": 20.47,
    },
    "ft_e2e": {
        "Agriculture": 462.41,
        "Textures": 295.64,
        "Dermatology": 651.82,
        "Humanitarian": 53.80,
    },
}
# Table 3: an MLP on CLIP's image features
TABLE_3: dict[str, PublishedF1Accuracy] = {
    "Agriculture": PublishedF1Accuracy(0.6991, 0.7118),
    "Textures": PublishedF1Accuracy(0.7644, 0.7638),
    "Dermatology": PublishedF1Accuracy(0.6046, 0.6492),
    "Humanitarian": PublishedF1Accuracy(0.7506, 0.8238),
}
