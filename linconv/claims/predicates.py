"""Predicates of annotated-types beside a strategy: a claim's hypotheses on what it is given and on what is drawn."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from annotated_types import Predicate

from linconv.claims.checks import DrawingError


def meets(rule: Predicate, value: object) -> bool:
    """Whether the value meets the hypothesis; `DrawingError` where the predicate raises, for then it says nothing."""
    try:
        return bool(rule.func(value))
    except Exception as error:
        text = " ".join(str(error).split())
        raise DrawingError(f"the predicate {rule} raised {type(error).__name__}: {text}; let it return true or false") from error


def restricted(strategy: Any, rules: Sequence[Predicate]) -> Any:
    """The Hypothesis strategy of those of its values that meet all hypotheses.

    `filter` loses the function `admits` of a strategy; it is kept here, because whoever asks it asks the predicates as well.
    """
    judge = getattr(strategy, "admits", None)
    for rule in rules:
        strategy = strategy.filter(partial(meets, rule))
    if rules and judge is not None:
        strategy.admits = judge
    return strategy


def or_none(strategy: Any) -> Any:
    """The Hypothesis strategy of None and of its values; None is the simplest, and admitted."""
    from hypothesis import strategies as st

    judge, widened = getattr(strategy, "admits", None), st.none() | strategy
    if judge is not None:
        widened.admits = lambda value, known: value is None or (known is not None and judge(value, known))
    return widened
