"""Values of `${testbed:instructed}`, the folder of a shipped checkpoint, in configs and options."""

from __future__ import annotations

import re

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_mllm.cli.stages import stage_folder
from lightning_mllm.errors import ConfigError

_RESOLVER = re.compile(r"\$\{[\w.]+:[^{}]*\}")


def register_resolvers() -> None:
    """Make `${testbed:...}` known to config files."""
    OmegaConf.register_resolver("testbed", stage_folder, replace=True)


def has_resolver(text: str) -> bool:
    """Return whether a text has a part like `${testbed:instructed}`."""
    return _RESOLVER.search(text) is not None


def resolved(argument: str) -> str:
    """Return an argument with its resolvers replaced; references to other keys stay.

    Raises:
        ConfigError: A resolver is unknown, or has no value.
    """
    try:
        return _RESOLVER.sub(lambda match: str(OmegaConf.create([match[0]])[0]), argument)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"The argument {argument!r} can't be resolved: {reason}. "
            "Known are ${testbed:...} and ${oc.env:...}."
        ) from error
