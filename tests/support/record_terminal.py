"""Records what a terminal of 80 columns shows of the quickstart, and puts it into its page.

`python -m tests.support.record_terminal` runs every command that a page of the docs has a recording
of, for minutes, in an empty folder with the configs. Bars that are drawn again and again are
recorded as they are left in the end.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte

from tests.support.doc_commands import PAGES, ROOT

COLUMNS, ROWS, SCROLLED = 80, 50, 10_000
_RECORDING = re.compile(
    r"(<!-- recording: (?P<command>[^\n]+) -->\n```text\n).*?(```\n<!-- end of recording -->)",
    re.DOTALL,
)


def read_screen(output: bytes) -> str:
    """Return what a terminal shows in the end, with what has left it at the top.

    Args:
        output: What a program has written, control characters included.
    """
    screen = pyte.HistoryScreen(COLUMNS, ROWS, history=SCROLLED, ratio=1)
    pyte.ByteStream(screen).feed(output)
    lines = []
    for row in [*screen.history.top, *(screen.buffer[number] for number in range(ROWS))]:
        lines.append("".join(row[column].data for column in range(COLUMNS)).rstrip())
    return "\n".join(lines).strip("\n") + "\n"


def record(command: str, folder: Path) -> str:
    """Run a command of ours in a folder, in a terminal, and return what it shows.

    Raises:
        subprocess.CalledProcessError: The command fails.
    """
    program, *arguments = shlex.split(command)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    size = ("COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in size}
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_mllm", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**environment, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    output = _read_all(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, read_screen(output))
    return f"$ {program} {shlex.join(arguments)}\n{read_screen(output)}"


def _read_all(terminal: int) -> bytes:
    """Return what is written to a terminal until nobody has it open."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says so at the end
            part = b""
        if not part:
            os.close(terminal)
            return b"".join(parts)
        parts.append(part)


def main() -> None:
    """Record the commands of all pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _RECORDING.finditer(text):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "configs").symlink_to(ROOT / "configs")
                shown = record(found["command"], Path(folder)).replace(f"{folder}/", "")
            text = text.replace(found[0], f"{found[1]}{shown}{found[3]}")
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
