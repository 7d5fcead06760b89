"""Ends a solve early: at a time limit, or where the caller says so."""

import math
import time
from collections.abc import Callable

from linconv.solvers.problem import Solution


class Monitor:
    """Called by a solver with its bracket so far; False tells it to return that.

    The clock is looked at only where there is a limit: without one, and without a callback, results do not depend on time.
    """

    def __init__(self, time_limit: float | None = None, on_progress: Callable[[Solution], bool | None] | None = None):
        self._end = math.inf if time_limit is None else time.monotonic() + time_limit
        self._on_progress = on_progress
        self.stopped = False

    @property
    def attentive(self) -> bool:
        """Whether anybody listens: if not, a solver need not make up a `Solution` to report."""
        return self._on_progress is not None or self._end < math.inf

    def late(self) -> bool:
        """Whether the time is up; for places that have no new bracket to report."""
        self.stopped = self.stopped or (self._end < math.inf and time.monotonic() >= self._end)
        return self.stopped

    def __call__(self, solution: Solution) -> bool:
        """Report the bracket so far; whether to go on."""
        if self._on_progress is not None and self._on_progress(solution) is False:
            self.stopped = True
        return not self.late()
