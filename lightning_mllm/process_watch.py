"""Ends all processes of a run when one has ended, with a sentence that says which and why.

A process that waits for another one in a collective operation waits for half an hour, and ignores
signals; or it gets an error of the network's, which says nothing of the reason. So a thread of each
process keeps a note in the store of the process group - where the process is, that it is alive, or
why it ends - and reads those of the others.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_mllm.errors import NotFiniteError, PeerError, UserError

logger = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds between two looks
_SILENCE = 300.0  # seconds without a sign of life of a process on another machine
_GRACE = 4.0  # seconds for the others' notes, and for a process to notice by itself
_STUCK = 10.0  # seconds after which a process that waits for one that has ended is ended
_CLOSING = 120.0  # seconds that it may take to write what it has
_OF_NETWORK = ("gloo", "nccl", "connection", "socket", "store", "processgroup", "peer")


@dataclass(frozen=True)
class ProcessNote:
    """What a process says of itself.

    Attributes:
        state: Whether it works, has finished, or ends with an error.
        place: Where it is, e.g. "fit, step 12".
        reason: Why it ends.
        machine: Name of its machine.
        process: Number of the process on that machine.
        numbering: Where that number is one: containers of one machine have numbers of their own.
        beat: Counts up while it lives.
    """

    state: Literal["running", "done", "failed"] = "running"
    place: str = ""
    reason: str = ""
    machine: str = ""
    process: int = 0
    numbering: str = ""
    beat: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether it is a process of this machine which is not there any more."""
        if (self.machine, self.numbering) != (socket.gethostname(), _numbering()):
            return False
        try:
            return bool(psutil.Process(self.process).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


class ProcessWatch:
    """Watches the other processes of a run, from a thread.

    Args:
        rank: Number of this process.
        count: Number of processes.
        place: Says where this process is.
        at_end: Gets the reason before a process that is stuck is ended.

    Attributes:
        verdict: Why this process can't go on; empty while it can.
    """

    def __init__(
        self, rank: int, count: int, place: Callable[[], str], at_end: Callable[[str], None]
    ) -> None:
        self.rank, self.count, self.verdict = rank, count, ""
        self._place, self._at_end = place, at_end
        self._own = ProcessNote(
            machine=socket.gethostname(), process=os.getpid(), numbering=_numbering()
        )
        self._notes: dict[int, ProcessNote] = {}
        self._heard: dict[int, float] = {}  # rank -> when its note last changed
        self._closing = threading.Event()  # the main thread knows, and writes what it has
        self._stopped = threading.Event()
        self._interrupted = False
        self._lock = threading.Lock()
        self._store: Any = None
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="process-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; all processes have to."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer: this process has done its work, or has ended it.

        A thread that still talks to the store when Python ends would abort the process.
        """
        self._tell(state="done" if self._own.state == "running" else self._own.state)
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2 * _GRACE)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Tell the others of an error in the block, and raise one that says where it comes from.

        Raises:
            PeerError: Another process has ended; the message says which, and why.
            SystemExit: The same, where a process with a lower number says so.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit, SIGTERMException):  # which all processes get
            self._closing.set()
            self._tell(state="failed", reason="It was stopped.")
            raise
        except Exception as error:
            self._closing.set()
            cause = self._find_cause(error)
            self._tell(state="failed", reason=_describe(cause))
            self._wait(self._others_have_ended)
            lower = [note for rank, note in [*self._notes.items()] if rank < self.rank]
            if any(note.state == "failed" and not note.is_gone for note in lower):
                if isinstance(cause, UserError):
                    raise SystemExit(1) from error
            elif isinstance(cause, UserError) and cause is error:
                self._name_process(error)
            if cause is error:
                raise
            raise cause from error

    def _find_cause(self, error: Exception) -> Exception:
        """Return the error that says why; the same one if it does not come from another process."""
        if isinstance(error, PeerError):  # of `_end_main`, without a text
            return PeerError(self.verdict)
        text = str(error).lower()
        of_network = isinstance(error, RuntimeError) and any(word in text for word in _OF_NETWORK)
        elsewhere = isinstance(error, NotFiniteError) and not error.is_here
        if (of_network or elsewhere) and self._wait(lambda: bool(self.verdict)):
            if not elsewhere:
                return PeerError(self.verdict)
            error.args = (self.verdict,)
        return error

    def _name_process(self, error: Exception) -> None:
        """Say in an error that it is of this process, unless all have the same."""
        if any(note.reason != _describe(error) for note in [*self._notes.values()]):
            error.args = (self._name_failed(self.rank, _describe(error)),)

    def _name_failed(self, rank: int, reason: str) -> str:
        """Return the sentence about a process that ends with an error."""
        if reason.startswith("Process "):  # it says what another one said
            return reason
        return f"Process {rank} of {self.count} has ended with an error. {reason}"

    def _others_have_ended(self) -> bool:
        notes = [*self._notes.values()]  # the thread that watches may add one meanwhile
        return all(note.state != "running" or note.is_gone for note in notes)

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Return whether a condition comes true within some seconds."""
        due = time.monotonic() + _GRACE
        while not condition() and time.monotonic() < due:
            time.sleep(_PAUSE / 5)
        return condition()

    def _watch(self) -> None:
        while not dist.is_initialized():
            if self._stopped.wait(_PAUSE):
                return
        for thread in threading.enumerate():  # Lightning's, which would kill this process
            if thread.name == "child-process-observer":
                thread._child_processes = []  # type: ignore[attr-defined]
        try:
            self._store = _open_store()
        except (KeyError, RuntimeError) as error:  # a process group of the user's own
            logger.warning("Processes of this run can't look after each other: %s", error)
            return
        found_at: float | None = None
        while not self._stopped.wait(_PAUSE):
            self._tell()
            self.verdict = self.verdict or self._find_verdict()
            if self.verdict:
                self._tell(state="failed", reason=self.verdict)
                found_at = time.monotonic() if found_at is None else found_at
                self._end_main(time.monotonic() - found_at)

    def _end_main(self, waited: float) -> None:
        """End this process; first as an error would, and if it is stuck, at once."""
        if waited > _GRACE / 2 and not self._closing.is_set() and not self._interrupted:
            self._interrupted = True  # unless it waits in a collective operation, it gets this
            made = ctypes.py_object(PeerError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._main), made)
        if waited < (_CLOSING if self._closing.is_set() else _STUCK):
            return
        self._at_end(self.verdict)
        if all(note.is_gone for rank, note in self._notes.items() if rank < self.rank):
            sys.stderr.write(f"error: {self.verdict}\n")
            sys.stderr.flush()
        os._exit(1)

    def _find_verdict(self) -> str:
        """Return why this process can't go on; an empty text if it can."""
        for rank, note in sorted(self._notes.items()):
            if note.state == "failed":
                return self._name_failed(rank, note.reason)
        now = time.monotonic()
        for rank, note in sorted(self._notes.items()):
            silent = now - self._heard[rank]
            if note.state == "running" and (note.is_gone or silent > _SILENCE):
                why = "as after `kill -9`, or for want of memory"
                if not note.is_gone:
                    why = f"or can't be reached: no sign of life for {silent:.0f} seconds"
                return (
                    f"Process {rank} of {self.count} (number {note.process} on {note.machine}) has "
                    f"ended without a word, {why}; it was last at {note.place}, and process "
                    f"{self.rank} at {self._place()}. All processes end."
                )
        return ""

    def _tell(self, **changes: Any) -> None:
        """Write the note of this process, and read those of the others."""
        if self._store is None:
            return
        with self._lock:
            own = replace(self._own, place=self._place(), beat=self._own.beat + 1)
            self._own = own = replace(own, **changes)
            others = [rank for rank in range(self.count) if rank != self.rank]
            try:
                self._store.set(str(self.rank), json.dumps(asdict(own)))
                there = [rank for rank in others if self._store.check([str(rank)])]
                texts = self._store.multi_get([str(rank) for rank in there]) if there else []
            except RuntimeError:  # the process that has the store is gone; `is_gone` tells
                return
            for rank, text in zip(there, texts, strict=True):
                note = ProcessNote(**json.loads(text))
                if self._notes.get(rank) != note:
                    self._heard[rank] = time.monotonic()
                self._notes[rank] = note


def _numbering() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not on Linux
        return ""


def _open_store() -> Any:
    """Return a connection of its own to the store of the process group."""
    stores: Any = dist  # whose list of exports lacks them
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = timedelta(seconds=_GRACE)
    store = stores.TCPStore(address, port, None, False, wait, wait_for_workers=False)
    return stores.PrefixStore("process-watch", store)


def watch_processes(trainer: Any, status: Any) -> ProcessWatch:
    """Begin to watch the other processes of a Trainer.

    Args:
        trainer: Lightning's Trainer, of several processes.
        status: What the run's folder says of the run.
    """

    def place() -> str:
        stage = trainer.state.stage
        doing = trainer.state.fn if stage is None else stage
        return f"step {trainer.global_step}, {getattr(doing, 'value', doing)!s}"

    def at_end(reason: str) -> None:
        status.end(PeerError(reason), trainer)

    watch = ProcessWatch(trainer.global_rank, trainer.world_size, place, at_end)
    watch.start()
    return watch


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
