"""Knows the last moment of a fit from which it could go on, and lets Ctrl-C wait for one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.trainer.call import _call_callbacks_state_dict
from lightning.pytorch.utilities.exceptions import SIGTERMException

_NOT_STOPPED, _BY_SIGTERM = 0, 2  # what a process says at the end of a step; 1 is Ctrl-C


class StepGuard:
    """Remembers what a checkpoint of the last finished step says besides weights and optimiser.

    Together with the weights, this is a whole checkpoint as long as no step has changed them since.
    While a step does, Ctrl-C waits until its numbers are logged, which is a moment later; pressed
    twice, it does not wait.

    Processes that share one model write a checkpoint together, so they also stop together: Ctrl-C
    and SIGTERM always wait for the end of a step, at which each process says what it got.

    Attributes:
        moment: Entries of the checkpoint; None before the first step.
        is_whole: Whether the weights are those of the moment.
    """

    def __init__(self) -> None:
        self.moment: dict[str, Any] | None = None
        self.is_whole = False
        self._ask_all: Callable[[int], int] | None = None
        self._stopped = _NOT_STOPPED  # by whom, as all processes agreed
        self._terminated = False
        self._other_terminate: Any = None
        self._holds = self._pressed = False
        self._earlier: Any = None  # what answers Ctrl-C outside of a fit
        self._listens = False

    def start(self, ask_all: Callable[[int], int] | None = None) -> None:
        """Answer Ctrl-C from now on; only the main thread can.

        Args:
            ask_all: Gives the highest of the numbers of all processes, where they share one model.
        """
        self.moment, self.is_whole, self._holds, self._pressed = None, False, False, False
        self._ask_all, self._stopped, self._terminated = ask_all, _NOT_STOPPED, False
        if threading.current_thread() is threading.main_thread() and not self._listens:
            self._earlier = signal.signal(signal.SIGINT, self._interrupt)
            if ask_all is not None:  # Lightning's own answer would wait for processes that train
                self._other_terminate = signal.signal(signal.SIGTERM, self._terminate)
            self._listens = True

    def stop(self) -> None:
        """Let Ctrl-C do what it did before, unless someone else answers it by now."""
        if self._listens and signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, self._earlier)
        if self._listens and signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.signal(signal.SIGTERM, self._other_terminate)
        self._listens = False

    @property
    def can_write(self) -> bool:
        """Whether all processes that are needed for a checkpoint are there."""
        return self._ask_all is None or self._stopped != _NOT_STOPPED

    def begin_update(self) -> None:
        """From here on the weights change."""
        self.is_whole, self._holds = False, True

    def end_update(self, trainer: L.Trainer) -> None:
        """The step is done: remember where the fit is."""
        connector = trainer._checkpoint_connector
        states, loops = _call_callbacks_state_dict(trainer), connector._get_loops_state_dict()
        epoch_loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        if fetcher is not None and epoch_loop._should_check_val_fx(fetcher):
            _put_before_validation(loops["fit_loop"])
        self.moment = {
            "epoch": trainer.current_epoch,
            "loops": loops,
            "callbacks": {key: _copy_state(state) for key, state in states.items()},
        }
        data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and (state := data.state_dict()):
            self.moment[type(data).__qualname__] = _copy_state(state)
        self.is_whole = True

    def let_go(self) -> None:
        """The step's numbers are logged.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed during the step.
            SIGTERMException: A process that shares the model got SIGTERM.
        """
        self._holds = False
        if self._ask_all is not None:
            own = _BY_SIGTERM if self._terminated else int(self._pressed)
            self._stopped = self._ask_all(own)
            if self._stopped == _BY_SIGTERM:
                raise SIGTERMException
            self._pressed = self._stopped != _NOT_STOPPED
        if self._pressed:
            raise KeyboardInterrupt

    def _terminate(self, number: int, frame: Any) -> None:
        self._terminated = True

    def _interrupt(self, number: int, frame: Any) -> None:
        waits = self._holds or self._ask_all is not None
        if waits and not self._pressed:
            self._pressed = True
        elif callable(self._earlier):
            self._earlier(number, frame)
        else:
            raise KeyboardInterrupt


def _put_before_validation(loop: dict[str, Any]) -> None:
    """Let a fit that goes on after a step begin with the validation that is due after it.

    Lightning would leave it out: as it counts, the step's batch is not quite done. Now it is, and a
    first batch of the validation has begun, for which Lightning begins the validation anew.
    """
    step, validation = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
    for counts in (step["total"], step["current"]):
        counts["completed"] = counts["processed"]
    done = validation["total"]["completed"]
    for counts, before in ((validation["total"], done), (validation["current"], 0)):
        counts |= {"ready": before + 1, "started": before + 1}
        counts |= {"processed": before, "completed": before}


def _copy_state(state: Any) -> Any:
    """Copy what grows in place: lists and dicts of a callback's state, not what they hold."""
    if not isinstance(state, dict):
        return state
    kinds = (list, dict)
    return {
        key: value.copy() if isinstance(value, kinds) else value for key, value in state.items()
    }
