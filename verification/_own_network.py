"""Theorem 4.10 on a network of the user's own: what the theorem, or its nearest form, says of it."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Note, Progress, agree, at_most, control
from linconv.hypotheses import hidden_kernel
from linconv.solvers import fit
from verification._branches import branch_checks
from verification._given import Given, none_known
from verification._networks import Run, run
from verification._setting import prepare

DENSE = 2_000_000  # entries of the block-circulant matrix up to which it is a witness too
TRAINED = 200  # numbers in an image up to which the optimum of networks of this shape is put to the test too


def theorem_on(given: Given) -> Iterator[Check | Note | Progress]:
    """The cost of what it computes, and the optimum of networks of its shape."""
    yield from cost_checks(given)
    yield from optimum_checks(given.net, given.generator)


def nearest_form(given: Given) -> Iterator[Check | Note | Progress]:
    """What holds without free layers: Σ‖w‖² is at least the cost with kernels of that many taps, and with full ones."""
    if given.imported is None:
        yield from none_known(given)
        return
    if any(h.name in ("own weights", "within the grid") or "Linear, Linear" in h.found for h in given.missing):
        yield Note("nearest form: none is known, for its weights would have to be counted another way")
        return
    imported, squares, kernel = given.net, given.squares, hidden_kernel(given.module, given.input_shape)
    beta = lc.frequency_blocks(imported).predictor().detach()
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


def cost_checks(given: Given) -> Iterator[Check | Note]:
    """The cost of what the network computes: by an independent formula, undercut by its own weights nowhere, attained by explicit ones."""
    depth, beta = given.net.depth, lc.frequency_blocks(given.net).predictor().detach()
    cost, squares, size = lc.representation_cost(beta, depth).lower, given.squares, beta.numel()
    sigma, sites = singular_values(beta), math.prod(given.net.grid)
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


def _times(squares: float, cost: float) -> str:
    return f"{squares / cost:.3g} times" if cost > 0 else "all of it"
