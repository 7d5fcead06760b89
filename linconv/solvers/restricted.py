r"""Representation cost with restricted hidden kernels: bounds recomputed from a dual point and from explicit weights.

Hidden kernels have taps m in a box, the readout covers the grid of D sites.  Taps that differ by multiples of the grid
act as one: m_s of them fold onto s, and the cheapest way to sum to w̃_s is w̃_s/m_s each, at the price |w̃_s|²/m_s.  So with
v_s = w̃_s/√m_s and φ_u = [√m_s e^{−2πi u·s/n}]_s a layer costs Σ_s ‖v_s‖² and acts as M_u = Σ_s v_s φ_us.

**Depth 2.**  Let the rows of W be the hidden channels, its columns (s, c), and Φ_u = φ_u ⊗ I_C, so that M_u = WΦ_u.  The
cheapest readout with A_u M_u = V_u is A_u = V_u M_u⁺, and its norm depends on P = WᵀW only:

    R = min_{P ⪰ 0}  tr P + (1/D) Σ_u tr V_u (Φ_u* P Φ_u)^{−1} V_u*,   convex, with T·C rows whatever K, D and the width are.

For every Λ, with Γ = (1/D) Σ_u Re Φ_u Λ_u* Λ_u Φ_u*, a network that computes V of any width has
(1/D) Σ Re⟨V_u, Λ_u⟩ = (1/D) Σ Re⟨A_u, Λ_u Φ_u* Wᵀ⟩ ≤ ‖w²‖ (tr W Γ Wᵀ)^{1/2} ≤ ½ R λ_max(Γ)^{1/2}: a lower bound on R.

**Depth L ≥ 3.**  By Hölder ‖V_u‖_{S_{2/L}} ≤ ‖A_u‖_F Π_l ‖M^l_u‖_F, and ‖M^l_u‖_F² = φ_u* P^l φ_u with P^l ⪰ 0 the Gram matrix
of the taps of layer l, tr P^l = ‖w^l‖².  Σ_l tr P^l + (1/D) Σ_u ‖V_u‖²_{S_{2/L}} / Π_l φ_u* P^l φ_u is convex (a reciprocal
product is log-convex) and symmetric in the P^l, so that equal ones are best:

    R ≥ min_{P ⪰ 0}  (L−1) tr P + (1/D) Σ_u ‖V_u‖²_{S_{2/L}} / (φ_u* P φ_u)^{L−1}.

As v² p^{1−L} ≥ L v^{2/L} y^{(L−1)/L} − (L−1) y p, every y ≥ 0 proves R ≥ (L/D) Σ ‖V_u‖_{S_{2/L}}^{2/L} (y_u/λ)^{(L−1)/L} with
λ = λ_max((1/D) Σ y_u Re φ_u φ_u*); y = 1 gives (max m_s)^{−(L−1)/L} R_L.  With one input channel on a 1-D grid and k ≤ n
the bound is attained, by one hidden channel: every φ* P φ is |ŵ|² of a real kernel w (Fejér, Riesz), used in every layer.

Source: derived here; the idea is theorem 4.10 of arXiv 2210.01257, the one-channel case arXiv 2102.12238.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from linconv.cost import conjugate_svd, minimal_network, representation_cost
from linconv.network import LinearCNN
from linconv.penalties import rank_tolerance
from linconv.solvers.central_path import central_path, dual_bound
from linconv.solvers.factored_descent import Lags, factored_descent
from linconv.spectrum import FrequencyBlocks, frequency_blocks, pair_weights

MAP_TOLERANCE = 1e-10  # relative error of the map above which weights prove nothing; in float32 its rank tolerance, 1.2e-5
ROUNDING = 1e-12  # taken off relative lower bounds; what rounding can add to them is of order 1e-14
CLOSED = 1e-9  # relative width of the bracket at which the search for better weights ends
NEWTON_ROWS = 80  # above this many rows the Hessian of the programme no longer fits comfortably in memory, and descent takes over
DESCENT_ROWS = 600  # above this many rows the descent takes too long
FRAME_ENTRIES = 2**25  # as many entries (frequencies × rows × channels) of 16 bytes the hidden layer of the programme may have
PSEUDOINVERSE = 1e-13  # relative cut of singular values in the readout; the map is verified afterwards
STARTS = 2  # random starts of the local search
DESCENT_STEPS = 500
REGULARISATION = (1e-6, 1e-12)  # ε of the local search, for singular values of 1 and less

Filter = np.ndarray  # a hidden layer in the coordinates v, (C_out, C_in, T)


@dataclass(frozen=True)
class RestrictedBounds:
    """An interval that contains the cost, and weights that attain `upper`; `None` where `upper` is infinite.

    Weights are float64 on the CPU: hidden `(C_out, C_in, *kernel)`, then the readout `(K, C_{L−1}, *grid)`, of equal norms.
    """

    lower: float
    upper: float
    weights: list[Tensor] | None


def restricted_cost(
    predictor: Float[Tensor, "K C *grid"], depth: int, kernel_size: tuple[int, ...], hidden_channels: int | None
) -> RestrictedBounds:
    """Bounds on the least Σ_l ‖w^l‖² of networks with hidden kernels of `kernel_size` that compute the predictor.

    `hidden_channels` is the narrowest hidden width, `None` for unlimited.  Exact for kernels of one tap, with
    R = L ‖B‖_{S_{2/L}}^{2/L}, B the (K·D)×C matrix of the predictor (hidden layers are matrices, as in a fully connected
    network), and for kernels of n0_i times the grid, with R = (Π n0_i)^{−(L−1)/L} R_L.  Otherwise the programmes above, by
    Newton's method up to `NEWTON_ROWS` rows and by descent up to `DESCENT_ROWS`; larger ones fall back to coarser valid bounds.

    Singular values of blocks at or below the rank tolerance count as zero, as in `linconv.representation_cost`.  Both
    bounds are `inf` where a block, or B for kernels of one tap, has a higher rank than `hidden_channels`; `upper` alone
    is `inf` where no weights within the width were found.  Raises `ValueError` for a depth below 2.

    >>> beta = torch.zeros(1, 1, 6, dtype=torch.float64); beta[0, 0, 0] = 1      # a delta costs the same at every k
    >>> bounds = restricted_cost(beta, 3, (2,), None)
    >>> round(bounds.lower, 9), round(bounds.upper, 9), [tuple(w.shape) for w in bounds.weights]
    (3.0, 3.0, [(1, 1, 2), (1, 1, 2), (1, 1, 6)])
    """
    if depth < 2:
        raise ValueError(f"depth: expected at least 2, got {depth}; a network of one layer has no hidden kernel")
    left, sigma, right = conjugate_svd(FrequencyBlocks.from_predictor(predictor.detach().to("cpu", torch.float64)))
    largest = float(sigma.max())
    sigma = torch.where(sigma > rank_tolerance(predictor.dtype) * largest, sigma / (largest or 1.0), 0.0)
    blocks = FrequencyBlocks((left * sigma[..., None, :]) @ right)
    width = math.inf if hidden_channels is None else float(hidden_channels)
    if not largest:
        outputs, channels, *grid = predictor.shape
        shapes = [(1, channels, *kernel_size), *[(1, 1, *kernel_size)] * (depth - 2), (outputs, 1, *grid)]
        return RestrictedBounds(0.0, 0.0, [torch.zeros(shape, dtype=torch.float64) for shape in shapes])
    if int((sigma > 0).sum(-1).max()) > width:
        return RestrictedBounds(math.inf, math.inf, None)
    lower, upper, weights = _Problem.of(blocks, depth, kernel_size, rank_tolerance(predictor.dtype)).bracket(width)
    unit = largest ** (1 / depth)
    return RestrictedBounds(lower * unit**2, upper * unit**2, weights and [w * unit for w in weights])


@dataclass(frozen=True)
class _Problem:
    """A predictor whose largest singular value is 1, and the folded taps of the hidden layers; u over half the spectrum."""

    predictor: Float[Tensor, "K C *grid"]
    depth: int
    kernel: tuple[int, ...]
    tolerance: float  # of ranks, relative
    blocks: Complex[np.ndarray, "half K C"]  # V_u
    weights: Float[np.ndarray, " half"]  # how often u stands in the full spectrum, over D
    phases: Complex[np.ndarray, "half T"]  # φ_u
    fold: Int[np.ndarray, " taps"]  # which of the T folded taps each tap of the kernel is
    copies: Int[np.ndarray, " T"]  # m_s

    @classmethod
    def of(cls, blocks: FrequencyBlocks, depth: int, kernel: tuple[int, ...], tolerance: float) -> "_Problem":
        grid = blocks.grid
        half = (*grid[:-1], grid[-1] // 2 + 1)
        sites = tuple(min(k, n) for k, n in zip(kernel, grid, strict=True))
        taps, positions, frequencies = (np.indices(shape).reshape(len(grid), -1) for shape in (kernel, sites, half))
        fold = np.ravel_multi_index([m % n for m, n in zip(taps, grid, strict=True)], sites)
        copies = np.bincount(fold)
        # Exponents are reduced to one turn while they are integers, where that is exact.
        turns = sum(np.outer(u, s) % n / n for u, s, n in zip(frequencies, positions, grid, strict=True))
        values = blocks.values[..., : half[-1], :, :].flatten(0, len(grid) - 1).numpy()
        weights = np.broadcast_to(pair_weights(grid).numpy() / math.prod(grid), half).flatten()
        phases = np.exp(-2j * np.pi * turns) * np.sqrt(copies)
        return cls(blocks.predictor(), depth, kernel, tolerance, values, weights, phases, fold, copies)

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.predictor.shape[2:])

    def row_space(self) -> tuple[Float[np.ndarray, " rank"], Float[np.ndarray, "rank C"]]:
        """Singular values and right singular vectors of the (K·D)×C matrix of the predictor."""
        matrix = self.predictor.movedim(1, -1).flatten(0, -2).numpy()
        _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
        rank = int((sigma > self.tolerance * sigma[0]).sum())
        return sigma[:rank], right[:rank]

    def one_tap(self) -> tuple[float, list[Filter]]:
        """Cost and hidden layers Σ^{1/L}V*, Σ^{1/L}, … of one tap each, from the (K·D)×C matrix UΣV* of the predictor."""
        sigma, right = self.row_space()
        root = sigma ** (1 / self.depth)
        filters = [root[:, None] * right, *[np.diag(root)] * (self.depth - 2)]
        first_tap = np.eye(1, self.phases.shape[1])
        return float(self.depth * (root**2).sum()), [f[:, :, None] * first_tap for f in filters]

    def whole_grids(self, width: float) -> tuple[float, list[Filter]]:
        """Cost and hidden layers for kernels of whole multiples of the grid: full kernels, each tap spread over its m copies."""
        channels = int(min(*self.predictor.shape[:2], width))
        net = minimal_network(self.predictor, self.depth, hidden_channels=channels)
        full = representation_cost(self.predictor, self.depth).lower
        spread = float(self.copies[0])
        return full * spread ** (1 / self.depth - 1), [w.detach().flatten(2).numpy() * math.sqrt(spread) for w in net.weights[:-1]]

    def gram_bound(self) -> tuple[float, Float[np.ndarray, "rows TC"]]:
        """Depth 2: the lower bound of the dual point that the programme ends with, and W with P = WᵀW near the optimum.

        In the r ≤ C channels of the row space of all blocks; a projection onto them computes the same and costs no more.
        """
        _, rows = self.row_space()
        blocks, rank = self.blocks @ rows.T, len(rows)
        frames = np.einsum("us,cd->uscd", self.phases, np.eye(rank)).reshape(len(self.phases), -1, rank)
        factor, dual = self.solve(blocks, frames)
        bound = dual_bound(blocks, dual, frames, self.weights, self.depth)
        return bound, (factor.reshape(len(factor), -1, rank) @ rows).reshape(len(factor), -1)

    def filter_bound(self) -> tuple[float, Float[np.ndarray, "rows T"] | None]:
        """Any depth: the lower bound of the programme's y or of y = 1, whichever is better, and W with P = WᵀW."""
        sigma = np.linalg.svd(self.blocks, compute_uv=False)
        power = (np.where(sigma > self.tolerance, sigma, 0.0) ** (2 / self.depth)).sum(-1)  # ‖V_u‖_{S_{2/L}}^{2/L}
        roots, frames = power.astype(complex)[:, None, None], self.phases[:, :, None]
        bound = dual_bound(roots, np.ones_like(roots), frames, self.weights, self.depth)
        if self.phases.shape[1] > DESCENT_ROWS:
            return bound, None
        factor, dual = self.solve(roots, frames)
        return max(bound, dual_bound(roots, dual, frames, self.weights, self.depth)), factor

    def solve(
        self, roots: Complex[np.ndarray, "half K c"], frames: Complex[np.ndarray, "half rows c"]
    ) -> tuple[Float[np.ndarray, "rows rows"], Complex[np.ndarray, "half K c"]]:
        """W with P = WᵀW near the minimum of a programme and Λ near its dual maximum, by the method that its size calls for.

        Roots are V_u at depth 2, and with one channel v_u^{2/L} ≥ 0, where Λ_u = y_u^{1/L}.
        """
        if frames.shape[1] > NEWTON_ROWS:
            sites = tuple(min(k, n) for k, n in zip(self.kernel, self.grid, strict=True))
            return factored_descent(roots, Lags.of(self.grid, sites, self.copies), self.weights, self.depth)
        return central_path(roots, frames, self.weights, self.depth)

    def bracket(self, width: float) -> tuple[float, float, list[Tensor] | None]:
        """A proved lower bound and the cheapest of the networks tried; the search ends when it meets the bound."""
        if set(self.kernel) == {1}:
            cost, filters = self.one_tap()
            return (cost, cost, self.network(filters)[1]) if len(filters[0]) <= width else (math.inf, math.inf, None)
        if all(k % n == 0 for k, n in zip(self.kernel, self.grid, strict=True)):
            cost, filters = self.whole_grids(width)
            return cost, cost, self.network(filters)[1]
        rank = len(self.row_space()[1])
        rows = self.phases.shape[1] * rank
        programme = self.depth == 2 and rows <= DESCENT_ROWS and len(self.phases) * rows * rank <= FRAME_ENTRIES
        lower, factor = self.gram_bound() if programme else self.filter_bound()
        lower *= 1 - ROUNDING
        upper, weights = math.inf, None
        for filters in self.candidates(factor, width):
            cost, found = self.network(filters)
            if cost < upper:
                upper, weights = cost, found
            if upper <= lower * (1 + CLOSED):
                break
        return lower, upper, weights

    def candidates(self, factor: Float[np.ndarray, "rows columns"] | None, width: float) -> Iterator[list[Filter]]:
        """Hidden layers worth trying, the likeliest to be optimal first."""
        taps, channels = self.phases.shape[1], self.blocks.shape[2]
        programme = factor if self.depth == 2 and factor is not None and factor.shape[1] == taps * channels else None
        if programme is not None and len(programme) <= width:
            yield [programme.reshape(-1, taps, channels).swapaxes(1, 2)]
        if factor is not None and channels == len(self.grid) == 1 and taps < self.grid[0]:
            yield [spectral_factor(factor)[None, None]] * (self.depth - 1)
        cost, matrices = self.one_tap()
        if len(matrices[0]) <= width:
            yield matrices
        if programme is not None:
            if NEWTON_ROWS < len(programme) <= width:
                return  # the descents below could only repeat the one that led to the programme's minimum
            _, sigma, rows = np.linalg.svd(programme, full_matrices=False)
            kept = int(min(width, len(programme)))
            yield self.descend([(sigma[:kept, None] * rows[:kept]).reshape(kept, taps, channels).swapaxes(1, 2)])
        hidden = int(min(width, 2 * channels))
        shapes = [(hidden, channels, taps), *[(hidden, hidden, taps)] * (self.depth - 2)]
        for seed in range(STARTS):
            generator = np.random.default_rng(seed)
            size = math.sqrt(cost / self.depth)
            yield self.descend([size / math.sqrt(math.prod(s)) * generator.standard_normal(s) for s in shapes])

    def descend(self, start: list[Filter]) -> list[Filter]:
        """A local minimum over the hidden layers of Σ‖v‖² + (1/D) Σ tr V_u (M_u* M_u + εI)^{−1} V_u*, ε → 0."""
        blocks, phases, weights = (torch.from_numpy(a) for a in (self.blocks, self.phases, self.weights))
        eye = torch.eye(blocks.shape[2], dtype=blocks.dtype).expand(len(blocks), -1, -1)

        def split(x: np.ndarray) -> list[Filter]:
            ends = np.cumsum([s.size for s in start])[:-1]
            return [part.reshape(s.shape) for part, s in zip(np.split(x, ends), start, strict=True)]

        def objective(x: np.ndarray, epsilon: float) -> tuple[float, np.ndarray]:
            filters = [torch.from_numpy(v).requires_grad_() for v in split(x)]
            product = reduce(lambda m, v: v @ m, [torch.einsum("jis,us->uji", v.to(phases.dtype), phases) for v in filters])
            upper = torch.linalg.qr(torch.cat([product, math.sqrt(epsilon) * eye], 1))[1]
            readout = torch.linalg.solve_triangular(upper, blocks, upper=True, left=False).abs() ** 2
            value = weights @ readout.sum((1, 2)) + torch.stack([(v**2).sum() for v in filters]).sum()
            return float(value.detach()), np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(value, filters)])

        x = np.concatenate([s.ravel() for s in start])
        for epsilon in REGULARISATION:
            x = minimize(
                objective,
                x,
                args=(epsilon,),
                method="L-BFGS-B",
                jac=True,
                options={"maxiter": DESCENT_STEPS, "maxfun": 2 * DESCENT_STEPS, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-9},
            ).x
        return split(x)

    def network(self, filters: list[Filter]) -> tuple[float, list[Tensor] | None]:
        """Cost and weights of hidden layers v with the least-norm readout; infinite unless they compute the predictor."""
        product = reduce(lambda m, v: v @ m, [np.einsum("jis,us->uji", v, self.phases) for v in filters])
        readout = self.blocks @ np.linalg.pinv(product, rcond=PSEUDOINVERSE)
        spectrum = np.moveaxis(readout.conj(), 0, -1).reshape(*readout.shape[1:], *self.grid[:-1], -1)
        layers = [(v / np.sqrt(self.copies))[..., self.fold].reshape(*v.shape[:2], *self.kernel) for v in filters]
        layers.append(np.fft.irfftn(spectrum, self.grid, axes=tuple(range(2, spectrum.ndim))))
        norms = [float(np.linalg.norm(w)) for w in layers]
        common = math.prod(norms) ** (1 / self.depth)
        weights = [torch.from_numpy(w * (common / norm)) for w, norm in zip(layers, norms, strict=True)]
        values = frequency_blocks(LinearCNN.from_weights(weights, self.grid)).values.detach()
        computed = values[..., : self.grid[-1] // 2 + 1, :, :].flatten(0, len(self.grid) - 1).numpy()
        wrong, right = (float(self.weights @ (np.abs(b) ** 2).sum((1, 2))) for b in (computed - self.blocks, self.blocks))
        error = math.sqrt(wrong / right)  # of the predictor, by Parseval
        exact = error <= max(MAP_TOLERANCE, self.tolerance)
        return (sum(float((w**2).sum()) for w in weights), weights) if exact else (math.inf, None)


def spectral_factor(factor: Float[np.ndarray, "rows T"]) -> Float[np.ndarray, " T"]:
    """The real filter w of T taps with |Σ_s w_s z^s|² = Σ_{s,t} (WᵀW)_{st} z^{s−t} for |z| = 1 (Fejér, Riesz): the roots inside."""
    gram = factor.T @ factor
    lags = np.array([np.trace(gram, offset) for offset in range(len(gram))])
    roots = np.roots(np.concatenate([lags[:0:-1], lags]))
    inside = roots[np.argsort(np.abs(roots))][: len(gram) - 1]
    filter_ = np.poly(inside).real
    return filter_ * math.sqrt(lags[0]) / np.linalg.norm(filter_)
