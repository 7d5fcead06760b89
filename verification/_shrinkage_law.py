"""What the claim on shrinkage looks at: samples, the law in closed form, and trained networks."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.optimize import minimize_scalar
from torch import Tensor

import linconv as lc
from linconv import witnesses
from linconv.solvers import Solution
from linconv.spectrum import mirror_index
from linconv.training import objective
from verification._networks import Run, balanced, drop_losing_components, network, run
from verification._setting import Setting

SHARES = np.linspace(0.1, 0.9, 9)  # of the variance that least squares explains, which networks of all depths are brought to
ALIVE = 1e-7  # of the largest: singular values above it count, as solvers leave 1e-12 of the objective


@dataclass(frozen=True)
class Sample:
    """Images, targets; by a table of roots of unity the spectrum s and, if s decouples, the least-squares blocks U diag(m) V*."""

    kind: str
    x: Float[Tensor, "N C side side"]
    y: Float[Tensor, "N K"]
    s: Float[np.ndarray, " D"]
    u: Complex[np.ndarray, "D K r"]
    m: Float[np.ndarray, "D r"]
    vh: Complex[np.ndarray, "D r C"]

    @property
    def rank(self) -> int:
        return self.m.shape[1]


# --- Data --------------------------------------------------------------------------------------------------------------


def decoupled(kind: str, white: Tensor, like: Tensor, y: Tensor) -> Sample:
    """Whitened images with the power spectrum of other images, mean over channels: second moment s_u·I and nothing between frequencies."""
    s = torch.fft.fft2(like, norm="ortho").abs().square().mean((0, 1))
    s = torch.where(s > 1e-20 * s.max(), s, 0.0)
    return measured(kind, torch.fft.ifft2(torch.fft.fft2(white) * s.sqrt()).real, y)


def measured(kind: str, x: Tensor, y: Tensor) -> Sample:
    spectrum = transform(x)
    s = np.square(np.abs(spectrum)).mean((0, 1))
    s = np.where(s > 1e-20 * s.max(), s, 0.0)
    cross = np.einsum("nk,ncu->ukc", y.numpy(), spectrum.conj()) / len(x)
    u, m, vh = np.linalg.svd(cross / np.where(s > 0, s, math.inf)[:, None, None], full_matrices=False)
    return Sample(kind, x, y, s, u, m * math.sqrt(len(s)), vh)


def transform(x: Float[Tensor, "N C *grid"]) -> Complex[np.ndarray, "N C D"]:
    """The orthonormal DFT from a table of roots of unity, no FFT."""
    grid = tuple(x.shape[2:])
    spectrum: np.ndarray = x.flatten(2).numpy() @ witnesses.dense_fourier(grid) / math.sqrt(math.prod(grid))
    return spectrum


# --- The law -----------------------------------------------------------------------------------------------------------


def critical(m: np.ndarray, s: np.ndarray, depth: int) -> np.ndarray:
    """The decay at and above which a component m at power s is 0; m and s of shapes that broadcast."""
    if depth == 1:
        return np.where(s * m > 0, math.inf, 0.0)
    factor = 1.0 if depth == 2 else (depth - 2) ** (1 - 2 / depth) / (depth - 1) ** (2 - 2 / depth)
    return s / 2 * factor * m ** (2 - 2 / depth)


def law(m: Float[np.ndarray, "D r"], s: Float[np.ndarray, " D"], decay: float, depth: int) -> Float[np.ndarray, "D r"]:
    """What the components m become, in closed form at depth 1 and 2."""
    power, out = np.broadcast_to(s[:, None], m.shape), np.zeros_like(m)
    alive = critical(m, power, depth) > decay
    if depth == 1:
        out[alive] = m[alive] * power[alive] / (power[alive] + 2 * decay)
    elif depth == 2:
        out[alive] = m[alive] - 2 * decay / power[alive]
    else:
        weight, exponent, start = 2 * decay / power[alive], 2 / depth - 1, m[alive]
        t = start.copy()
        for _ in range(8):  # Newton's method from above: the left side is convex, and its slope at least 1 − 1/L at roots that survive
            t -= (t + weight * t**exponent - start) / (1 + weight * exponent * t ** (exponent - 1))
        out[alive] = t
    return out


def unit(sample: Sample, depth: int) -> float:
    """The least decay that kills all; at depth 1, where none does, the one that halves the components at the largest power."""
    return float(sample.s.max() / 2 if depth == 1 else critical(sample.m, sample.s[:, None], depth).max())


def survivors(sample: Sample, decay: float, depth: int) -> int:
    """How many of all frequencies have a component that survives."""
    return int((critical(sample.m, sample.s[:, None], depth) > decay).any(1).sum())


def survivor_table(drawn: list[Sample], depths: tuple[int, ...], decays: tuple[float, ...]) -> np.ndarray:
    """Surviving frequencies by draw, depth and decay."""
    return np.array([[[survivors(d, f * unit(d, depth), depth) for f in decays] for depth in depths] for d in drawn])


def needed(sample: Sample, depth: int, share: float) -> int:
    """The fewest surviving frequencies, over all decays, with which the optimum explains `share` of what least squares does."""
    energy, power = sample.s[:, None] * sample.m**2, sample.s[:, None]
    if depth == 1:
        return int((energy > 0).any(1).sum())
    levels = np.unique(critical(sample.m, power, depth))[::-1]

    def explained(decay: float) -> float:
        return 1 - float((power * (sample.m - law(sample.m, sample.s, decay, depth)) ** 2).sum() / energy.sum())

    low, high = 0, len(levels)  # at levels[k] the k components above it are left; a decay of 0 explains all
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if explained((1 + 1e-9) * levels[middle]) >= share else (middle + 1, high)
    return survivors(sample, (1 + 1e-9) * levels[low] if low < len(levels) else 0.0, depth)


def needed_table(drawn: list[Sample], depths: list[int]) -> np.ndarray:
    """Frequencies needed, by draw, depth and share."""
    return np.array([[[needed(d, depth, float(share)) for share in SHARES] for depth in depths] for d in drawn])


def minimum(sample: Sample, t: np.ndarray, decay: float, depth: int) -> float:
    """The objective at singular values t: in these units blocks cost λL t^{2/L}, and all frequencies are averaged."""
    power, gain = sample.s[:, None], (t - sample.m) ** 2 - sample.m**2
    blocks = power / 2 * gain + decay * depth * np.where(t > 0, t, 0.0) ** (2 / depth)
    return float(sample.y.square().sum()) / (2 * len(sample.y)) + float(blocks.sum()) / len(sample.s)


def outputs_of(sample: Sample, t: np.ndarray) -> np.ndarray:
    """Blocks with singular values t, times √s: in these units errors are what they do to the outputs."""
    blocks: np.ndarray = np.sqrt(sample.s / len(sample.s))[:, None, None] * ((sample.u * t[:, None, :]) @ sample.vh)
    return blocks


def blocks_of(beta: Float[Tensor, "K C *grid"], s: np.ndarray) -> np.ndarray:
    """The blocks of a predictor, times √s, as `outputs_of` has them."""
    values = lc.FrequencyBlocks.from_predictor(beta).values.flatten(0, 1).numpy()
    scaled: np.ndarray = np.sqrt(s / len(s))[:, None, None] * values
    return scaled


def count(blocks: np.ndarray) -> int:
    norms = np.linalg.norm(blocks, axis=(-2, -1))
    return int((norms > ALIVE * max(norms.max(), 1e-300)).sum())


def proofs(sample: Sample, solution: Solution, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Frequencies proved to live, and proved to be 0, in *every* optimum; gradient norms over μ, and how far off the gap lets them be.

    F exceeds its minimum by at least half the mean squared difference of outputs, so that outputs are √(2 gap) from optimal, the gradient
    at u √(2 gap ‖S_u‖) and the blocks √(2 gap/h), with h the least positive eigenvalue of XᵀX/N.
    """
    x, sites, mu = transform(sample.x), len(sample.s), 2 * decay / math.sqrt(len(sample.s))
    residual = sample.y - sample.x.flatten(1) @ solution.predictor.flatten(1).T
    gradient = np.linalg.norm(np.einsum("nk,ncu->ukc", residual.numpy(), x.conj()) / len(x), 2, axis=(-2, -1))
    powers = np.linalg.norm(np.einsum("ncu,ndu->ucd", x, x.conj()) / len(x), 2, axis=(-2, -1))
    eigenvalues = torch.linalg.svdvals(sample.x.flatten(1)).square().numpy() / len(x)
    least = eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]].min()
    gap = 2 * (max(solution.objective - solution.lower_bound, 0.0) + 1e-15 * solution.objective)
    norms = np.linalg.norm(lc.FrequencyBlocks.from_predictor(solution.predictor).values.flatten(0, 1).numpy(), 2, axis=(-2, -1))
    alive = norms / math.sqrt(sites) > math.sqrt(gap / least)
    slack = np.sqrt(gap * powers)
    return alive, gradient + slack < mu, gradient / mu, float(slack.max()) / mu


