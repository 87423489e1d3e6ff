"""What is not read in the rows of a file in LLaVA's JSON format, counted so that it is said."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

logger = logging.getLogger(__name__)


class UnreadLlavaRows:
    """Counts what is not read in the rows of a file."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()
        self.first_answers = 0

    def warn(self, file: Path) -> None:
        """Log what is not read; nothing where all is read."""
        if self.keys:
            found = ", ".join(f"{key} ({count} times)" for key, count in self.keys.most_common())
            logger.warning("%s has keys that are not read: %s", file, found)
        if self.first_answers:
            logger.warning(
                "%d conversations of %s begin with an answer without a question; it is left out, "
                "as in LLaVA's own training",
                self.first_answers,
                file,
            )
