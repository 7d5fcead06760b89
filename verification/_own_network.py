"""Theorem 4.10 on a network of the user's own: an audit of its hypotheses, then what the theorem, or its nearest form, says of it."""

import importlib.util
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, UsageError, agree, at_most, control, not_applicable
from linconv.hypotheses import Hypothesis, audit, hidden_kernel
from linconv.solvers import fit
from verification._branches import branch_checks
from verification._networks import Run, run
from verification._setting import prepare

DENSE = 2_000_000  # entries of the block-circulant matrix up to which it is a witness too
TRAINED = 200  # numbers in an image up to which the optimum of networks of this shape is put to the test too
IMAGES = 8


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


def own_network(net: nn.Module, input_shape: tuple[int, ...] | None, generator: torch.Generator) -> Iterator[Check | Note | Progress]:
    """The audit; then the theorem's checks where all hypotheses hold, bounds where only the freedom of a layer is missing."""
    if input_shape is None:
        if not isinstance(net, lc.LinearCNN):
            raise UsageError("input_shape: expected the shape of one image with module or net, such as 3 32 32, got none")
        input_shape = (net.weights[0].shape[1], *net.grid)
    try:
        found = audit(net, input_shape)
    except ValueError as error:
        raise UsageError(str(error)) from error
    yield from described(found)
    missing = [h for h in found if not h.holds]
    imported = _imported(net, input_shape, missing)
    if isinstance(imported, Check):
        yield imported
        return
    if not bool(lc.frequency_blocks(imported).values.any()):
        yield not_applicable("a function", "the network computes 0, of which nothing can be tested")
        return
    wrong = next((check for check in map_checks(net, imported, input_shape, generator) if not check.control and not check.passed), None)
    if wrong is not None:  # a fault of the import, or of the module, and not of the theorem
        yield not_applicable("linear CNN", f"the module does not compute what its layers say: relative error {wrong.error:.1e}")
        return
    yield from map_checks(net, imported, input_shape, generator)
    if missing:
        yield from nearest_form(net, imported, input_shape, missing)
        yield not_applicable("hypotheses", "; ".join(f"{h.layer}: not {h.name} ({h.found})" for h in missing))
        return
    widths = "→".join(str(n) for n in (input_shape[0], *(w.shape[0] for w in imported.weights)))
    grid = "×".join(map(str, imported.grid))
    yield Note(f"of the given network: depth {imported.depth}, widths {widths}, grid {grid}; no other parameter is used", in_scope=True)
    yield from cost_checks(net, imported)
    yield from optimum_checks(imported, generator)


def described(found: Sequence[Hypothesis]) -> Iterator[Note]:
    """One line a layer, what was found only where it fails."""
    for layer in dict.fromkeys(h.layer for h in found):
        parts = (f"{h.name} ✓" if h.holds else f"{h.name} ✗ ({h.found})" for h in found if h.layer == layer)
        yield Note(f"{layer}: {', '.join(parts)}")


def _imported(net: nn.Module, input_shape: tuple[int, ...], missing: list[Hypothesis]) -> lc.LinearCNN | Check:
    """The network in double precision, or why the theorem says nothing about the module."""
    if any(h.linear for h in missing):
        why = "; ".join(f"{h.layer}: not {h.name} ({h.found})" for h in missing if h.linear)
        return not_applicable("linear CNN", f"{why}; no form of the theorem is nearer")
    try:
        return (net if isinstance(net, lc.LinearCNN) else lc.from_torch(net, input_shape)).double()
    except lc.NotLinearCNNError as error:
        return not_applicable("linear CNN", str(error))


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


def nearest_form(
    net: nn.Module, imported: lc.LinearCNN, input_shape: tuple[int, ...], missing: list[Hypothesis]
) -> Iterator[Check | Note | Progress]:
    """What holds without free layers: Σ‖w‖² is at least the cost with kernels of that many taps, and with full ones."""
    if any(h.name in ("own weights", "within the grid") or "Linear, Linear" in h.found for h in missing):
        yield Note("no form of the theorem is nearer: its weights would have to be counted another way")
        return
    beta, squares, kernel = lc.frequency_blocks(imported).predictor().detach(), _squares(net), hidden_kernel(net, input_shape)
    yield Progress("bounding the cost with restricted kernels")
    full = lc.representation_cost(beta, imported.depth)
    taps = "×".join(map(str, kernel))
    yield Note(f"Σ‖w‖² = {squares:.6g}; with full kernels the same function costs {full.lower:.6g}, {_times(squares, full.lower)} less")
    lower = full.lower
    if kernel != imported.grid:
        bounds = lc.representation_cost(beta, imported.depth, kernel_size=kernel)
        lower = max(lower, bounds.lower)
        yield Note(
            f"with hidden kernels of {taps} taps, which the theorem does not cover, it costs {bounds.lower:.6g} to {bounds.upper:.6g}"
        )
    yield at_most("nearest form: the module's weights cost no less", lower, squares, size=beta.numel(), scale=squares)


