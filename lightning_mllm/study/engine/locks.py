"""Locks between the processes and machines that share the folder of a study.

A process that dies loses its locks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_mllm.errors import ConfigError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[int | None]:
    """Hold a lock.

    Args:
        path: The file to lock; it is created if it is missing.
        wait: Whether to wait while another process has the lock.

    Yields:
        The file descriptor that holds it; a child process that inherits it holds it, too. None if
        another process has the lock.

    Raises:
        ConfigError: The file system, or the operating system, has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not _lock(file.fileno(), path, wait=wait):
            yield None
        else:
            yield file.fileno()


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    try:
        import fcntl  # noqa: PLC0415  # Windows has none, but can use the rest of the package
    except ImportError:
        raise ConfigError(
            "`lightning study` locks its files, which needs Linux or macOS."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise ConfigError(
            f"Files can't be locked in {path.parent} ({error.strerror}), so that two processes "
            "could run the same cell. Set the study's option root to a folder on a file system "
            "with locks."
        ) from error
    return True
