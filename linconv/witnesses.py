"""Slow, independent versions of what the library computes, to be compared with it: loops, dense matrices, many digits.

Nothing of `linconv` is imported here and no fast Fourier transform is used, so that an error cannot be on both sides.
"""

import math
from itertools import product

import mpmath
import numpy as np
from jaxtyping import Complex, Float
from scipy.optimize import brentq

Array = np.ndarray

# --- Convolutions and networks -----------------------------------------------------------------------------------------


def dense_convolution(weight: Float[Array, "C_out C_in *kernel"], grid: tuple[int, ...]) -> Float[Array, "rows columns"]:
    """The block-circulant matrix of one circular convolution on images flattened as `(C, *grid)`, tap by tap.

    Tap m sends site j to site j + m mod n; taps of a kernel wider than the grid wrap around and add up.

    >>> dense_convolution(np.array([[[1.0, -1.0]]]), (3,))      # x_i − x_{i−1}
    array([[ 1.,  0., -1.],
           [-1.,  1.,  0.],
           [ 0., -1.,  1.]])
    """
    c_out, c_in, *taps = weight.shape
    matrix = np.zeros((c_out, *grid, c_in, *grid))
    for tap in product(*map(range, taps)):
        for site in product(*map(range, grid)):
            target = tuple((j + m) % n for j, m, n in zip(site, tap, grid, strict=True))
            for c in range(c_out):
                for d in range(c_in):
                    matrix[(c, *target, d, *site)] += weight[(c, d, *tap)]
    sites = math.prod(grid)
    return matrix.reshape(c_out * sites, c_in * sites)


def dense_network(weights: list[Float[Array, "..."]], grid: tuple[int, ...]) -> Float[Array, "K columns"]:
    """The K × C·D matrix of a linear CNN with the given weights, readout last: the product of its layers' matrices."""
    matrix: Float[Array, "K columns"] = weights[-1].reshape(len(weights[-1]), -1).astype(np.float64)
    for weight in reversed(weights[:-1]):
        matrix = matrix @ dense_convolution(weight, grid)
    return matrix


def dense_fourier(grid: tuple[int, ...]) -> Complex[Array, "D D"]:
    """The matrix of the unnormalised DFT on flattened images, exp(−2πi u·m/n) at (u, m), from exponents reduced to one turn.

    >>> dense_fourier((2,)).real.round(12)
    array([[ 1.,  1.],
           [ 1., -1.]])
    """
    sites = np.indices(grid).reshape(len(grid), -1)
    turns = sum(np.outer(u, u) % n / n for u, n in zip(sites, grid, strict=True))
    return np.exp(-2j * np.pi * np.asarray(turns))


# --- Representation cost -----------------------------------------------------------------------------------------------


def dense_cost(beta: Float[Array, "K C *grid"], depth: int) -> float:
    r"""The representation cost of a predictor without any Fourier transform.

    The K·D × C·D matrix of the circular convolution with kernel β is unitarily equivalent to the direct sum of the blocks
    $\hat\beta_u$, so that its K·D (or C·D) singular values are those of all the blocks together and
    $R_L = (L/D) \sum_i \sigma_i^{2/L}$ over them.  Values below 1e-13 of the largest count as zero.

    >>> dense_cost(np.array([[[1.0, 0.0, 0.0]]]), 4)            # a delta: every block is 1
    4.0
    """
    grid = beta.shape[2:]
    sigma = np.linalg.svd(dense_convolution(beta, grid), compute_uv=False)
    kept = sigma[sigma > 1e-13 * sigma.max()]
    return float(depth / math.prod(grid) * (kept ** (2 / depth)).sum())


# --- Proximal map ------------------------------------------------------------------------------------------------------


def shrink_mpmath(y: float, step: float, p: float, *, digits: int = 40) -> float:
    r"""$\arg\min_{x \ge 0} \tfrac12 (x-y)^2 + \lambda x^p$ for one y ≥ 0, 0 < p ≤ 1 or p = 2, by comparing all candidates.

    The derivative $x - y + \lambda p x^{p-1}$ is least at $(\lambda p (1-p))^{1/(2-p)}$; the only interior minimum is its root
    beyond that point, found by bisection, and it competes with x = 0.

    >>> shrink_mpmath(3.0, 1.0, 1.0), shrink_mpmath(1.0, 1.0, 0.5), shrink_mpmath(3.0, 1.0, 2.0)
    (2.0, 0.0, 1.0)
    """
    with mpmath.workdps(digits):
        target, weight, power = mpmath.mpf(y), mpmath.mpf(step), mpmath.mpf(p)
        if target == 0 or weight == 0:
            return y

        def objective(x: mpmath.mpf) -> mpmath.mpf:
            return (x - target) ** 2 / 2 + weight * x**power

        def derivative(x: mpmath.mpf) -> mpmath.mpf:
            return x - target + weight * power * x ** (power - 1)

        least = (weight * power * (1 - power)) ** (1 / (2 - power)) if power < 1 else mpmath.mpf(0)
        candidates = [mpmath.mpf(0)]
        if least < target and (power == 2 or derivative(least) < 0):
            low, high = least, target
            for _ in range(int(4 * digits)):
                middle = (low + high) / 2
                low, high = (middle, high) if derivative(middle) < 0 else (low, middle)
            candidates.append((low + high) / 2)
        return float(min(candidates, key=objective))


