"""The names of alignment scores, which the analysis, its callback and studies share."""

from typing import Literal

ScoreName = Literal["ima_input", "ima_same_layer"]
SCORE_NAMES: tuple[ScoreName, ...] = ("ima_input", "ima_same_layer")

# how the tokens of two samples are compared
VECTOR_MODES = ("avg", "mean")  # all pairs of samples follow from one vector per sample
TOKEN_MODES = ("median", "max", "min", "max_mean")  # both samples' tokens have to be there
MODES = (*VECTOR_MODES, *TOKEN_MODES)

# which tokens are compared
ALL_TOKENS, NO_SINKS = "all", "without sinks"