def cost_checks(net: nn.Module, imported: lc.LinearCNN) -> Iterator[Check | Note]:
    """The cost of what the network computes: by an independent formula, undercut by its own weights nowhere, attained by explicit ones."""
    depth, beta = imported.depth, lc.frequency_blocks(imported).predictor().detach()
    cost, squares, size = lc.representation_cost(beta, depth).lower, _squares(net), beta.numel()
    sigma, sites = singular_values(beta), math.prod(imported.grid)
    yield Note(f"the network's Σ‖w‖² is {squares:.6g}, the least for its function {cost:.6g}: {_times(squares, cost)} less")
    if size * sites <= DENSE:
        yield agree("(a) cost: formula, block-circulant matrix", cost, witnesses.dense_cost(beta.numpy(), depth), size=size)
    yield agree("(a) cost: formula, NumPy", cost, depth / sites * float((sigma ** (2 / depth)).sum()), size=size)
    yield at_most("(a) the network's weights cost no less", cost, squares, scale=squares, size=size)
    minimal = lc.minimal_network(beta, depth)
    attained = sum(float(w.detach().square().sum()) for w in minimal.weights)
    yield agree("(a) explicit weights attain the cost", attained, cost, size=size)
    yield agree("(a) the explicit weights compute the function", lc.frequency_blocks(minimal).predictor().detach(), beta, size=4096)
    for applies, name, exponent, factor in (
        (True, "exponent 1/L", 1 / depth, depth / sites),
        (sites > 1, "factor 1/D dropped", 2 / depth, depth),
        (depth > 1, "factor L dropped", 2 / depth, 1 / sites),
    ):
        if applies:
            wrong = factor * float((sigma**exponent).sum())
            yield control(f"cost: {name}", agree("", cost, wrong, size=size))


def singular_values(beta: Float[Tensor, "K C *grid"]) -> np.ndarray:
    """Of the blocks by NumPy's transform, above the rounding of the largest: no code is shared with the library's."""
    blocks = np.fft.fftn(beta.numpy(), axes=tuple(range(2, beta.ndim))).reshape(*beta.shape[:2], -1)
    sigma = np.linalg.svd(np.moveaxis(blocks, 2, 0), compute_uv=False)
    return np.asarray(sigma[sigma > 1e-13 * sigma.max()])


def optimum_checks(imported: lc.LinearCNN, generator: torch.Generator) -> Iterator[Check | Note | Progress]:
    """Training from these very weights, on designed images: not below the proved optimum, every component on one of its branches."""
    channels, depth, outputs = imported.weights[0].shape[1], imported.depth, imported.weights[-1].shape[0]
    hidden = min((w.shape[0] for w in imported.weights[:-1]), default=1)
    size = channels * math.prod(imported.grid)
    if size > TRAINED:
        shape = f"--depth {depth} --hidden {hidden} --channels {channels} --outputs {outputs} --grid {' '.join(map(str, imported.grid))}"
        yield Note(
            f"the optimum over such networks follows from the cost; trained in a run of its own: python -m verification.theorem410 {shape}"
        )
        return
    setting = prepare(
        "designed",
        grid=imported.grid,
        samples=2 * size,
        channels=channels,
        outputs=outputs,
        depth=depth,
        hidden=hidden,
        weight_decay=None,
        whiten=False,
        generator=generator,
    )
    yield Note(f"trained from the given weights on {setting.describe()}")
    yield Progress("training from the given weights")
    copy = lc.LinearCNN.from_weights([w.detach().clone() for w in imported.weights], imported.grid)
    trained: Run = run("the given weights", copy, setting)
    optimum = fit(setting.x, setting.y, depth=depth, weight_decay=setting.weight_decay, hidden_channels=hidden if depth > 1 else None)
    name = "(b) trained from the given weights: not below the proved optimum"
    yield at_most(name, optimum.lower_bound, trained.objective, size=4096, scope="certified")
    yield from branch_checks(setting, trained)


def _squares(net: nn.Module) -> float:
    return math.fsum(float(parameter.detach().double().square().sum()) for parameter in net.parameters())


def _times(squares: float, cost: float) -> str:
    return f"{squares / cost:.3g} times" if cost > 0 else "all of it"
