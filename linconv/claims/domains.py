"""A domain: a type with its constraints, what it says of itself, and the values that it takes from Python and from the command line."""

import math
import operator
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import annotated_types

from linconv.claims.predicates import meets

RELATIONS: tuple[tuple[type, str, str, Callable[[Any, Any], bool]], ...] = (
    (annotated_types.Ge, "ge", "≥", operator.ge),
    (annotated_types.Gt, "gt", ">", operator.gt),
    (annotated_types.Le, "le", "≤", operator.le),
    (annotated_types.Lt, "lt", "<", operator.lt),
)


@dataclass(frozen=True)
class Domain:
    """A type with its constraints. `kind` is int, float, bool, str, Path, "choice", "tuple", or None where there is no flag."""

    kind: Any
    hint: Any
    constraints: tuple[Any, ...] = ()
    choices: tuple[Any, ...] = ()
    items: tuple["Domain", ...] = ()
    variadic: bool = False
    optional: bool = False
    strategy: Any = None

    @property
    def is_flag(self) -> bool:
        return self.kind is not None and all(item.is_flag and not item.items for item in self.items)

    def describe(self) -> str:
        """The domain in words, as help and errors show it."""
        none = " or none" if self.optional and self.kind is not None else ""
        if self.kind == "choice":
            return "one of " + ", ".join(str(choice) for choice in self.choices) + none
        if self.kind == "tuple":
            return (
                (f"{_lengths(self.constraints)}, each " if self.variadic else f"{len(self.items)} values: ")
                + "; ".join(dict.fromkeys(d.describe() for d in self.items))
                + none
            )
        name = {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a path"}.get(self.kind, str(self.hint))
        return " ".join([name, *filter(None, [" and ".join(_phrase(rule) for rule in self.constraints)])]) + none

    def read(self, value: object, name: str) -> Any:
        """The value as the claim receives it. `TypeError` or `ValueError` that names `name` where it is outside the domain."""
        if value is None and self.optional:
            return None
        if self.kind == "choice":
            if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices):
                raise ValueError(f"{name} must be {self.describe()}, got {value!r}; choose one of them")
            return value
        if self.kind == "tuple":
            return self._read_tuple(value, name)
        read = self._convert(value, name)
        for rule in () if self.kind is None else self.constraints:  # those of a library argument are read already
            if not _holds(rule, read):
                raise ValueError(f"{name} must be {self.describe()}, got {value!r}; choose a value in that range")
        return read

    def holds(self, value: object) -> bool:
        """Whether the value lies in the domain."""
        try:
            self.read(value, "")
        except (TypeError, ValueError):
            return False
        return True

    def parse(self, texts: Sequence[str]) -> Any:
        """Command-line tokens as a value, to be checked by `read`. `ValueError` where they are no such thing; nothing is rounded."""
        if self.optional and list(texts) == ["none"]:
            return None
        if self.kind == "tuple":
            items = self.items * len(texts) if self.variadic else self.items
            return tuple(item.parse([text]) for item, text in zip(items, texts, strict=True))
        text = texts[-1]
        if self.kind == "choice":
            return next((choice for choice in self.choices if str(choice) == text), text)
        try:
            return self.kind(text)
        except ValueError:
            raise ValueError(f"must be {self.describe()}, got {text!r}") from None

    def _convert(self, value: object, name: str) -> Any:
        if self.kind is None:
            return _library_argument(self, value, name)
        if self.kind is Path and isinstance(value, str):
            return Path(value)
        if self.kind in (bool, str, Path):
            if not isinstance(value, self.kind):
                raise self.wrong(value, name)
            return value
        if isinstance(value, bool | str):
            raise self.wrong(value, name)
        try:
            number = operator.index(value) if self.kind is int else float(value)  # type: ignore[arg-type]  # refused just below
        except (TypeError, ValueError):
            raise self.wrong(value, name) from None
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value!r}; choose {self.describe()}")
        return number

    def wrong(self, value: object, name: str) -> TypeError:
        return TypeError(f"{name} must be {self.describe()}, got {value!r} ({type(value).__name__}); pass it in that type")

    def _read_tuple(self, value: object, name: str) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be a tuple, {self.describe()}, got {value!r}; write ({value!r},) for a single entry")
        if not self.variadic and len(value) != len(self.items):
            raise ValueError(f"{name} must be {self.describe()}, got {len(value)} values; give {len(self.items)}")
        for rule in self.constraints:
            if not _holds(rule, value):
                raise ValueError(f"{name} must have {_phrase(rule)}, got {len(value)} values; give another number of them")
        items = self.items * len(value) if self.variadic else self.items
        return tuple(item.read(entry, f"{name}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True)))


def _lengths(rules: Sequence[Any]) -> str:
    """How many entries a tuple of any length may have, in words."""
    least = max((rule.min_length for rule in rules if isinstance(rule, annotated_types.MinLen)), default=0)
    most = min((rule.max_length for rule in rules if isinstance(rule, annotated_types.MaxLen)), default=None)
    return f"{least} or more values" if most is None else f"{least} to {most} values"


def _phrase(rule: Any) -> str:
    for kind, attribute, symbol, _ in RELATIONS:
        if isinstance(rule, kind):
            return f"{symbol} {getattr(rule, attribute)}"
    if isinstance(rule, annotated_types.Predicate):
        return f"with {rule}"
    if isinstance(rule, annotated_types.MinLen):
        return f"at least {rule.min_length} entries"
    if isinstance(rule, annotated_types.MaxLen):
        return f"at most {rule.max_length} entries"
    return f"a multiple of {rule.multiple_of}"


def _holds(rule: Any, value: Any) -> bool:
    for kind, attribute, _, relation in RELATIONS:
        if isinstance(rule, kind):
            return bool(relation(value, getattr(rule, attribute)))
    if isinstance(rule, annotated_types.MinLen):
        return len(value) >= rule.min_length
    if isinstance(rule, annotated_types.MaxLen):
        return len(value) <= rule.max_length
    return bool(value % rule.multiple_of == 0)


def _library_argument(domain: Domain, value: object, name: str) -> object:
    hint = domain.hint
    classes = tuple(part for part in (get_args(hint) or (hint,)) if isinstance(part, type))
    if classes and get_origin(hint) in (None, Union, types.UnionType) and not isinstance(value, classes):
        raise domain.wrong(value, name)
    for rule in domain.constraints:
        if not meets(rule, value):
            raise ValueError(f"{name} does not meet the claim's hypothesis {rule}; pass one that does")
    return value
