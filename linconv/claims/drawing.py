"""Instances of a claim: its parameters drawn, independently or by Hypothesis.

Flags are drawn by the law that `linconv.claims.ranges.at_random` states, other parameters from their strategies.  A strategy's
own draws are not independent of each other, for Hypothesis steers away from what it has seen; the third example of a run with a
seed of its own is, and has a fixed law.  (The second never makes its first choice as the first did.)  One time in sixteen the first and
simplest example is taken, so that no value is left out.  Where filters leave a run without a third example the next seed is taken; after
a few there is no draw, and none is counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from random import Random
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from torch import Tensor

from linconv.claims.arguments import tensors_of
from linconv.claims.checks import DrawingError, NothingDrawn
from linconv.claims.domains import Domain
from linconv.claims.measure import Number
from linconv.claims.ranges import at_random, ends, is_searchable, lengths
from linconv.claims.signatures import Parameter, validated
from linconv.claims.subject import Subject

SIMPLEST_ONE_IN = 16
RUNS = 4  # of Hypothesis for one independent draw: each gives up where filters reject some hundreds of examples in a row
REJECTING = 50  # attempts of a run with too few examples, beyond which it was the filters that allowed no more
THIRD = 3
GENERIC_AMONG = 8
SEEDS = 2**32


class Violated(Exception):
    """What a visitor raises to stop an exploration at a counterexample."""


@dataclass(frozen=True)
class Space:
    """The parameters of a claim that are searched, and the arguments that its first run had.

    `flags` are drawn from their domains, `drawn` from their strategies; the others keep the value of `start`.
    """

    flags: tuple[Parameter, ...]
    drawn: tuple[Parameter, ...]
    start: dict[str, Any]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.flags, *self.drawn)

    def draw(self, rng: Random) -> dict[str, Any] | None:
        """An instance, independent of all others if its `rng` is; None where filters reject too much to draw from the stated law."""
        chosen = {parameter.name: at_random(parameter.domain, rng) for parameter in self.flags}
        if not self.drawn:
            return self.start | chosen
        run = self._run(rng)
        return None if run is None else self.start | chosen | run[1]

    def _run(self, rng: Random) -> tuple[int, dict[str, Any]] | None:
        """Independent values of the parameters that have strategies, and the seed of the run that gave them."""
        simplest = rng.randrange(SIMPLEST_ONE_IN) == 0
        for _ in range(RUNS):
            seed, attempts = rng.randrange(SEEDS), Attempts()
            try:
                examples = first_examples(attempts.counted(fixed_dictionaries(self.drawn)), seed, THIRD)
            except NothingDrawn:
                continue
            if len(examples) == THIRD or attempts.count <= REJECTING:  # a strategy of one value has no other
                return seed, examples[0 if simplest else -1]
        return None

    def draw_again(self, rng: Random, visit: Callable[[dict[str, Any]], object]) -> None:
        """The strategies' part of what `draw` gave with this `rng`, and simpler examples of it as long as the visitor raises `Violated`."""
        for parameter in self.flags:
            at_random(parameter.domain, rng)
        run = self._run(rng)
        if run is not None:
            explore(Attempts().counted(fixed_dictionaries(self.drawn)), visit, seed=run[0], examples=THIRD, shrink=True)

    def strategy(self) -> st.SearchStrategy[dict[str, Any]]:
        """Instances as a Hypothesis strategy."""
        flags = {parameter.name: strategy_of(parameter.domain) for parameter in self.flags}
        return st.fixed_dictionaries(flags | {parameter.name: parameter.domain.strategy for parameter in self.drawn})


