"""How long a search may take."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """So many examples or so many seconds; the other is None."""

    examples: int | None = None
    seconds: float | None = None

    @property
    def text(self) -> str:
        """As `read_budget` reads it."""
        return f"{self.examples}" if self.seconds is None else f"{self.seconds:.15f}".rstrip("0").rstrip(".") + "s"

    def __str__(self) -> str:
        return f"{self.examples} example" + ("s" if self.examples != 1 else "") if self.seconds is None else f"{self.seconds:g} seconds"


def read_budget(budget: object) -> Budget:
    """`50` or `"50"` examples, `"50s"` seconds; `ValueError` or `TypeError` for anything else."""
    wrong = f"budget must be a number of examples such as 50 or of seconds such as '50s', got {budget!r}; choose one of at least 1"
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise TypeError(wrong)
    matched = re.fullmatch(r"(\d+)|(\d+(?:\.\d*)?)\s*s", str(budget).strip())
    if matched is None:
        raise ValueError(wrong)
    examples, seconds = matched.groups()
    found = Budget(int(examples)) if seconds is None else Budget(None, float(seconds))
    if (found.examples or 0) < 1 and (found.seconds or 0.0) <= 0:
        raise ValueError(wrong)
    return found
