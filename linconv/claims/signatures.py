"""One annotation per parameter: its type, its domain, its help.

`Annotated[int, Interval(ge=1, le=8), "number of layers"]` gives the flag `--depth`, the check of its value at the command line
and in library calls, and the help line. Types: `int`, `float`, `bool`, `str`, `Path`, `Literal`, `tuple` of these, each with
`| None`. Domains: the bounds, `MultipleOf` and `Len` of annotated-types, on a tuple's items too. Numbers need a domain. A
parameter of any other type (a tensor, a network) is an argument of the library call and never a flag. With a Hypothesis strategy,
`Annotated[LinearCNN, strategies.linear_cnns()]`, it is drawn where it is not given, and counterexamples are sought in it; with `| None`
None is drawn as well. A `Predicate` of annotated-types is a hypothesis on it: nothing is drawn that does not meet it, and to pass such a
value is a `ValueError`.
"""

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types

from linconv.claims.domains import RELATIONS, Domain
from linconv.claims.predicates import or_none, restricted

EXAMPLE = "Annotated[int, Interval(ge=1, le=8)]"


class DomainError(TypeError):
    """The claim's own signature is unusable: a parameter without type or domain, or one that cannot be passed by name."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a claim: name, domain, default (`inspect.Parameter.empty` where it has none) and help."""

    name: str
    domain: Domain
    default: Any
    help: str

    @property
    def has_default(self) -> bool:
        return self.default is not inspect.Parameter.empty

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def parameters_of(claim: Callable[..., object]) -> dict[str, Parameter]:
    """The parameters of a claim by name. `DomainError` where its signature does not say what may be passed."""
    hints = get_type_hints(claim, include_extras=True)
    return {name: _parameter(name, given, hints) for name, given in inspect.signature(claim).parameters.items()}


def validated(parameters: Mapping[str, Parameter], given: Mapping[str, object]) -> dict[str, Any]:
    """Every parameter with its value: the given one, checked against its domain, or the default.

    `TypeError` for a name that the claim does not have, and for one without default that is missing.
    """
    for name in given:
        if name not in parameters:
            raise TypeError(f"the claim has no parameter {name!r}; it has {', '.join(parameters) or 'none'}")
    for name, parameter in parameters.items():
        if name not in given and not parameter.has_default:
            raise TypeError(f"the claim needs {name}: {parameter.domain.describe()}; give it by name")
    return {name: p.domain.read(given[name], name) if name in given else p.default for name, p in parameters.items()}


def _parameter(name: str, given: inspect.Parameter, hints: Mapping[str, Any]) -> Parameter:
    if given.kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise DomainError(f"parameter {name} of the claim cannot be passed by name; write def claim(*, {name.strip('*')}: {EXAMPLE} = …)")
    if name in ("json", "plot", "falsify", "help"):
        raise DomainError(f"parameter {name} of the claim has the name of an output flag; call it otherwise")
    if name not in hints:
        raise DomainError(f"parameter {name} of the claim has no annotation; write {name}: {EXAMPLE}")
    domain = _domain(hints[name])
    for part in (domain, *domain.items):
        if part.kind in (int, float) and not part.constraints:
            raise DomainError(f"parameter {name} of the claim has no domain; write {name}: {EXAMPLE}")
    parameter = Parameter(name, domain, given.default, " ".join(_texts(hints[name])))
    if parameter.has_default:
        _check_default(parameter)
    return parameter


def _check_default(parameter: Parameter) -> None:
    if parameter.default is None and not parameter.domain.is_flag:
        return
    try:
        parameter.domain.read(parameter.default, parameter.name)
    except (TypeError, ValueError) as error:
        raise DomainError(f"the default of a parameter of the claim is outside its own domain: {error}") from None


def _domain(hint: Any) -> Domain:
    metadata: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *extra = get_args(hint)
        metadata += extra
    arguments = get_args(hint)
    drawn = _drawn(hint, metadata)
    if drawn.strategy is not None:
        return drawn
    if get_origin(hint) in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1 < len(arguments):
            return _optional(_domain(inner[0]), hint, metadata)
        return Domain(None, hint)
    if get_origin(hint) is Literal:
        return Domain("choice", hint, choices=arguments)
    if get_origin(hint) is tuple:
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        items = tuple(_domain(argument) for argument in (arguments[:1] if variadic else arguments))
        return Domain("tuple", hint, _constraints(metadata), items=items, variadic=variadic)
    kind = hint if hint in (int, float, bool, str, Path) else None
    if kind is None:
        return drawn
    return Domain(kind, hint, _constraints(metadata) if kind in (int, float) else ())


def _optional(found: Domain, hint: Any, metadata: list[Any]) -> Domain:
    """The domain together with None, which is then drawn too; predicates beside the union bind what is not None."""
    if found.kind is None:
        drawn = _drawn(found.hint | None, metadata)
        rules = found.constraints + drawn.constraints
        strategy = None if found.strategy is None else or_none(restricted(found.strategy, drawn.constraints))
        return Domain(None, drawn.hint, rules, optional=True, strategy=strategy)
    rules = found.constraints + _constraints(metadata)
    return Domain(found.kind, hint, rules, found.choices, found.items, found.variadic, optional=True)


def _drawn(hint: Any, metadata: list[Any]) -> Domain:
    """A library argument, with its strategy and its predicates; only where Hypothesis is imported can there be a strategy."""
    hypothesis = sys.modules.get("hypothesis.strategies")
    strategies = [entry for entry in metadata if hypothesis is not None and isinstance(entry, hypothesis.SearchStrategy)]
    predicates = tuple(entry for entry in metadata if isinstance(entry, annotated_types.Predicate))
    strategy = restricted(strategies[-1], predicates) if strategies else None
    return Domain(None, hint, predicates, optional=type(None) in get_args(hint), strategy=strategy)


def _constraints(metadata: list[Any]) -> tuple[Any, ...]:
    known = (*(relation[0] for relation in RELATIONS), annotated_types.MultipleOf, annotated_types.MinLen, annotated_types.MaxLen)
    flat: list[Any] = []
    for entry in metadata:
        flat += list(entry) if isinstance(entry, annotated_types.GroupedMetadata) else [entry]
    return tuple(entry for entry in flat if isinstance(entry, known))


def _texts(hint: Any) -> Iterator[str]:
    if get_origin(hint) in (Union, types.UnionType):  # Annotated[int, "help"] | None
        for argument in get_args(hint):
            yield from _texts(argument)
    for entry in getattr(hint, "__metadata__", ()):
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, annotated_types.DocInfo):
            yield entry.documentation