class Attempts:
    """How many examples Hypothesis has begun: with filters they are more than it shows."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        def begin() -> None:
            self.count += 1

        return st.tuples(st.builds(begin), strategy).map(itemgetter(1))


def fixed_dictionaries(drawn: Sequence[Parameter]) -> st.SearchStrategy[dict[str, Any]]:
    """Parameters that have strategies, as one strategy of their values by name."""
    return st.fixed_dictionaries({parameter.name: parameter.domain.strategy for parameter in drawn})


def space_of(subject: Subject, start: dict[str, Any], fixed: Mapping[str, Any]) -> Space:
    free = [parameter for name, parameter in subject.parameters.items() if name not in fixed]
    flags = tuple(parameter for parameter in free if parameter.domain.is_flag and is_searchable(parameter.domain))
    return Space(flags, tuple(parameter for parameter in free if parameter.domain.strategy is not None), start)


def explore(strategy: st.SearchStrategy[Any], visit: Callable[[Any], object], *, seed: int, examples: int, shrink: bool = False) -> bool:
    """Show a visitor up to so many examples; True where it raised `Violated`, which ends the run.

    With `shrink` Hypothesis goes on from there to ever simpler examples that raise it.  No database and no profile has a say.
    `DrawingError` where the strategy yields nothing, or it or a predicate raises.
    """
    failed = False
    phases = [Phase.generate, Phase.target, *([Phase.shrink] if shrink else [])]

    @seeded(seed)
    @settings(
        max_examples=examples,
        phases=phases,
        database=None,
        derandomize=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def run(value: Any) -> None:
        nonlocal failed
        try:
            visit(value)
        except Violated:
            failed = True
            raise

    try:
        run()
    except Violated:
        return True
    except Unsatisfiable:
        raise NothingDrawn("nothing can be drawn from the claim's strategies: their filters reject everything") from None
    except DrawingError:  # of a predicate
        raise
    except Exception as error:
        if not failed:  # one that failed and then did not is of a claim that is not a function of its arguments
            raise DrawingError(f"drawing from the claim's strategies raised {type(error).__name__}: {error}") from error
    return failed


def first_examples(strategy: st.SearchStrategy[Any], seed: int, count: int) -> list[Any]:
    """The first examples of a run with this seed, the simplest one first; at least one, for a strategy that has no more."""
    found: list[Any] = []
    explore(strategy, found.append, seed=seed, examples=count)
    return found


def completed(subject: Subject, given: Mapping[str, object], seed: int) -> dict[str, Any]:
    """The arguments of a run: those given, checked against their domains, defaults, and what has neither drawn with the seed.

    Of a few draws the one with the most different numbers is taken, for degenerate ones cannot tell a wrong variant from a theorem.
    """
    missing = {name: p.domain.strategy for name, p in subject.parameters.items() if is_missing(p, given) and p.domain.strategy is not None}
    if missing:
        examples = first_examples(st.fixed_dictionaries(missing), seed, GENERIC_AMONG)
        given = dict(given) | max(examples, key=_variety)
    return validated(subject.parameters, given)


def is_missing(parameter: Parameter, given: Mapping[str, object]) -> bool:
    return parameter.name not in given and not parameter.has_default


def _variety(values: Mapping[str, Any]) -> int:
    return sum(int(_real(tensor.detach()).unique().numel()) for value in values.values() for tensor in tensors_of(value))


def _real(tensor: Tensor) -> Tensor:
    """Real and imaginary parts of a complex tensor as numbers of their own, which, unlike it, can be sorted."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def strategy_of(domain: Domain) -> st.SearchStrategy[Any]:
    """The domain of a flag as a Hypothesis strategy."""
    if domain.kind is bool:
        found: st.SearchStrategy[Any] = st.booleans()
    elif domain.kind == "choice":
        found = st.sampled_from(domain.choices)
    elif domain.kind == "tuple" and domain.variadic:
        least, most = lengths(domain)
        found = st.lists(strategy_of(domain.items[0]), min_size=least, max_size=most).map(tuple)
    elif domain.kind == "tuple":
        found = st.tuples(*map(strategy_of, domain.items))
    else:
        low, high = ends(domain)
        whole = st.integers(int(low) if low > -float("inf") else None, int(high) if high < float("inf") else None)
        found = whole if domain.kind is int else st.floats(*_finite(low, high), allow_nan=False, allow_infinity=False)
    if domain.kind in (int, float):
        found = found.filter(domain.holds)
    return st.none() | found if domain.optional else found


def _finite(low: Number, high: Number) -> tuple[Number | None, Number | None]:
    return low if low > -float("inf") else None, high if high < float("inf") else None
