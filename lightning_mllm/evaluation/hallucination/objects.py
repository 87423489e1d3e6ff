"""Which objects a text names: what CHAIR counts in captions.

A vocabulary is a text file in UTF-8, comma-separated like the synonyms of CHAIR's released code. Each line is an
object: its name, which is a word for it, too, and further words. A line whose name is `-` has phrases that mean no
object, although a word of one stands in them. Blank lines, and those that begin with `#`, are left out.

    # object, synonyms
    person, man, men, woman, women, child, children
    dining table, table, desk
    plate, dish
    -, home plate, number plate

Words are looked for whole, whatever their case, also in the regular plural ("desks", "dishes"; "men" must be listed).
The longest wins, and what is found is not looked at again: a "hot dog" is no "dog".

A mention is a mention: "there is no dog" names a dog, as in CHAIR's released code, which counts words and reads no
sentences. So a caption that denies what is not there counts as one that hallucinates.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_mllm.errors import DataError

NO_OBJECT = "-"  # the name of the lines of phrases that mean none

_COLUMNS = ["sample_id", "objects"]
_BLANK = re.compile(r"[\s_-]+")
_SIBILANTS = ("s", "x", "z", "ch", "sh")


class ObjectVocabulary:
    """Objects, and the words that mean them.

    Args:
        words: Object -> words for it, in the singular; its own name counts among them. Under `NO_OBJECT`, phrases that
            mean none.
        source: What messages call it.

    Attributes:
        names: The objects.

    Raises:
        DataError: There is no object, a word is empty, or it stands for two objects.
    """

    def __init__(self, words: Mapping[str, Iterable[str]], source: str = "The vocabulary") -> None:
        self.names = tuple(name for name in words if name != NO_OBJECT)
        if not self.names:
            raise DataError(f"{source} has no object. Give it a line per object: its name, then further words.")
        self._objects: dict[str, str] = {}  # word -> object
        for name, synonyms in words.items():
            for word in [*([] if name == NO_OBJECT else [name]), *synonyms]:
                self._add(_folded(word), name, source)
        for word, name in list(self._objects.items()):
            self._objects.setdefault(_plural(word), name)
        longest_first = sorted(self._objects, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    @classmethod
    def read(cls, path: str | Path) -> ObjectVocabulary:
        """Read a file.

        Raises:
            DataError: It does not exist, is no UTF-8 text, or holds no vocabulary.
        """
        words: dict[str, list[str]] = {}
        lines = (line for line in _text(Path(path)).splitlines() if line.strip() and not line.lstrip().startswith("#"))
        for name, *synonyms in csv.reader(lines, skipinitialspace=True):
            words.setdefault(name.strip(), []).extend(synonyms)
        return cls(words, str(path))

    def named(self, text: str) -> tuple[str, ...]:
        """Return the objects that a text names, in order, each as often as it is named."""
        found = (self._objects[match[0]] for match in self._pattern.finditer(_folded(text)))
        return tuple(name for name in found if name != NO_OBJECT)

    def _add(self, word: str, name: str, source: str) -> None:
        if not word:
            raise DataError(f"{source}: the object {name!r} has an empty word. Leave out the comma too many.")
        if self._objects.setdefault(word, name) != name:
            raise DataError(
                f"{source}: {word!r} stands for {self._objects[word]!r} and for {name!r}, so that no caption could "
                "tell which it means. Leave it with one of them."
            )


def read_objects(path: str | Path, vocabulary: ObjectVocabulary) -> dict[str, frozenset[str]]:
    """Read which objects are in the pictures of samples: a CSV file with the columns sample_id and objects.

    A row per sample; its objects are names of the vocabulary with semicolons between them, or nothing.

    Raises:
        DataError: The file does not exist or has other columns; a sample is there twice; an object is unknown.
    """
    reader = csv.reader(io.StringIO(_text(Path(path)), newline=""))  # ids may hold line ends
    if (header := next(reader, [])) != _COLUMNS:
        raise DataError(f"{path} has the columns {', '.join(header) or '(none)'}; expected are {', '.join(_COLUMNS)}.")
    found: dict[str, frozenset[str]] = {}
    for row in filter(None, reader):
        where = f"{path}, line {reader.line_num}"
        if len(row) != len(_COLUMNS) or row[0] in found:
            problem = f"sample {row[0]!r} is there twice" if len(row) == len(_COLUMNS) else f"{len(row)} cells, not 2"
            raise DataError(f"{where}: {problem}. Give a row per sample: its id, then its objects.")
        objects = frozenset(name for cell in row[1].split(";") if (name := cell.strip()))
        if unknown := sorted(objects - {*vocabulary.names}):
            raise DataError(
                f"{where}: the object {unknown[0]!r} is not in the vocabulary. Call it as the vocabulary does, or add "
                "it there."
            )
        found[row[0]] = objects
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"The file {path} does not exist. Correct the path.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it again as UTF-8.") from error


def _folded(text: str) -> str:
    """Fold away case, Unicode form, hyphens and spacing."""
    return _BLANK.sub(" ", unicodedata.normalize("NFC", text).casefold()).strip()


def _plural(word: str) -> str:
    if word.endswith(_SIBILANTS):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
