"""Finds the objects that a text names: what CHAIR counts in captions.

A vocabulary is a text file in UTF-8, comma-separated like the synonyms of CHAIR's released code.
Each line is an object: its name, which is also a word for it, then further words. A line whose name
is `-` has phrases that mean no object, although they contain a word for one. Blank lines, and those
that begin with `#`, are skipped.

    # object, synonyms
    person, man, men, woman, women, child, children
    dining table, table, desk
    plate, dish
    -, home plate, number plate

Only whole words are found, in any case, also in the regular plural ("desks", "dishes"; "men" must
be listed). The longest match wins, and its text is not searched again: a "hot dog" is not a "dog".

Negation is ignored: "there is no dog" names a dog, as in CHAIR's released code, which counts words.
So a caption that denies what is not in the picture counts as one that hallucinates.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_mllm.errors import DataError

NO_OBJECT = "-"  # name of lines with phrases that mean no object

_COLUMNS = ["sample_id", "objects"]
_BLANK = re.compile(r"[\s_-]+")
_SIBILANTS = ("s", "x", "z", "ch", "sh")


class ObjectVocabulary:
    """Objects, and the words that mean them.

    Args:
        words: Object -> words for it, in the singular, beside its own name. Under `NO_OBJECT`,
            phrases that mean no object.
        source: Name of the vocabulary in messages.

    Attributes:
        names: The objects.

    Raises:
        DataError: There is no object, a word is empty, or a word stands for two objects.
    """

    def __init__(self, words: Mapping[str, Iterable[str]], source: str = "The vocabulary") -> None:
        self.names = tuple(name for name in words if name != NO_OBJECT)
        if not self.names:
            raise DataError(
                f"{source} has no object. Give it a line per object: its name, then further words."
            )
        self._objects: dict[str, str] = {}  # word -> object
        for name, synonyms in words.items():
            if name != NO_OBJECT:
                self._add(_normalise(name), name, source)
            for word in synonyms:
                self._add(_normalise(word), name, source)
        for word, name in list(self._objects.items()):
            self._objects.setdefault(_make_plural(word), name)
        longest_first = sorted(self._objects, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    @classmethod
    def read(cls, path: str | Path) -> ObjectVocabulary:
        """Read a file.

        Raises:
            DataError: The file does not exist, is not UTF-8 text, or does not hold a vocabulary.
        """
        words: dict[str, list[str]] = {}
        lines = []
        for line in _read_text(Path(path)).splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                lines.append(line)
        for name, *synonyms in csv.reader(lines, skipinitialspace=True):
            words.setdefault(name.strip(), []).extend(synonyms)
        return cls(words, str(path))

    def named(self, text: str) -> tuple[str, ...]:
        """Return the objects that a text names, in order, each as often as it is named."""
        matches = self._pattern.finditer(_normalise(text))
        found = [self._objects[match[0]] for match in matches]
        return tuple(name for name in found if name != NO_OBJECT)

    def _add(self, word: str, name: str, source: str) -> None:
        if not word:
            raise DataError(
                f"{source}: the object {name!r} has an empty word. Remove the surplus comma."
            )
        if self._objects.setdefault(word, name) != name:
            raise DataError(
                f"{source}: {word!r} stands for {self._objects[word]!r} and for {name!r}, so that "
                "no caption could tell which it means. Keep it with one of them."
            )


def read_objects(path: str | Path, vocabulary: ObjectVocabulary) -> dict[str, frozenset[str]]:
    """Read which objects are in the pictures of samples from a CSV file.

    It has the columns sample_id and objects and a row per sample. The objects are names of the
    vocabulary, separated by semicolons; the cell is empty if there are none.

    Args:
        path: The CSV file.
        vocabulary: The known objects.

    Returns:
        Sample id -> objects.

    Raises:
        DataError: The file does not exist or has other columns, a sample occurs twice, or an object
            is unknown.
    """
    reader = csv.reader(io.StringIO(_read_text(Path(path)), newline=""))  # ids may hold line ends
    header = next(reader, [])
    if header != _COLUMNS:
        raise DataError(
            f"{path} has the columns {', '.join(header) or '(none)'}; expected are "
            f"{', '.join(_COLUMNS)}."
        )
    found: dict[str, frozenset[str]] = {}
    for row in filter(None, reader):
        where = f"{path}, line {reader.line_num}"
        problem = ""
        if len(row) != len(_COLUMNS):
            problem = f"{len(row)} cells, not 2"
        elif row[0] in found:
            problem = f"sample {row[0]!r} is there twice"
        if problem:
            raise DataError(f"{where}: {problem}. Give a row per sample: its id, then its objects.")
        objects = frozenset(map(str.strip, row[1].split(";"))) - {""}
        unknown = sorted(objects - {*vocabulary.names})
        if unknown:
            raise DataError(
                f"{where}: the object {unknown[0]!r} is not in the vocabulary. Use the "
                "vocabulary's name for it, or add it there."
            )
        found[row[0]] = objects
    return found


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"The file {path} does not exist. Correct the path.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it again as UTF-8.") from error


def _normalise(text: str) -> str:
    """Remove differences of case, Unicode form, hyphens and spacing."""
    return _BLANK.sub(" ", unicodedata.normalize("NFC", text).casefold()).strip()


def _make_plural(word: str) -> str:
    if word.endswith(_SIBILANTS):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
