"""What a command says while it works: our messages, and of libraries what is worth a warning."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import warnings
from contextlib import ExitStack
from typing import Any

from lightning_mllm.progress import console, is_first_process

_OURS = "lightning_mllm"
# they bring handlers of their own, which write through a progress bar
_LIBRARIES = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers")
# imported by transformers and peft wherever they are installed, they name each kernel that this
# machine can't run
_NOISY = ("torchao", "bitsandbytes", "torch.utils._pytree")
_UNWANTED_WARNINGS = (
    "Found .* module.s. in eval mode",  # frozen parts stay in eval mode
    "The dirpath has changed",  # checkpoints of a resumed run go to a new folder
    ".isinstance.treespec, LeafSpec",  # lightning 2.6 with torch 2.13: out of our control
    "The .*_dataloader. does not have many workers",  # the data have a number of workers
    "This DataLoader will create .* worker processes",  # as they were told
    "To copy construct from a tensor",  # lightning logs the rates of torchao, which are tensors
    "torch.distributed.nn.functional.all_gather is deprecated",  # lightning calls it
    "OptimState.* does not implement _stable_hash_for_caching",  # torch compiles torchao's states
)


def show_messages() -> ExitStack:
    """Show messages on stderr from now on, each once, and only of the first process.

    Of our loggers they are shown from INFO on, as plain sentences; of all others, and of Python's
    warnings, from WARNING on. Where stderr is no terminal, the bars of libraries are not shown.
    The command line does so; a script or a notebook calls it after its imports.

    Returns:
        A context; where it ends, all is as it was. Without `with` messages are shown to the end.
    """
    shown, root, ours = ExitStack(), logging.getLogger(), logging.getLogger(_OURS)
    if any(isinstance(each, _MessageHandler) for each in root.handlers):
        return shown
    handler = _MessageHandler()
    shown.callback(root.removeHandler, handler)
    root.addHandler(handler)
    shown.callback(ours.setLevel, ours.level)
    ours.setLevel(logging.INFO)
    for library in map(logging.getLogger, _NOISY):
        shown.callback(library.setLevel, library.level)
        library.setLevel(logging.ERROR)
    for library in map(logging.getLogger, _LIBRARIES):
        shown.callback(_send_messages_of, library, library.handlers, library.propagate)
    send_library_messages()
    if not console.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
        bars: Any = sys.modules.get("transformers.utils.logging")  # for what is imported already
        if bars is not None and bars.is_progress_bar_enabled():
            shown.callback(bars.enable_progress_bar)
            bars.disable_progress_bar()
    shown.enter_context(warnings.catch_warnings())
    for message in _UNWANTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    warnings.showwarning = _show_warning
    return shown


def send_library_messages() -> None:
    """Let the messages of libraries go where ours go; call it again when they are imported."""
    for library in map(logging.getLogger, _LIBRARIES):
        _send_messages_of(library, [], propagate=True)


def _send_messages_of(
    library: logging.Logger, handlers: list[logging.Handler], propagate: bool
) -> None:
    library.handlers, library.propagate = handlers, propagate


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Show a warning of Python's without the file and line of a library."""
    logging.getLogger("py.warnings").warning("%s", message)


class _MessageHandler(logging.Handler):
    """Writes to what is stderr at that time: a progress bar puts something else in its place."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is shown."""
        ours = record.name == _OURS or record.name.startswith(f"{_OURS}.")
        return is_first_process() and record.levelno >= (logging.INFO if ours else logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message, unless it was shown before."""
        text = self.format(record).strip()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if text in self._said:
            return
        self._said.add(text)
        if sys.stderr.isatty():
            text = "\n".join(_wrap_line(line) for line in text.splitlines())
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _wrap_line(line: str) -> str:
    """Break a line between words; a path stays whole."""
    return textwrap.fill(line, console.width, break_long_words=False, break_on_hyphens=False)
