"""The precision ladder: a failure that another precision takes back is conditioning and no falsehood."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from linconv.claims.arguments import is_rebuildable, mapped, tensors_of
from linconv.claims.checks import Check
from linconv.claims.subject import Subject

# The rounding units of float32 and float64 differ by 2²⁹. An error that is rounding shrinks by about that, one that is not by
# nothing; the line is drawn half-way between on a logarithmic scale.
SHRINKAGE = 2.0**14.5
CONDITIONING, NOT_REACHED = "conditioning, not falsehood: the error is", "undecided: the check was not reached in"
PAIRS = ((torch.float32, torch.float64), (torch.complex64, torch.complex128))
PRECISIONS = {here: there for pair in PAIRS for here, there in (pair, pair[::-1])}

Rerun = Callable[[dict[str, Any]], Sequence[Check]]


def precision_ladder(subject: Subject, arguments: dict[str, Any], failing: Sequence[Check], rerun: Rerun) -> str:
    """What the other precision says about the failures, in words; empty where there is none.

    The claim's own `dtype` is changed where it declares one, else that of the tensors and networks among the arguments.
    """
    declared = subject.parameters.get("dtype")
    given = arguments.get("dtype")
    if declared is not None and {"float32", "float64", given} <= set(declared.domain.choices) and given in ("float32", "float64"):
        other = "float64" if given == "float32" else "float32"
        return _compared(failing, rerun(arguments | {"dtype": other}), given, other)
    precisions = {tensor.dtype for value in arguments.values() for tensor in tensors_of(value)} & set(PRECISIONS)
    if declared is not None or len(precisions) != 1 or not all(map(is_rebuildable, arguments.values())):
        return ""
    (here,) = precisions
    there = PRECISIONS[here]
    cast = {name: mapped(value, lambda tensor: _cast(tensor, there)) if tensors_of(value) else value for name, value in arguments.items()}
    found = _compared(failing, rerun(cast), _word(here), _word(there))
    # A body that mixes the tensors with others of a fixed precision cannot follow, which says nothing.
    return "" if found.startswith(NOT_REACHED) else found


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in PRECISIONS else tensor


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compared(failing: Sequence[Check], others: Sequence[Check], given: str, other: str) -> str:
    again = {check.name: check for check in others}
    finer = other in ("float64", "complex128")
    lasting = [check for check in failing if check.name in again and not _shrinks(check, again[check.name], finer)]
    if not lasting:
        seen = [f"{again[check.name].error:.3g}" for check in failing if check.name in again]
        return f"{CONDITIONING} {failing[0].error:.3g} in {given}, {seen[0]} in {other}" if seen else f"{NOT_REACHED} {other}"
    return f"the error stays in {other} ({again[lasting[0].name].error:.3g})"


def _shrinks(here: Check, there: Check, there_is_finer: bool) -> bool:
    """Whether the error falls with the rounding unit. An error that cannot be compared counts as one that does."""
    if there_is_finer and there.outcome != "fail":
        return True
    if here.error == there.error:
        return False
    coarse, fine = (here.error, there.error) if there_is_finer else (there.error, here.error)
    if math.isnan(coarse) or math.isnan(fine):
        return True
    saturated = coarse >= 0.1 and coarse >= 100 * fine
    return fine * SHRINKAGE <= coarse or saturated
