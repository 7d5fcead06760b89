r"""A weight-decayed linear CNN of depth L and its Schatten-penalised linear model have the same optimum.

For β ∈ R^{K×C×H×W} with unnormalised DFT blocks $\hat\beta_u$ (K×C, one for each of the D = HW frequencies) the least
$\sum_l \|w^l\|^2$ with which a linear CNN of depth L and full kernels computes $f_k(x) = \langle\beta_k, x\rangle$ is

$$R_L(\beta) = \frac{L}{D} \sum_u \|\hat\beta_u\|_{S_{2/L}}^{2/L},$$

so that for every loss $\min_w\, \ell(f_w) + \lambda \sum_l \|w^l\|^2 = \min_\beta\, \ell(f_\beta) + \lambda R_L(\beta)$; with hidden
widths below the rank of a block, the minimum on the right is over blocks of at most that rank.

Source: the idea is theorem 4.10 of Godfrey et al., arXiv 2210.01257; statement, normalisation and proof are in
docs/theorem410.md. Here (1/2N) Σ‖f(x_n) − y_n‖² + λ Σ‖w‖² is minimised by training in torch and compared with the optimum
of the linear model. Local minima: every component of a trained network at 0 or on the nonzero branch of its own equation.
`--loss` takes cross-entropy or the logistic loss of class indicators instead; `--module file.py:name --input-shape C H W` looks at a
network of your own, in Python `lc.check("theorem410", net=net, input_shape=(C, H, W))`.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Interval, Len
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import linconv as lc
from linconv import witnesses
from linconv.claims import Check, Figure, Note, Progress, agree, at_most, attains, inconclusive, main, not_applicable, predicted_failure
from linconv.losses import loss_of
from linconv.solvers import Solution, fit
from linconv.solvers.restricted import restricted_cost
from verification._branches import branch_checks, smallest_margin
from verification._controls410 import controls
from verification._figure410 import figure
from verification._given import FREEDOM, InputShape, ModulePath, on_given_network
from verification._networks import (
    Run,
    cut,
    drop_losing_components,
    least_gauge,
    one_thread,
    random_starts,
    run,
    spectral_start,
)
from verification._own_network import nearest_form, theorem_on
from verification._setting import Setting, prepare

FAST = {"depth": 3, "grid": (3, 4), "samples": 100}
CONVERGED = "the optimisers reach 1e-12; 1e-8 is far below the step from one branch to the next"
SQUARED = "an error of 1e-6 in the predictor is 1e-12 in the objective, where rounding stops the optimiser"


def claim(
    *,
    depth: Annotated[int, Interval(ge=1, le=8), "number of layers L, the readout counted"] = 4,
    channels: Annotated[int, Interval(ge=1, le=8), "input channels C: those of the data, or 1 for grey"] | None = None,
    hidden: Annotated[int, Interval(ge=1, le=32), "width of every hidden layer"] = 4,
    outputs: Annotated[int, Interval(ge=1, le=100), "outputs K, indicators of the first K classes (default: all)"] | None = None,
    grid: Annotated[tuple[Annotated[int, Interval(ge=1, le=64)], ...], Len(1, 3), "sites in each dimension, H W"] = (5, 6),
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, designed, or a folder with one subfolder of images a class"] = "photos",
    weight_decay: Annotated[float, Gt(0), "weight decay λ (default: half of the components survive it)"] | None = None,
    samples: Annotated[int, Interval(ge=2, le=100_000), "number of images N"] = 400,
    loss: Annotated[Literal["squared", "cross-entropy", "logistic"], "loss of the outputs; cross-entropy is that of softmax"] = "squared",
    whiten: Annotated[bool, "whiten the images (default: for squared error at depth ≥ 3, whose optimum is then certified)"] | None = None,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of the samples and of the random starts"] = 0,
    module: ModulePath = None,
    input_shape: InputShape = None,
    net: Annotated[nn.Module | None, "the same from Python: the network itself"] = None,
) -> Iterator[Check | Figure | Note | Progress]:
    generator = torch.Generator().manual_seed(seed)
    if net is not None or module:
        yield from on_given_network(theorem_on, net, module, input_shape, generator, needs=FREEDOM, nearest=nearest_form)
        return
    setting = prepare(
        data,
        grid=grid,
        samples=samples,
        channels=channels,
        outputs=outputs,
        depth=depth,
        hidden=hidden,
        weight_decay=weight_decay,
        whiten=depth >= 3 and loss == "squared" if whiten is None else whiten,
        generator=generator,
        loss=loss,
    )
    yield Note(setting.describe(), in_scope=True)
    tol = 1e-10 if loss == "squared" else 1e-9  # by first-order steps, each digit of which costs as many as the last
    optimum = fit(setting.x, setting.y, depth=depth, weight_decay=setting.weight_decay, loss=loss, hidden_channels=hidden, tol=tol)
    yield from weight_decay_matters(setting, optimum)
    yield Progress("training from the balanced spectral start")
    spectral = run("balanced spectral start", spectral_start(setting, setting.rank), setting)
    spectral = drop_losing_components(spectral, setting, setting.rank)
    runs = [spectral]
    for name, net in random_starts(setting, generator).items():
        yield Progress(f"training from random weights ({name})")
        runs.append(run(name, net, setting))

    yield from cost_checks(setting, optimum, runs, generator)
    yield from optimum_checks(optimum, spectral)
    if setting.decoupled:
        for found in runs[1:]:
            yield from branch_checks(setting, found)
    else:
        yield from random_start_checks(optimum, runs[1:])
    yield from predictor_checks(setting, optimum, spectral)
    yield from balance_checks(setting, runs)
    if depth > 1:
        yield from hypothesis_checks(setting, optimum)
    yield from controls(setting, optimum, spectral)
    yield Figure("theorem410", lambda: figure(setting, optimum, runs))


def weight_decay_matters(setting: Setting, optimum: Solution) -> Iterator[Check]:
    """Not applicable where the optimum is 0, or where the penalty is too small to tell the theorem from its neglect."""
    penalty = setting.weight_decay * lc.representation_cost(optimum.predictor, setting.depth).lower / optimum.objective
    if penalty == 0:
        why = f"at {setting.weight_decay:.3g} the optimum is 0 and nothing is left to check; choose a smaller one"
        yield not_applicable("weight decay", why)
    elif penalty < 1e-4:
        why = f"at {setting.weight_decay:.3g} the penalty is {penalty:.1e} of the objective, too little to test; choose a larger one"
        yield not_applicable("weight decay", why)


def cost_checks(setting: Setting, optimum: Solution, runs: list[Run], generator: torch.Generator) -> Iterator[Check | Progress]:
    """(a) The cost: attained by explicit weights, undercut by none, the same by an independent formula."""
    depth = setting.depth
    generic = lc.FrequencyBlocks.from_predictor(
        torch.randn(setting.y.shape[1], *setting.x.shape[1:], generator=generator, dtype=torch.float64)
    )
    for name, beta in (("random", _cut(generic, setting)), ("optimal", optimum.predictor)):
        cost = lc.representation_cost(beta, depth, hidden_channels=setting.hidden if depth > 1 else None).lower
        net = lc.minimal_network(beta, depth, hidden_channels=setting.hidden if depth > 1 else None)
        squares = sum(w.detach().square().sum().item() for w in net.weights)
        size = beta.numel()
        yield agree(
            f"(a) cost of the {name} predictor: formula, block-circulant matrix", cost, witnesses.dense_cost(beta.numpy(), depth), size=size
        )
        yield agree(f"(a) cost of the {name} predictor: explicit weights attain it", squares, cost, size=size)
        outputs = net(setting.x).detach()
        yield agree(f"(a) the explicit weights compute the {name} predictor", outputs, setting.x.flatten(1) @ beta.flatten(1).T, size=4096)
    if depth > 1 and setting.rank > 0:
        yield Progress("minimising the cost over changes of basis")
        beta = _cut(generic, setting)
        cost = lc.representation_cost(beta, depth).lower
        first, least = least_gauge(lc.minimal_network(beta, depth, hidden_channels=setting.hidden), generator)
        yield at_most("(a) a random change of basis costs no less", cost, first)
        yield attains(
            "(a) the least over changes of basis is the cost", least, cost, tolerance=1e-6, reason="L-BFGS over bases, stopped at 300 steps"
        )
    met = [(w, lc.LinearCNN.from_weights(w, setting.grid)) for found in runs for w in found.trajectory.weights.values()]
    snapshots = met + [([w.detach() for w in found.net.weights], found.net) for found in runs]
    norms = torch.stack([torch.stack([w.square().sum() for w in weights]).sum() for weights, _ in snapshots])
    costs = torch.tensor(
        [lc.representation_cost(lc.frequency_blocks(net).predictor().detach(), depth).lower for _, net in snapshots], dtype=torch.float64
    )
    yield at_most("(a) no weights met in training cost less than what they compute", costs, norms, size=4096, draws=len(snapshots))


def reaches(name: str, trained: Run, optimum: Solution) -> Check:
    """The trained objective is the certified optimum: below its lower bound refutes, above it is an optimiser that missed."""
    minimum, lower = optimum.objective, optimum.lower_bound
    return attains(name, trained.objective, minimum, lower=lower, tolerance=1e-8, reason=CONVERGED, size=4096, scope="certified")


def optimum_checks(optimum: Solution, trained: Run) -> Iterator[Check | Note]:
    """(b) The trained objective against the certified optimum."""
    kind = "optimum" if optimum.gap <= 1e-8 else "best known objective"
    proved = f"{optimum.objective:.12g}, proved to be at least {optimum.lower_bound:.12g}: relative gap {max(optimum.gap, 0):.1e}"
    yield Note(f"{kind} ({optimum.method}): {proved}")
    yield Note(
        f"trained from the balanced spectral start: {trained.objective:.12g}, relative gap {trained.objective / optimum.objective - 1:.1e}"
    )
    yield reaches("(b) objective of the trained network against the optimum", trained, optimum)


def predictor_checks(setting: Setting, optimum: Solution, trained: Run) -> Iterator[Check]:
    """(d) The trained predictor against the optimal one; where data have weak directions, what both compute."""
    if setting.decoupled and setting.depth > 2 and smallest_margin(setting) < 1e-7 * optimum.objective:
        yield inconclusive("(d) the trained predictor is the optimal one", "two predictors share the optimum: choose another weight decay")
    elif setting.decoupled:
        yield agree("(d) the trained predictor is the optimal one", trained.predictor, optimum.predictor, tolerance=1e-5, reason=SQUARED)
    elif setting.depth > 2 or optimum.gap > 1e-8 or trained.objective > (1 + 1e-7) * optimum.objective:
        yield inconclusive("(d) outputs of the trained and of the optimal predictor", "the optimum or the trained network is not certified")
    else:
        # F less its minimum is at least the mean of ‖∇ℓ(f) − ∇ℓ(f*)‖²/2M for a loss with second derivatives ≤ M: at depth 1 and 2 the
        # penalty is convex.  Both predictors are that close to the optimum, and so to each other by the triangle inequality.
        distance = gradient_distance(setting, trained.predictor, optimum.predictor)
        roots = [max(value - optimum.lower_bound, 0.0) ** 0.5 for value in (trained.objective, optimum.objective)]
        what = "outputs" if setting.loss == "squared" else "probabilities"
        name = f"(d) {what} of the trained and of the optimal predictor: as close as the two gaps allow"
        yield at_most(name, distance, sum(roots) ** 2, scale=optimum.objective, size=4096)


def gradient_distance(setting: Setting, beta: Float[Tensor, "K C *grid"], other: Float[Tensor, "K C *grid"]) -> float:
    """The mean over images of ‖∇ℓ(f) − ∇ℓ(g)‖²/2M: of ½‖f − g‖² for squared error, elsewhere that of probabilities."""
    loss, x, y = loss_of(setting.loss), setting.x.flatten(1), setting.y
    first, second = (loss.gradient(x @ b.flatten(1).T, y) for b in (beta, other))
    return float((first - second).square().sum()) / (2 * loss.smoothness * len(x))


def random_start_checks(optimum: Solution, runs: list[Run]) -> Iterator[Check]:
    """(c) without decoupled data: nothing below the lower bound; at depth 1 and 2, which have no other minima, the optimum."""
    for found in runs:
        yield reaches(f"(c) {found.name}: objective against the optimum", found, optimum)


def balance_checks(setting: Setting, runs: list[Run]) -> Iterator[Check]:
    """(e) With decay λ the imbalance is at most ‖w‖‖∇F‖/(2λ), so that it vanishes where training has converged."""
    if setting.depth == 1:
        return
    largest = max(found.squares for found in runs)
    imbalances = torch.tensor(
        [found.trajectory.imbalance[1] * found.squares for found in runs if found.trajectory.imbalance], dtype=torch.float64
    )
    bounds = torch.tensor(
        [found.trajectory.gradient_norm * found.objective / (2 * setting.weight_decay) for found in runs], dtype=torch.float64
    )
    yield at_most("(e) imbalance of the layers: bounded by the gradient", imbalances, bounds, scale=largest, draws=len(runs))
    converged = bounds <= 1e-5 * largest
    if bool(converged.any()):
        why = "of the largest Σ‖w‖², for the runs whose gradient promises that much"
        yield at_most("(e) imbalance of the layers: vanishes", imbalances[converged], 0.0, scale=largest, tolerance=1e-5, reason=why)


def hypothesis_checks(setting: Setting, optimum: Solution) -> Iterator[Check | Progress]:
    """(f) Outside its hypotheses the formula must fail, and by as much as theory says."""
    yield Progress("training networks that violate a hypothesis")
    singular = lc.FrequencyBlocks.from_predictor(optimum.predictor).singular_values()
    if setting.decoupled and int((singular > 1e-9 * singular.max()).sum(-1).max()) > 1:
        narrow = fit(setting.x, setting.y, depth=setting.depth, weight_decay=setting.weight_decay, hidden_channels=1)
        trained = drop_losing_components(run("width 1", spectral_start(setting, 1), setting), setting, 1)
        yield reaches("(f) width 1: the optimum is that over blocks of rank 1", trained, narrow)
        wide = agree("", trained.objective, optimum.objective, tolerance=1e-6, reason="what a converged run differs by at most")
        yield predicted_failure("(f) width 1: the optimum of wide networks is not reached", wide)
    if setting.sites > 1:
        yield from one_tap_checks(setting, optimum)


def one_tap_checks(setting: Setting, optimum: Solution) -> Iterator[Check]:
    """Hidden kernels of one tap: their cost is L‖B‖ to the 2/L in S_{2/L}, B the predictor as a (KD)×C matrix, and not the formula."""
    bounds = restricted_cost(optimum.predictor, setting.depth, (1,) * len(setting.grid), None)
    if bounds.weights is None or bounds.upper == 0:
        return
    trained = run("one tap", lc.LinearCNN.from_weights(bounds.weights, setting.grid), setting)
    for name, beta, squares in (
        ("explicit", optimum.predictor, sum(w.square().sum().item() for w in bounds.weights)),
        ("trained", trained.predictor, trained.squares),
    ):
        sigma = np.linalg.svd(beta.movedim(1, -1).flatten(0, -2).numpy(), compute_uv=False)
        closed = setting.depth * float((sigma[sigma > 1e-9 * sigma.max()] ** (2 / setting.depth)).sum())
        if squares < 1e-6 * bounds.upper:
            continue  # weight decay has collapsed the network: zero against zero would show nothing
        formula = lc.representation_cost(beta, setting.depth).lower
        why = "relative gradients of about 1e-7, and singular values at 1e-9 of the largest"
        yield agree(f"(f) one tap, {name}: Σ‖w‖² has the closed form of one tap", squares, closed, tolerance=1e-5, reason=why)
        yield at_most(f"(f) one tap, {name}: the cost of full kernels is below", formula, squares, size=4096)
        far = agree("", squares, formula, tolerance=1e-3, reason="a thousandth, to be told from convergence")
        yield predicted_failure(f"(f) one tap, {name}: the formula for full kernels fails", far)


def _cut(blocks: lc.FrequencyBlocks, setting: Setting) -> torch.Tensor:
    return cut(blocks, setting.rank).predictor()


if __name__ == "__main__":
    # The products here are small, and a thread that waits for a busy core costs more than it saves.
    with threadpool_limits(1), one_thread():
        main(claim)
