"""Rows that can't be used: collected over a dataset, then named in one message or left out."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

from lightning_mllm.errors import ConfigError, DataError

OnBadRow = Literal["raise", "skip"]

SHOWN = 20  # bad rows that one message lists
# kinds of errors
IMAGE_FILE = "image file"
IMAGE_PATH = "image path"
TOO_LONG = "too long"
FILE = "bad_rows.csv"  # in the folder of a run

_NAMED = re.compile(r"(?P<before>.*?)(?P<name>\brow \d+|'[^']*')(?P<after>.*)", re.DOTALL)
_ALIKE = 3  # problems that differ in a name only; more than these are named in one line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadRow:
    """Why a row can't be used.

    Attributes:
        split: The split in which the row was found.
        kind: The kind of error, as in `DataError`.
        problem: One sentence that names file, row or sample.
    """

    split: str
    kind: str
    problem: str


class BadRows:
    """Collects what is wrong with rows, so that all of it is said at once.

    Args:
        policy: `raise` refuses a dataset with bad rows, `skip` leaves the rows out.

    Attributes:
        titles: Kind -> the words after the number, for a message about this kind alone.
        split: The split that is looked at.
        noted: How many errors were noted. A problem that several rows share, such as a bad file,
            is noted for each of them, but named once.
        rows: Split -> how many rows can't be used.

    Raises:
        ConfigError: There is no such policy.
    """

    def __init__(self, policy: OnBadRow = "raise") -> None:
        if policy not in ("raise", "skip"):
            raise ConfigError(f"on_bad_row is {policy!r}; it can be 'raise' or 'skip'.")
        self.policy = policy
        self.titles: dict[str, str] = {}
        self.split = ""
        self.noted = 0
        self.rows: Counter[str] = Counter()
        self._found: dict[str, BadRow] = {}  # by the problem, which is named once
        self._told = 0
        self._depth = 0

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[BadRow]:
        return iter(self._found.values())

    @property
    def will_raise(self) -> bool:
        """Whether `settle` will refuse what was noted, so that files must be read again."""
        return self.policy == "raise" and len(self) > 0

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Note what is wrong with a row, and continue after the block."""
        try:
            yield
        except DataError as error:
            self.add(error)

    def add(self, error: DataError) -> None:
        """Note an error."""
        problem = str(error)
        self.noted += 1
        self.rows[self.split] += 1
        self._found.setdefault(problem, BadRow(self.split, error.kind, problem))

    def count_once(self, known: int) -> None:
        """Count all errors after the first `known` as one row."""
        self.rows[self.split] -= max(self.noted - known - 1, 0)

    @contextmanager
    def count_nothing(self) -> Iterator[None]:
        """Note errors within the block without counting rows, which were counted before."""
        counted = Counter(self.rows)
        try:
            yield
        finally:
            self.rows = counted

    def take_over(self, rows: Iterable[BadRow], counts: Mapping[str, int]) -> None:
        """Note rows that an earlier start has left out and told of, and how many per split."""
        for row in rows:
            self._found.setdefault(row.problem, row)
        self.rows.update(counts)
        self._told = len(self)

    def count_image_files(self, total: int) -> None:
        """Say how many image files there are, should only image files be bad."""
        self.titles[IMAGE_FILE] = f"of {total:,} image files can't be used"

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Let `settle` do nothing within the block; it is called after the outermost one."""
        self._depth += 1
        try:
            yield
        except DataError as error:
            if self._depth > 1 or not self._found or error.kind == TOO_LONG:
                raise
            text = f"{self.text()}\n{error}"  # perhaps too little is left because of those rows
            if self.policy == "raise":
                self._forget()
            raise DataError(text) from error
        finally:
            self._depth -= 1
        self.settle()

    def settle(self) -> None:
        """Refuse the rows that were noted, or warn of those that are left out.

        Raises:
            DataError: There are some, and the policy is `raise`.
        """
        if self._depth or len(self) == self._told:
            return
        if self.policy == "raise":
            text = self.text()
            self._forget()
            raise DataError(text)
        self._told = len(self)
        logger.warning("Left out: %s", self.text())

    def _forget(self) -> None:
        """Forget what was noted: the next attempt looks again."""
        self._found.clear()
        self.rows.clear()

    def text(self) -> str:
        """Return how many errors of which kind there are, and the first of them."""
        problems = list(self._found)
        counts = Counter(row.kind for row in self)
        kind, *others = counts
        if kind in self.titles and not others:
            title = f"{len(self):,} {self.titles[kind]}:"
        elif len(self) == 1:
            return problems[0]
        else:
            kinds = ", ".join(f"{kind}: {count:,}" for kind, count in counts.most_common())
            title = f"{len(self):,} rows can't be used ({kinds}):"
        shown = _put_alike_together(problems)
        lines = [title, *(f"  {problem}" for problem, _ in shown[:SHOWN])]
        if more := sum(count for _, count in shown[SHOWN:]):
            lines.append(f"  ... and {more:,} more")
        return "\n".join(lines)

    def metrics(self, split: str) -> dict[str, float]:
        """Return how many rows of a split can't be used, by name; empty if there are none."""
        count = self.rows[split]
        return {f"bad_rows/{split}": float(count)} if count else {}

    def report(self, folder: Path) -> None:
        """Write the list, if there is any, and say where it is."""
        if self._found:
            logger.warning("All of them are in %s", self.write(folder))

    def write(self, folder: Path) -> Path:
        """Write the whole list into a folder, below what other datasets wrote there.

        Returns:
            The file.
        """
        path, header = folder / FILE, (*BadRow.__dataclass_fields__,)
        folder.mkdir(parents=True, exist_ok=True)
        earlier: list[tuple[str, ...]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                earlier = [tuple(row) for row in csv.reader(file)]
        own = [tuple(map(_make_writable, astuple(row))) for row in self]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(dict.fromkeys([header, *earlier, *own]))
        return path


def _make_writable(text: str) -> str:
    """Return a text in which half of a character is written as its code."""
    return text.encode("utf-8", "backslashreplace").decode()


def _put_alike_together(problems: Sequence[str]) -> list[tuple[str, int]]:
    """Return texts, and how many problems each is about; those of many rows have one text.

    They are alike that differ only in the first name between quotes, or in the number of the row.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for problem in problems:
        match = _NAMED.fullmatch(problem)
        key = (match["before"], match["after"]) if match else (problem,)
        alike.setdefault(key, []).append(problem)
    texts = []
    for same in alike.values():
        if len(same) <= _ALIKE:
            texts += [(problem, 1) for problem in same]
            continue
        names = [match["name"] for problem in same[1:_ALIKE] if (match := _NAMED.match(problem))]
        others = ", ".join([*names, "..."])
        texts.append((f"{same[0]} So it is with {len(same) - 1:,} others: {others}", len(same)))
    return texts
