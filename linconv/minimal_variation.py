r"""The feature limit of one-hidden-layer ReLU networks: the interpolant of least total variation, by linear programmes with certificates.

$$\min_\gamma |\gamma|(S^{d-1}) \quad\text{such that}\quad \int \sigma(w\cdot x_i)\, d\gamma(w) = y_i, \; i \le P,$$

over signed measures γ on the sphere of neurons.  A network $\frac1H \sum_h c_h \sigma(w_h\cdot x)$ is a sum of atoms, of total variation
$\frac1H \sum_h |c_h||w_h|$.  The dual programme is $\max \lambda\cdot y$ such that $|g_\lambda(w)| \le 1$ for *all* neurons w of norm 1,
where $g_\lambda(w) = \sum_i \lambda_i \sigma(w\cdot x_i)$.  Any λ, divided by the maximum of |g_λ|, proves a lower bound.  Neurons are
exchanged: the linear programme on some of them gives λ, and the local maxima of |g_λ| beyond 1 are the neurons that come next.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from linconv.dual_maxima import exact_maximum, local_maxima
from linconv.kernels import refuse_twins, validated_points
from linconv.validation import validate_generator, validate_number, validate_size

ABSENT = 1e-9  # of the total variation: weights below are rounding of the linear programme
NEARLY_ACTIVE = 0.98  # |g| above which a neuron stays in the next linear programme
PROGRESS = 1e-7  # fall of the total variation, relative, that counts as one
ALIKE = 1e-5  # distance below which two new neurons are one
ROUNDING = 1e-9  # taken off a proved lower bound: vertices of the arrangement are known to this in points that are not nearly degenerate


@dataclass(frozen=True)
class MinimalVariation:
    """An interpolant f(x) = Σ_a weights_a σ(neurons_a · x) of few atoms, and how far from the least total variation it can be.

    `neurons` `(A, d)` have norm 1, A ≤ P; `total_variation` = Σ|weights|, an upper bound on the minimum.  `dual` `(P,)` and `dual_maximum`,
    the largest |g_λ| over the sphere, prove `lower_bound` where `proved` holds: then all local maxima were enumerated, and the bound is
    −inf otherwise.  `bound_found` is that bound if the search has found the largest |g_λ|.  `rounds` of exchange were made.
    """

    neurons: Float[Tensor, "A d"]
    weights: Float[Tensor, " A"]
    total_variation: float
    dual: Float[Tensor, " P"]
    dual_value: float
    dual_maximum: float
    proved: bool
    rounds: int

    def __call__(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        return (torch.relu(x.flatten(1).to(torch.float64) @ self.neurons.T) @ self.weights).to(x.dtype)

    @property
    def feasible_dual(self) -> Float[Tensor, " P"]:
        """λ scaled to |g_λ| ≤ 1, rounding paid for: λ·y is then at most the total variation of any network with outputs y on the points."""
        return self.dual / max(1.0, self.dual_maximum * (1 + ROUNDING))

    @property
    def bound_found(self) -> float:
        return self.dual_value / max(1.0, self.dual_maximum * (1 + ROUNDING))

    @property
    def lower_bound(self) -> float:
        return self.bound_found if self.proved else -math.inf

    @property
    def gap(self) -> float:
        """(total_variation − bound_found)/total_variation: a certificate where `proved`, else what the search knows."""
        return (self.total_variation - self.bound_found) / self.total_variation if self.total_variation else 0.0


def min_total_variation(
    x: Float[Tensor, "P *shape"],
    y: Float[Tensor, " P"],
    *,
    generator: torch.Generator,
    tol: float = 1e-4,
    max_rounds: int = 40,
    starts: int = 128,
) -> MinimalVariation:
    """The interpolant of least total variation, to a relative gap of `tol` or for `max_rounds` rounds.

    `x`: points `(P, d)`, d ≥ 2, or images that are flattened; `y`: `(P,)`.  Each round solves a linear programme by HiGHS and climbs from
    `starts` random neurons, and from those in use, to local maxima of |g_λ|.  In d = 2 all of them are known, and in higher dimensions
    where their number is moderate (`exact_maximum`): the gap is then proved; elsewhere it is that of the local maxima found.
    Raises `ValueError` for points of one direction, and for targets that no network without biases interpolates.

    >>> x = torch.eye(3, dtype=torch.float64)
    >>> f = min_total_variation(x, torch.ones(3, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    >>> round(f.total_variation, 3), f.proved, len(f.weights) <= 3       # one neuron along (1, 1, 1)/√3 of weight √3
    (1.732, True, True)
    """
    points, targets = validated_points(x, y)
    if targets.ndim != 1 or points.shape[1] < 2:
        raise ValueError(f"x, y: expected points of two dimensions or more and one target each, got {tuple(x.shape)}, {tuple(y.shape)}")
    refuse_twins(points)
    allowed, rounds = validate_number("tol", tol, positive=True), validate_size("max_rounds", max_rounds)
    count, source = validate_size("starts", starts), validate_generator(generator)
    scale = float(targets.abs().max())
    if scale == 0:
        nothing = points.new_zeros(0, points.shape[1])
        return MinimalVariation(nothing, points.new_zeros(0), 0.0, torch.zeros_like(targets), 0.0, 0.0, True, 0)
    sizes = torch.linalg.vector_norm(points, dim=1)
    unit, goals = points / sizes[:, None], targets / scale / sizes  # σ(w·x) = |x| σ(w·x̂): rows of one size
    neurons, least = _first_neurons(unit, source), math.inf
    for done in range(1, rounds + 1):
        used, weights, dual = _programme(unit, goals, neurons)
        found, highest = _violators(unit, dual, torch.cat([_directions(count, unit.shape[1], source), used]), source)
        total, value, exact = float(weights.abs().sum()), float(dual @ goals), None
        if value >= (1 - allowed) * total * max(1.0, highest) or done == rounds:
            exact = exact_maximum(unit, dual)
            if exact is not None:
                highest, found = max(highest, exact[0]), torch.cat([found, exact[1][None]])
            if value >= (1 - allowed) * total * max(1.0, highest) or done == rounds:
                break
        if total < (1 - PROGRESS) * least:  # neurons are dropped after progress only: a dual point that is not unique would cycle
            least, neurons = total, neurons[(torch.relu(neurons @ unit.T) @ dual).abs() > NEARLY_ACTIVE]
        neurons = torch.cat([used, neurons, found, _merged(unit, used, weights)])
    return MinimalVariation(used, scale * weights, scale * total, dual / sizes, scale * value, highest, exact is not None, done)


def constant_variation(dim: int) -> float:
    r"""The total variation 1/E σ(w·x) of the uniform density of neurons that computes f = 1 on the sphere S^{d−1}.

    It is feasible for y = 1 on any points of the sphere, so that the least total variation is at most
    $2\sqrt\pi\,\Gamma(\frac{d+1}2)/\Gamma(\frac d2)$ whatever their number, and tends to it from below as they fill the sphere.  Derived
    here.

    >>> [round(constant_variation(d) / math.pi, 6) for d in (2, 3, 4)]
    [1.0, 1.27324, 1.5]
    """
    d = validate_size("dim", dim)
    return 2 * math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))


def _directions(n: int, dim: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    drawn = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


def _first_neurons(unit: Float[Tensor, "P d"], generator: torch.Generator) -> Float[Tensor, "N d"]:
    """The points, random ones, and neurons that switch exactly at a point: with them points close to each other can be told apart."""
    across = unit.roll(1, 0) - (unit.roll(1, 0) * unit).sum(1, keepdim=True) * unit
    sizes = torch.linalg.vector_norm(across, dim=1)
    across = across[sizes > 0] / sizes[sizes > 0, None]
    return torch.cat([unit, -unit, across, -across, _directions(4 * len(unit) + 64, unit.shape[1], generator)])


def _programme(
    unit: Float[Tensor, "P d"], goals: Float[Tensor, " P"], neurons: Float[Tensor, "N d"]
) -> tuple[Float[Tensor, "A d"], Float[Tensor, " A"], Float[Tensor, " P"]]:
    """Atoms and weights of the least Σ|c| over the given neurons, and the dual point."""
    features = torch.relu(unit @ neurons.T)
    solved = linprog(
        np.ones(2 * len(neurons)), A_eq=torch.cat([features, -features], 1).numpy(), b_eq=goals.numpy(), bounds=(0, None), method="highs"
    )
    if solved.x is None and solved.status != 2:  # 2: infeasible
        raise ValueError(
            f"y: expected a linear programme that HiGHS solves, got “{solved.message}”; rescale the targets or take fewer points"
        )
    if solved.x is None:
        raise ValueError(
            "y: expected targets that a network interpolates, but none does; without biases the odd part of a function is linear, which "
            "opposite points may contradict; remove one of each pair"
        )
    positive, negative = torch.from_numpy(solved.x).chunk(2)
    weights = positive - negative
    used = weights.abs() > ABSENT * weights.abs().sum()
    # HiGHS interpolates to 1e-7: on its atoms, independent as they are at a vertex, the weights are solved for.
    polished = torch.linalg.lstsq(features[:, used], goals[:, None]).solution[:, 0]
    return neurons[used], polished, torch.from_numpy(solved.eqlin.marginals)


def _merged(unit: Float[Tensor, "P d"], used: Float[Tensor, "A d"], weights: Float[Tensor, " A"]) -> Float[Tensor, "m d"]:
    """One neuron for all atoms of one sign on one region, where the network is linear: their sum is no longer than their weights."""
    regions = torch.cat([used @ unit.T > 0, weights[:, None] > 0], 1)
    places = torch.unique(regions, dim=0, return_inverse=True)[1]
    sums = torch.zeros_like(used).index_add(0, places, weights.abs()[:, None] * used)
    sizes = torch.linalg.vector_norm(sums, dim=1)
    return sums[sizes > 0] / sizes[sizes > 0, None]


def _violators(
    unit: Float[Tensor, "P d"], dual: Float[Tensor, " P"], starts: Float[Tensor, "n d"], generator: torch.Generator
) -> tuple[Float[Tensor, "m d"], float]:
    """The local maxima of |g_λ| found, highest first, without twins, and the largest value."""
    ends = [local_maxima(unit, sign * dual, starts, generator=generator) for sign in (1.0, -1.0)]
    neurons, values = (torch.cat([end[i] for end in ends]) for i in range(2))
    order = values.argsort(descending=True)
    neurons, values = neurons[order], values[order]
    apart = torch.cdist(neurons, neurons, compute_mode="donot_use_mm_for_euclid_dist") > ALIKE
    first = (apart | (torch.arange(len(neurons))[:, None] <= torch.arange(len(neurons)))).all(1)
    return neurons[first & (values > 1)], float(values[0])
