"""A claim function together with what its module says about it."""

import importlib.util
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from linconv.claims.arguments import source
from linconv.claims.budgets import Budget
from linconv.claims.signatures import Parameter, parameters_of

Claim: TypeAlias = Callable[..., Any]
Kind: TypeAlias = Literal["theorem", "empirical"]

LONGEST_LINE = 600


@dataclass(frozen=True)
class Subject:
    """A claim, its name, statement, kind and parameters, and where a fresh process finds it.

    `module` is an importable name, `file` a path; both are empty where the function lives in neither (an interactive session,
    a function inside a function). `kind` is the module's constant `KIND`: "theorem" unless it says "empirical".
    """

    claim: Claim
    name: str
    statement: str
    kind: Kind
    parameters: dict[str, Parameter]
    module: str
    file: str

    @property
    def launcher(self) -> list[str]:
        """The command that runs the claim, without its flags; empty where there is none."""
        if self.claim.__name__ != "claim":
            return []
        if self.module:
            return ["python", "-m", self.module]
        return ["python", self.file] if self.file else []

    def command(self, arguments: Mapping[str, Any], seed: int | None = None) -> str:
        """The line that reproduces a run with these arguments: of the shell, or of Python where some are no flags.

        `seed` says that those were drawn with it, so that the shell can do it again.
        """
        others = [name for name, value in arguments.items() if value is not None and not self.parameters[name].domain.is_flag]
        if not self.launcher or (others and seed is None):
            modules: set[str] = set()
            given = "".join(f", {name}={source(value, modules)}" for name, value in arguments.items())
            line = f"linconv.claims.check({self.claim.__qualname__}{given})"
            return line if len(line) <= LONGEST_LINE else f"linconv.claims.check({self.claim.__qualname__}, …), written out in its snippet"
        flags = [flag for name, value in arguments.items() for flag in flags_of(self.parameters[name], value)]
        drawn = [f"--seed={seed}"] if seed is not None and "seed" not in self.parameters else []
        return shlex.join([*self.launcher, *flags, *drawn])

    def search_command(self, given: Mapping[str, Any], budget: Budget, seed: int) -> str:
        """The line that repeats a search with these parameters given: of the shell, or of Python where there is none or one is no flag."""
        plain = {name: value for name, value in given.items() if name in self.parameters and name != "seed"}
        chosen = seed != 0 or "seed" in given
        if not self.launcher or any(not self.parameters[name].domain.is_flag for name in plain):
            modules: set[str] = set()
            fixed = "".join(f", {name}={source(value, modules)}" for name, value in plain.items())
            begun = f", budget={budget.examples or repr(budget.text)}" + (f", seed={seed}" if chosen else "")
            line = f"linconv.claims.falsify({self.claim.__qualname__}{begun}{fixed})"
            return line if len(line) <= LONGEST_LINE else f"linconv.claims.falsify({self.claim.__qualname__}{begun}, …)"
        flags = [flag for name, value in plain.items() for flag in flags_of(self.parameters[name], value)]
        return shlex.join([*self.launcher, *flags, f"--falsify={budget.text}", *([f"--seed={seed}"] if chosen else [])])

    def instance(self, arguments: Mapping[str, Any]) -> str:
        """The arguments in one line, without those that are left out by default."""
        given = {name: value for name, value in arguments.items() if value is not None or self.parameters[name].default is not None}
        return ", ".join(f"{name}={_short(value)}" for name, value in given.items())


def flags_of(parameter: Parameter, value: object) -> list[str]:
    """One parameter as command-line tokens; none for a library argument, or for None where that is the default."""
    if not parameter.domain.is_flag or (value is None and parameter.default is None):
        return []
    if isinstance(value, bool) and parameter.domain.kind is bool:
        return [parameter.flag if value else f"--no-{parameter.flag[2:]}"]
    if isinstance(value, tuple):
        return [parameter.flag, *map(str, value)]
    return [f"{parameter.flag}={'none' if value is None else value}"]


def subject_of(claim: Claim) -> Subject:
    """Read a claim function and its module. `DomainError` where its signature is unusable, `ValueError` for a wrong `KIND`."""
    module = sys.modules.get(getattr(claim, "__module__", ""))
    kind: Kind = getattr(module, "KIND", "theorem")
    if kind not in get_args(Kind):
        raise ValueError(f"KIND of {claim.__module__} must be 'theorem' or 'empirical', got {kind!r}")
    name, file = _location(claim, module)
    return Subject(claim, *described(claim), kind, parameters_of(claim), name, file)


def described(claim: Claim) -> tuple[str, str]:
    """Its name, that of its file where it is called `claim`, and its statement, the docstring of its module or its own."""
    module = sys.modules.get(getattr(claim, "__module__", ""))
    name, file = _location(claim, module)
    stem = name.rpartition(".")[2] or Path(file).stem
    title = stem if claim.__name__ == "claim" and stem else claim.__name__
    return title, inspect.cleandoc(getattr(module, "__doc__", None) or claim.__doc__ or "")


def _location(claim: Claim, module: Any) -> tuple[str, str]:
    """(importable name, "") or ("", file) or ("", "")."""
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file() or getattr(module, claim.__qualname__, None) is not claim:
        return "", ""
    spec = getattr(module, "__spec__", None)
    name = spec.name if spec is not None else ""
    if name and _imports_as(name, file):
        return name, ""
    return "", str(Path(file).resolve())


def _imports_as(name: str, file: str) -> bool:
    """Whether a process in this directory, importing that name afresh, would read that file: `python -m` does not look beside a script."""
    package = sys.modules.get(name.rpartition(".")[0])
    path = package.__path__ if package is not None and "." in name else [os.getcwd(), *sys.path[1:]]
    found = PathFinder.find_spec(name, path)
    return found is not None and found.origin is not None and Path(found.origin).resolve() == Path(file).resolve()


def load(module: str, file: str) -> Any:
    """Import a module by name, or by file where the name is empty."""
    if module:
        return importlib.import_module(module)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("linconv", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _short(value: object) -> str:
    text = str(value) if isinstance(value, int | float | str | tuple | Path) or value is None else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "…"