# --- Branches of the weight-decayed problem ----------------------------------------------------------------------------


def least_squares_components(
    x: Float[Array, "N C *grid"], y: Float[Array, "N K"]
) -> tuple[Complex[Array, "D K r"], Float[Array, "D r"], Complex[Array, "D r C"], Float[Array, " D"]]:
    """U, m, V* and s: the least-squares block of data with second moment s_u·I at frequency u is G_u/s_u = U diag(m) V*.

    G_u = (1/N) Σ_n y_n x̂_{n,u}† with the orthonormal DFT, from a table of all D² roots of unity.
    """
    grid = x.shape[2:]
    sites = np.indices(grid).reshape(len(grid), -1)
    turns = sum(np.outer(u, u) % n / n for u, n in zip(sites, grid, strict=True))
    spectrum = x.reshape(*x.shape[:2], -1) @ np.exp(-2j * np.pi * turns) / math.sqrt(sites.shape[1])
    s = np.mean(np.abs(spectrum) ** 2, axis=(0, 1))
    cross = np.einsum("nk,ncu->ukc", y, spectrum.conj()) / len(x)
    u, m, vh = np.linalg.svd(cross / s[:, None, None], full_matrices=False)
    return u, m, vh, s


def largest_root(m: float, weight: float, p: float) -> float:
    """The local minimum t > 0 of ½(t − m)² + weight·t^p, or 0 where there is none: the nonzero branch of a component.

    >>> largest_root(3.0, 0.5, 1.0), largest_root(3.0, 0.5, 2.0), largest_root(0.1, 0.5, 0.5)
    (2.5, 1.5, 0.0)
    """
    if p == 2:
        return m / (1 + 2 * weight)
    if p == 1:
        return max(m - weight, 0.0)

    def slope(t: float) -> float:
        return t - m + weight * p * t ** (p - 1)

    lowest = (weight * p * (1 - p)) ** (1 / (2 - p))  # where the slope is least
    return float(brentq(slope, lowest, m, xtol=1e-300, rtol=1e-15)) if lowest < m and slope(lowest) < 0 else 0.0


# --- Restricted kernels ------------------------------------------------------------------------------------------------


def restricted_cost_programme(beta: Float[Array, "K C *grid"], kernel_size: tuple[int, ...]) -> float:
    """The least ‖w¹‖² + ‖w²‖² of depth-2 networks with `kernel_size` taps that compute β: 2 min ‖Z‖_* by cvxpy with Clarabel.

    Z[(s, c), (κ, p)] = Σ_j w¹[j, c, s] w²[κ, j, p] computes β if Σ_s Z[(s, c), (κ, q + s mod grid)] = β[κ, c, q]; every
    factorisation of Z costs at least 2‖Z‖_*, the balanced one no more.  Clarabel's value, good to about 1e-7 on small problems.

    >>> round(restricted_cost_programme(np.array([[[1.0, 0.0, 0.0]]]), (2,)), 6)      # a delta needs one tap of size 1
    2.0
    """
    import cvxpy as cp  # takes a second to load, and only this section needs it

    outputs, channels, *grid = beta.shape
    taps, sites = math.prod(kernel_size), math.prod(grid)
    z = cp.Variable((taps * channels, outputs * sites))
    columns = np.arange(outputs * sites).reshape(outputs, *grid)
    constraints = []
    for c in range(channels):
        reached = 0
        for s, tap in enumerate(product(*map(range, kernel_size))):
            shifted = np.roll(columns, [-m for m in tap], axis=tuple(range(1, columns.ndim)))  # column of (κ, q + s)
            reached = reached + z[s * channels + c, shifted.ravel()]
        constraints.append(reached == beta[:, c].ravel())
    problem = cp.Problem(cp.Minimize(2 * cp.normNuc(z)), constraints)
    return float(problem.solve(solver=cp.CLARABEL))


# --- Optimum -----------------------------------------------------------------------------------------------------------


