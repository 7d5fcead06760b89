"""A network of the user's own as a claim is given it: read, audited by name, imported, and compared with its import.

A claim takes it by the three parameters below and hands them to `on_given_network`; what the theorem says of it is the claim's business.
Where a hypothesis fails, what holds instead comes before NOT APPLICABLE: the theorem without the biases, or the claim's own nearest form.
"""

import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from annotated_types import Interval, Len
from torch import nn

import linconv as lc
from linconv import strategies
from linconv.claims import Check, Note, Progress, UsageError, agree, control, not_applicable
from linconv.hypotheses import Hypothesis, audit

Event: TypeAlias = Check | Note | Progress

ModulePath = Annotated[str, "a network of your own, path/to/file.py:name: it is audited, and the theorem is checked on it"] | None
InputShape = Annotated[tuple[Annotated[int, Interval(ge=1, le=4096)], ...], Len(2, 4), "C H W of its images; a LinearCNN knows"] | None
SMALL = strategies.linear_cnns(grid=strategies.grids(max_dims=2, max_sites=9), max_depth=3, max_channels=2, max_outputs=2)
Net = Annotated[nn.Module, SMALL, "the same from Python: the network itself"] | None  # and a search variable of --falsify

# Of weights that are fewer than all which a function of this kind can have: see `linconv.hypotheses`.
FREEDOM = ("full kernel", "dense", "within the grid", "free readout", "own weights")
IMAGES = 8


@dataclass(frozen=True)
class Given:
    """A module and, where it is a linear CNN, its import, which computes the same; both in double precision, copies of the user's."""

    module: nn.Module
    imported: lc.LinearCNN | None
    input_shape: tuple[int, ...]
    missing: tuple[Hypothesis, ...]
    generator: torch.Generator

    @property
    def net(self) -> lc.LinearCNN:
        """The import, of which theorems speak; a nearest form has to ask whether there is one."""
        assert self.imported is not None
        return self.imported

    @property
    def squares(self) -> float:
        """Σ‖w‖² of the module's own parameters."""
        return math.fsum(float(parameter.detach().square().sum()) for parameter in self.module.parameters())

    def lacks(self, name: str) -> bool:
        return any(hypothesis.name == name for hypothesis in self.missing)


def none_known(_: Given) -> Iterator[Event]:
    yield Note("nearest form: none is known")


def on_given_network(
    theorem: Callable[[Given], Iterator[Event]],
    net: nn.Module | None,
    module: str | None,
    input_shape: tuple[int, ...] | None,
    generator: torch.Generator,
    *,
    needs: Collection[str] = (),
    least_depth: int = 1,
    nearest: Callable[[Given], Iterator[Event]] = none_known,
) -> Iterator[Event]:
    """The audit, then what the theorem says; NOT APPLICABLE by name where it is no linear CNN or lacks one of the `needs` of the theorem.

    Before the latter comes what holds in its place, `nearest`.
    """
    own = load_network(module or "") if net is None else net
    if isinstance(own, lc.LinearCNN):  # it knows; in a search the flag is drawn apart from the network
        input_shape = (own.weights[0].shape[1], *own.grid)
    elif input_shape is None:
        raise UsageError("input_shape: expected the shape of one image with module or net, such as 3 32 32, got none")
    try:
        found = audit(own, input_shape)
    except ValueError as error:
        raise UsageError(str(error)) from error
    yield from described(found)
    missing = tuple(h for h in found if not h.holds)
    given = Given(copy.deepcopy(own).double().requires_grad_(), None, input_shape, missing, generator)
    if any(h.linear for h in missing):
        if all(h.name == "bias-free" for h in missing if h.linear):
            same = partial(on_given_network, theorem, needs=needs, least_depth=least_depth, nearest=nearest)
            yield from _without_biases(given, same)
        else:
            yield from nearest(given)
        yield not_applicable("linear CNN", lacking(h for h in missing if h.linear or h.name in needs))
        return
    imported = yield from _imported(own, given)
    if imported is None:
        return
    given = replace(given, imported=imported)
    if any(h.name in needs for h in missing):
        yield from nearest(given)
        yield not_applicable("hypotheses", lacking(h for h in missing if h.name in needs))
        return
    if imported.depth < least_depth:
        yield from none_known(given)
        yield not_applicable("depth", f"expected at least {least_depth} layers, got {imported.depth}: there is no hidden convolution")
        return
    widths = "→".join(str(n) for n in (input_shape[0], *(w.shape[0] for w in imported.weights)))
    grid = "×".join(map(str, imported.grid))
    yield Note(
        f"of the given network: depth {imported.depth}, widths {widths}, grid {grid}; what describes other networks is not used",
        in_scope=True,
    )
    yield from theorem(given)