# --- Networks ----------------------------------------------------------------------------------------------------------


def contested(sample: Sample, depth: int, decays: tuple[float, ...]) -> float:
    """Of the decays, the one that brings the number of surviving components closest to half; at depth 1 the factors."""
    absolute = [f * unit(sample, depth) for f in decays]
    if depth == 1:
        power = np.median(sample.s[sample.s > 0])
        return min(absolute, key=lambda decay: abs(power / (power + 2 * decay) - 0.5))
    edges = critical(sample.m, sample.s[:, None], depth)
    return min(absolute, key=lambda decay: abs(int((edges > decay).sum()) - int((edges > 0).sum()) / 2))


def train(sample: Sample, depth: int, decay: float, generator: torch.Generator) -> Run:
    """From torch's own weights at depth 1 and 2, where every minimum is global; beyond from `scaled_start`, losing components dropped."""
    setting = Setting(sample.x, sample.y, sample.x, depth, sample.rank + 1, decay, True, sample.kind)
    if depth <= 2:
        return run("torch's default", network(setting, generator), setting)
    return drop_losing_components(run("scaled spectral start", scaled_start(setting), setting), setting, sample.rank)


def scaled_start(setting: Setting) -> lc.LinearCNN:
    """The balanced network whose least-squares components are each scaled, or left out, as the objectives of such networks say.

    From least squares itself L-BFGS steps too far where powers differ a thousandfold, and components that should live end at 0.
    """
    x = setting.x.flatten(1)
    beta = torch.linalg.lstsq(x, setting.y, driver="gelsd").solution.T.reshape(-1, *setting.x.shape[1:])
    blocks = lc.FrequencyBlocks.from_predictor(beta).values
    u, sigma, vh = (part.flatten(0, 1) for part in torch.linalg.svd(blocks, full_matrices=False))
    mirror, full = mirror_index(setting.grid), sigma.clone()

    def reached(scale: float, site: int, i: int) -> float:
        sigma[[site, int(mirror[site])], i] = scale * full[site, i]
        net = balanced(lc.FrequencyBlocks(((u * sigma[:, None, :]) @ vh).reshape(blocks.shape)).predictor(), setting, setting.rank)
        with torch.no_grad():
            return float(objective(net, setting.x, setting.y, setting.weight_decay))

    for site in range(len(mirror)):
        if int(mirror[site]) < site:
            continue
        for i in range(sigma.shape[1]):
            if float(full[site, i]) <= 1e-9 * float(full.max()):
                continue
            best = minimize_scalar(reached, args=(site, i), bounds=(0.3, 1), method="bounded", options={"xatol": 1e-3})
            reached(float(best.x) if best.fun < reached(0.0, site, i) else 0.0, site, i)
    return balanced(lc.FrequencyBlocks(((u * sigma[:, None, :]) @ vh).reshape(blocks.shape)).predictor(), setting, setting.rank)
