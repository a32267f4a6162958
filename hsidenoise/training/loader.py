"""The loader of training batches: it can go on anywhere, and tells how long it was waited for."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from hsidenoise.training.pairs import Pair


class ResumableLoader(DataLoader[Pair]):
    """A loader whose position follows from the trainer's count of batches, so it has no state of its own to save.

    The two methods tell Lightning that resuming inside an epoch is safe.

    Attributes:
        seconds_waited: Seconds that batches were waited for since the loader was made.
    """

    seconds_waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of one epoch; the time until each comes is added up."""
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the sampler asks the trainer where training stands."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the main one: when to end is for it to say.

    Args:
        worker: Number of the worker process that calls this when it starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
