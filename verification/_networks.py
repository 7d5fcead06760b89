"""Networks that theorem410 looks at: trained from several starts, gauged, too narrow, with kernels of one tap."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

import linconv as lc
from linconv.spectrum import mirror_index
from linconv.training import Trajectory, objective, sum_of_squares, train
from verification._setting import Setting

STEPS = 200
CONVERGED_GRADIENT = 1e-5  # relative gradients above this are not called converged; L-BFGS reaches about 1e-7


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread within: these products are small, and threads that wait for a busy core cost ten times what they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Run:
    """A network after training: where it started, what training did, what it computes."""

    name: str
    net: lc.LinearCNN
    trajectory: Trajectory

    @property
    def objective(self) -> float:
        return float(self.trajectory.objectives[-1])

    @property
    def predictor(self) -> Float[Tensor, "K C *grid"]:
        return lc.frequency_blocks(self.net).predictor().detach()

    @property
    def squares(self) -> float:
        return float(sum_of_squares(self.net).detach())


def run(name: str, net: lc.LinearCNN, setting: Setting) -> Run:
    """Train to convergence; the weights met on the way are kept, to be looked at too."""
    with one_thread():
        trajectory = train(net, setting.x, setting.y, weight_decay=setting.weight_decay, loss=setting.loss, steps=STEPS, record_every=3)
    return Run(name, net, trajectory)


def random_starts(setting: Setting, generator: torch.Generator) -> dict[str, lc.LinearCNN]:
    """torch's own initialisation and two Gaussian ones, drawn but not trained."""
    # "Large" makes the map sixteen times as large at every depth.
    scales = {"torch's default": None, "Gaussian": 1.0, "large Gaussian": 16 ** (1 / setting.depth)}
    return {name: network(setting, generator, scale=scale) for name, scale in scales.items()}


def network(setting: Setting, generator: torch.Generator, *, scale: float | None = None) -> lc.LinearCNN:
    widths = [setting.hidden] * (setting.depth - 1)
    return lc.LinearCNN(setting.x.shape[1], widths, setting.y.shape[1], setting.grid, generator=generator, scale=scale)


def spectral_start(setting: Setting, rank: int) -> lc.LinearCNN:
    """The balanced network that computes the least-squares predictor, its blocks cut to the `rank` largest components.

    For a loss other than squared error, which may have no minimiser without decay, that is the optimum of depth 1.
    """
    if setting.loss == "squared":
        x = setting.x.flatten(1)
        beta = torch.linalg.lstsq(x, setting.y, driver="gelsd").solution.T.reshape(-1, *setting.x.shape[1:])
    else:
        beta = lc.fit(setting.x, setting.y, depth=1, weight_decay=setting.weight_decay, loss=setting.loss).predictor
    return balanced(cut(lc.FrequencyBlocks.from_predictor(beta), rank).predictor(), setting, max(rank, 1))


def balanced(beta: Float[Tensor, "K C *grid"], setting: Setting, width: int) -> lc.LinearCNN:
    return lc.minimal_network(beta, setting.depth, hidden_channels=max(width, 1) if setting.depth > 1 else None)


def cut(blocks: lc.FrequencyBlocks, rank: int) -> lc.FrequencyBlocks:
    """The `rank` largest components of each block."""
    u, sigma, vh = torch.linalg.svd(blocks.values, full_matrices=False)
    return lc.FrequencyBlocks((u[..., :rank] * sigma[..., None, :rank]) @ vh[..., :rank, :])


def drop_losing_components(trained: Run, setting: Setting, width: int) -> Run:
    """Try the network without each component in turn, keep what lowers the objective of the network, train again.

    Nothing here knows the theorem: a component that weight decay makes too expensive is found by evaluating networks.
    """
    blocks = lc.frequency_blocks(trained.net).values.detach()
    u, sigma, vh = (t.flatten(0, len(setting.grid) - 1) for t in torch.linalg.svd(blocks, full_matrices=False))
    best, value = trained.net, trained.objective
    mirror = mirror_index(setting.grid)
    with torch.no_grad():
        for site in range(len(mirror)):
            if int(mirror[site]) < site:
                continue
            for i in range(sigma.shape[1]):
                kept = sigma[site, i].clone()
                if kept <= 1e-6 * sigma.max():
                    continue
                sigma[[site, int(mirror[site])], i] = 0
                values = ((u * sigma[:, None, :]) @ vh).reshape(blocks.shape)
                candidate = balanced(lc.FrequencyBlocks(values).predictor(), setting, width)
                reached = float(objective(candidate, setting.x, setting.y, setting.weight_decay, setting.loss))
                if reached < value:
                    best, value = candidate, reached
                else:
                    sigma[[site, int(mirror[site])], i] = kept
    return run(trained.name, best, setting) if best is not trained.net else trained


def factors(net: lc.LinearCNN) -> list[Complex[Tensor, "*grid rows columns"]]:
    """The blocks of each layer, first to last, the readout conjugated."""
    hidden = [lc.conv_blocks(w.detach(), net.grid).values for w in net.weights]
    return [*hidden[:-1], hidden[-1].conj()]


def gauged_cost(blocks: list[Tensor], gauges: list[Tensor], sites: int) -> Tensor:
    """Σ‖w‖² after a change of basis G_l at every frequency of each hidden layer: W_l → G_l W_l G_{l−1}^{-1}."""
    total = torch.zeros((), dtype=torch.float64)
    for i, block in enumerate(blocks):
        moved = gauges[i] @ block if i < len(gauges) else block
        if i > 0:
            moved = torch.linalg.solve(gauges[i - 1], moved, left=False)
        total = total + moved.abs().square().sum() / sites
    return total


def least_gauge(net: lc.LinearCNN, generator: torch.Generator, *, spread: float = 0.3) -> tuple[float, float]:
    """Σ‖w‖² of a network under random changes of basis, and the least that L-BFGS over the changes of basis finds."""
    blocks, grid = factors(net), net.grid
    widths = [b.shape[-2] for b in blocks[:-1]]
    # Real kernels, so that the gauges at u and −u are conjugate and the gauged weights stay real.
    kernels = [spread * torch.randn(r, r, *grid, dtype=torch.float64, generator=generator) for r in widths]
    for kernel in kernels:
        kernel /= math.sqrt(kernel[0].numel())
        kernel.flatten(2)[..., 0].diagonal().add_(1)
        kernel.requires_grad_()

    def cost() -> Tensor:
        return gauged_cost(blocks, [lc.conv_blocks(k, grid).values for k in kernels], math.prod(grid))

    first = float(cost().detach())
    search = torch.optim.LBFGS(kernels, max_iter=300, history_size=50, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = 1e6 * cost() / first
        value.backward()
        return value

    search.step(closure)
    return first, float(cost().detach())
