"""What is said where the step of an optimiser can't be compiled."""

from __future__ import annotations

import pytest
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.optimisation.optimizer import explaining_compilation


def test_a_step_that_can_not_be_compiled_is_answered_with_the_way_on() -> None:
    with (
        pytest.raises(ConfigError, match=r"No working C\+\+ compiler.*TORCHDYNAMO_DISABLE=1"),
        explaining_compilation(),
    ):
        raise InductorError(InvalidCxxCompiler(), None)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="another"), explaining_compilation():
        raise RuntimeError("another")
