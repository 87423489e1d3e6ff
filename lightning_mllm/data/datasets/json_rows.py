"""Where the rows of a large JSON file are, so that each can be read alone."""

from __future__ import annotations

import codecs
import json
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lightning_mllm.errors import DataError

_WINDOW = 1 << 22  # bytes that are read at once
_BLANKS = re.compile(r"[ \t\n\r]*")
_BOM = codecs.BOM_UTF8
_DECODER = json.JSONDecoder()


class JsonRow(NamedTuple):
    """A row of a file.

    Attributes:
        number: The number of the row, from 1.
        start: The first byte of the row.
        length: How many bytes the row has.
        content: What it holds, or the error of a line that is malformed.
    """

    number: int
    start: int
    length: int
    content: Any


class MalformedRowsError(ValueError):
    """A file is no list of rows, or no UTF-8 text; reading it as a whole tells the reason."""


class RowBytes:
    """Reads single rows of a file; processes share nothing but the file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def read(self, start: int, length: int) -> str:
        """Return a row's text.

        Raises:
            DataError: The file was changed since it was opened.
        """
        text = os.pread(self._file, length, start)
        if self._look() != self._state:
            raise DataError(
                f"{self.path} was changed while it is being used, so that its rows can't be found "
                "any more. Start again, and leave it alone until the run ends."
            )
        return text.decode()

    def describe(self) -> dict[str, str]:
        """Return what tells this version of the file: path, size and time."""
        size, changed = self._state
        return {"file": str(self.path), "size": str(size), "changed": str(changed)}

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._state = self._look()

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "state": self._state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()
        self._state = state["state"]


def find_json_rows(path: Path) -> Iterator[JsonRow]:
    """Yield the rows of a JSON list, or of a `.jsonl` file with one row per line.

    Raises:
        MalformedRowsError: The file can't be read so; rows before that place were yielded.
    """
    with path.open("rb") as stream:
        start = len(_BOM) if stream.read(len(_BOM)) == _BOM else 0
        stream.seek(start)
        find = _find_lines if path.suffix == ".jsonl" else _find_items
        try:
            yield from find(stream, start)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise MalformedRowsError from error


def _find_lines(stream: BinaryIO, start: int) -> Iterator[JsonRow]:
    """Yield the lines that are not blank."""
    number = 0
    for several in stream:  # ends at "\n"; a text file has lines that end at "\r", too
        for line in several.split(b"\r"):
            text = line.decode()
            if text.strip():
                number += 1
                content: Any
                try:
                    content = json.loads(text.removesuffix("\n"))
                except json.JSONDecodeError as error:
                    content = error
                yield JsonRow(number, start, len(line), content)
            start += len(line) + 1
        start -= 1


def _find_items(stream: BinaryIO, start: int) -> Iterator[JsonRow]:
    """Yield the items of a list."""
    window = _Window(stream, start)
    if window.take() != "[":
        raise MalformedRowsError
    number, after = 0, ""
    while after != "]":
        if not number and window.peek() == "]":
            window.take()
            break
        number += 1
        yield window.parse(number)
        after = window.take()
        if after not in (",", "]"):
            raise MalformedRowsError
    if window.peek():
        raise MalformedRowsError


class _Window:
    """A part of a JSON text that moves on through the file."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream, self._byte = stream, start
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """Return the next character that is no blank, without passing it; empty at the end."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None  # matches ""
            self._move(blanks.end())
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._extend()

    def take(self) -> str:
        """Pass the next character that is no blank, and return it."""
        character = self.peek()
        self._move(self._at + len(character))
        return character

    def parse(self, number: int) -> JsonRow:
        """Pass the value that is next, and return it as a row."""
        self.peek()
        while True:
            try:
                content, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                blanks = _BLANKS.match(self._text, end)
                assert blanks is not None  # matches ""
                after = self._text[blanks.end() : blanks.end() + 1]
                if self._ended or (after and after in ",]"):  # else a number may go on
                    start = self._byte
                    self._move(end)
                    return JsonRow(number, start, self._byte - start, content)
            self._extend()

    def _move(self, at: int) -> None:
        self._byte += len(self._text[self._at : at].encode())
        self._at = at

    def _extend(self) -> None:
        """Read more, at least as much as is there."""
        self._text = self._text[self._at :]
        self._at = 0
        read = self._stream.read(max(_WINDOW, len(self._text)))
        self._ended = not read
        self._text += self._decode.decode(read, final=self._ended)