def ridge_optimum(x: Float[Array, "N C *grid"], y: Float[Array, "N K"], weight_decay: float) -> Float[Array, "K C *grid"]:
    """The minimiser of (1/2N)‖Xβ − y‖² + λ‖β‖², by least squares with the rows √(2Nλ)·I appended to X.

    >>> ridge_optimum(np.array([[[2.0]], [[0.0]]]), np.array([[1.0], [5.0]]), 0.5)      # β = 2/(4 + 2·2·0.5)
    array([[[0.33333333]]])
    """
    n, outputs, size = len(x), y.shape[1], x[0].size
    rows = np.vstack([x.reshape(n, -1), math.sqrt(2 * n * weight_decay) * np.eye(size)])
    beta = np.linalg.lstsq(rows, np.vstack([y, np.zeros((size, outputs))]), rcond=None)[0]
    return beta.T.reshape(outputs, *x.shape[1:])


def depth_two_programme(x: Float[Array, "N C *grid"], y: Float[Array, "N K"], weight_decay: float) -> float:
    r"""The minimum over predictors at depth 2 by cvxpy with Clarabel, good to about 1e-8; the penalty is that of `dense_cost`.

    R_2 = (2/D) Σ_u ‖V_u‖_* is 2/D times the nuclear norm of the K·D × C·D matrix of the circular convolution with β.

    >>> round(depth_two_programme(np.ones((1, 1, 1)), np.ones((1, 1)), 0.25), 6)      # min ½(1 − b)² + ½|b|
    0.375
    """
    import cvxpy as cp  # takes a second to load

    n, outputs, grid = len(x), y.shape[1], x.shape[2:]
    size, sites = x[0].size, math.prod(grid)
    # Column e of `unit` is the matrix of the convolution with the e-th unit predictor, flattened.
    unit = np.stack([dense_convolution(e.reshape(outputs, *x.shape[1:]), grid).ravel() for e in np.eye(outputs * size)], axis=1)
    beta = cp.Variable(outputs * size)
    matrix = cp.reshape(unit @ beta, (outputs * sites, size), order="C")
    data = cp.sum_squares(np.kron(np.eye(outputs), x.reshape(n, -1)) @ beta - y.T.ravel()) / (2 * n)
    problem = cp.Problem(cp.Minimize(data + weight_decay * 2 / sites * cp.normNuc(matrix)))
    return float(problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9))


def scalar_optimum(s: float, g: float, mu: float, p: float, *, digits: int = 30) -> tuple[float, float]:
    """Minimiser and minimum of ½ s t² − g t + μ t^p over t ≥ 0, by a dense search and golden sections around its best points.

    >>> [round(number, 12) for number in scalar_optimum(1.0, 3.0, 1.0, 1.0)]
    [2.0, -2.0]
    """
    with mpmath.workdps(digits):
        a, b, weight, power = (mpmath.mpf(v) for v in (s, g, mu, p))

        def objective(t: mpmath.mpf) -> mpmath.mpf:
            return a * t * t / 2 - b * t + weight * t**power

        step = b / a / 2000
        values = [objective(k * step) for k in range(2001)]  # at its minimum t ≤ g/s
        best = (mpmath.mpf(0), mpmath.mpf(0))
        golden = (mpmath.sqrt(5) - 1) / 2
        for k in range(1, 2000):
            if values[k] <= min(values[k - 1], values[k + 1]):
                low, high = (k - 1) * step, (k + 1) * step
                for _ in range(int(2.5 * digits)):
                    left, right = high - golden * (high - low), low + golden * (high - low)
                    low, high = (low, right) if objective(left) < objective(right) else (left, high)
                best = min(best, (objective(low), low))
        return float(best[1]), float(best[0])


def one_output_optimum(s: Float[Array, " C"], m: Float[Array, " C"], mu: float, p: float, *, starts: int = 40, seed: int = 0) -> float:
    """The minimum of ½ Σ_i s_i (v_i − m_i)² + μ‖v‖^p over real vectors v, from many random starts and at v = 0.

    Complex blocks come down to this: multiplying m_i by a phase multiplies the optimal v_i by the same one.

    >>> round(one_output_optimum(np.ones(2), np.array([3.0, 4.0]), 1.0, 1.0), 6)      # ‖v‖ shrinks from 5 to 4
    4.5
    """
    from scipy.optimize import minimize  # takes half a second to load

    rng = np.random.default_rng(seed)

    def objective(v: Float[Array, " C"]) -> float:
        return float((s * (v - m) ** 2).sum() / 2 + mu * np.linalg.norm(v) ** p)

    begin = [m, *(m * rng.uniform(0, 1.2, len(m)) for _ in range(starts))]
    found = (minimize(objective, v, method="BFGS", options={"gtol": 1e-9}) for v in begin)
    return min(objective(np.zeros(len(m))), *(float(run.fun) for run in found))
