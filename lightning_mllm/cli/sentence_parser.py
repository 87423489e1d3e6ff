"""The parser of commands that need no class of ours: argparse with our answers to mistakes."""

from __future__ import annotations

import argparse
import re
import sys
from typing import NoReturn

from lightning_mllm.errors import did_you_mean


class SentenceParser(argparse.ArgumentParser):
    """Answers a mistake in a sentence, with the nearest option or word."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        if match := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            words = [word.strip("'") for word in match[2].split(", ")]
            message = f"there is no {match[1]!r}: choose {', '.join(words)}"
            nearest = did_you_mean(match[1], words)
        else:
            wrong = re.search(r"--[\w-]+", message)
            nearest = did_you_mean(wrong[0], self._option_string_actions) if wrong else ""
        sys.stderr.write(f"error: {message}.{nearest}\nFor all options: {self.prog} --help\n")
        sys.exit(2)