def _imported(own: nn.Module, given: Given) -> Generator[Event, None, lc.LinearCNN | None]:
    """The network in double precision, after checks that it computes what the module does; None where it does not, or computes nothing."""
    try:
        net = (copy.deepcopy(own) if isinstance(own, lc.LinearCNN) else lc.from_torch(own, given.input_shape)).double()
    except lc.NotLinearCNNError as error:
        yield not_applicable("linear CNN", str(error))
        return None
    if not bool(lc.frequency_blocks(net).values.any()):
        yield not_applicable("a function", "the network computes 0, of which nothing can be tested")
        return None
    compared = list(map_checks(own, net, given.input_shape, given.generator))
    if not compared[0].passed:  # a fault of the import, or of the module, and not of the theorem
        yield not_applicable("linear CNN", f"the module does not compute what its layers say: relative error {compared[0].error:.1e}")
        return None
    yield from compared
    return net


def _without_biases(given: Given, same: Callable[..., Iterator[Event]]) -> Iterator[Event]:
    """What holds of a linear CNN with biases: f(x) − f(0) is computed by its weights alone, of which the theorem speaks."""
    weights = copy.deepcopy(given.module)
    for layer in weights.modules():
        if getattr(layer, "bias", None) is not None:
            layer.register_parameter("bias", None)
    yield Note("nearest form: f(x) − f(0) is what the module computes without its biases; what follows is about that", in_scope=True)
    x = torch.randn(IMAGES, *given.input_shape, dtype=torch.float64, generator=given.generator)
    with torch.no_grad():
        try:
            observed, scale = given.module(x) - given.module(torch.zeros_like(x)), float(given.module(x).abs().max())
        except RuntimeError as error:
            yield Note(f"it cannot be run: {' '.join(str(error).split())}")
            return
        yield agree("f(x) − f(0) without biases", observed, weights(x), size=math.prod(given.input_shape), scale=scale)
    for event in same(weights, None, given.input_shape, given.generator):
        if isinstance(event, Check) and event.outcome == "not applicable":  # said of the module as it is, by the caller
            return
        yield event


def lacking(missing: Iterable[Hypothesis]) -> str:
    return "; ".join(f"{h.layer}: not {h.name} ({h.found})" for h in missing)


def load_network(path: str) -> nn.Module:
    """The network that `file.py:name` names: a module, or a function without arguments that builds one. `UsageError` in one line."""
    file, _, name = path.rpartition(":")
    if not file or not name:
        raise UsageError(f"module: expected path/to/file.py:name, got {path!r}; name a network, or a function that builds one")
    spec = importlib.util.spec_from_file_location(f"own_network_{Path(file).stem}", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UsageError(f"module: expected a Python file, got {file}; check the path")
    loaded = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(file).resolve().parent))  # as `python file.py` has it
    try:
        spec.loader.exec_module(loaded)
        found: Any = getattr(loaded, name)
        net = found if isinstance(found, nn.Module) else found()
    except AttributeError as error:
        raise UsageError(f"module: {file} has no usable {name!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"module: {path} raised {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(net, nn.Module):
        raise UsageError(f"module: expected {name} to be or to build a torch.nn.Module, got {type(net).__name__}")
    return net


def described(found: Sequence[Hypothesis]) -> Iterator[Note]:
    """One line a layer, what was found only where it fails."""
    for layer in dict.fromkeys(h.layer for h in found):
        parts = (f"{h.name} ✓" if h.holds else f"{h.name} ✗ ({h.found})" for h in found if h.layer == layer)
        yield Note(f"{layer}: {', '.join(parts)}")


def map_checks(net: nn.Module, imported: lc.LinearCNN, input_shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Check]:
    """The predictor in frequency space computes what the module computes."""
    dtype = next((p.dtype for p in net.parameters()), torch.float64)
    x = torch.randn(IMAGES, *input_shape, dtype=torch.float64, generator=generator).to(dtype)
    with torch.no_grad():
        observed = net(x)
    beta = lc.frequency_blocks(imported).predictor().detach()
    predicted = (x.double().flatten(1) @ beta.flatten(1).T).to(dtype)
    size = imported.depth * math.prod(input_shape)
    yield agree("the module computes ⟨β, x⟩", observed, predicted, size=size)
    reflected = beta.flip(tuple(range(2, beta.ndim)))
    if float((reflected - beta).norm()) > 1e-2 * float(beta.norm()):  # not where a pooled readout makes β the same at all sites
        turned = (x.double().flatten(1) @ reflected.flatten(1).T).to(dtype)
        yield control("map: β reflected", agree("", observed, turned, size=size))
