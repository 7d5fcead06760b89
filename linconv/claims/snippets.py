"""A run as Python code that repeats it."""

from collections.abc import Mapping
from typing import Any

from linconv.claims.arguments import source
from linconv.claims.subject import Subject


def snippet(subject: Subject, arguments: Mapping[str, Any]) -> str:
    """A program that runs the claim on these arguments again and prints its verdict; tensors are written out entry by entry."""
    modules: set[str] = set()
    given = [f"    {name}={source(value, modules)},\n" for name, value in arguments.items()]
    name = subject.claim.__name__
    if subject.module:
        where = f"from {subject.module} import {name}\n"
    elif subject.file:
        where = f"from linconv.claims.subject import load\n\n{name} = load('', {subject.file!r}).{name}\n"
    else:
        where = f"# Run this where the function {subject.claim.__qualname__} is defined.\n"
    imports = "".join(f"import {module}\n" for module in sorted(modules))
    return f"{imports}from linconv.claims import check\n{where}\nverdict = check(\n    {name},\n{''.join(given)})\nprint(verdict)\n"
