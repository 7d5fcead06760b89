"""Distances between radial curves, such as the sensitivity of a network and the spectrum of its data: only their shapes count."""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from linconv.statistics.resampling import Array, as_array


def kl_divergence(p: Float[Tensor, " R"], q: Float[Tensor, " R"], radii: Float[Tensor, " R"]) -> float:
    """Kullback–Leibler divergence ∫ p log(p/q) dr in nats of two curves, each scaled to mass ∫ = 1; infinite where q = 0 < p.

    Here and in the other distances a curve is nonnegative and given at ascending radii `(R,)`, R ≥ 2, as `radial_average` does; ∫ is the
    trapezoidal rule.  Raises `ValueError` for negative values, a mass of 0, and radii that do not ascend.

    >>> import torch
    >>> r = torch.linspace(0, 1, 5, dtype=torch.float64)
    >>> kl_divergence(1 + r, 3 + 3 * r, r), kl_divergence(1 + r, r, r)
    (0.0, inf)
    """
    x, y, _ = _masses(p, q, radii)
    present = x > 0
    rest = y[~present].sum()
    if (y[present] == 0).any():
        return math.inf
    x, y = x[present], y[present]
    # The sum of x − y vanishes; with it every term is ≥ 0, so that small divergences keep their digits.
    ratio = (y - x) / x
    return float(np.sum(x * (ratio - np.log1p(ratio)))) + float(rest)


def total_variation(p: Float[Tensor, " R"], q: Float[Tensor, " R"], radii: Float[Tensor, " R"]) -> float:
    """Total variation ½ ∫ |p − q| dr of two curves of mass 1: from 0 to 1. Arguments and errors as in `kl_divergence`.

    >>> import torch
    >>> r = torch.tensor([0.0, 1.0, 2.0])
    >>> total_variation(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]), r)
    1.0
    """
    x, y, _ = _masses(p, q, radii)
    return float(np.abs(x - y).sum() / 2)


def cosine_distance(p: Float[Tensor, " R"], q: Float[Tensor, " R"], radii: Float[Tensor, " R"]) -> float:
    """1 − cos of the angle between two curves in L²(dr): from 0 to 1, whatever their scales. Arguments and errors as in `kl_divergence`."""
    x, y, weights = _masses(p, q, radii)
    # Half the squared distance of unit vectors: 1 − ⟨x, y⟩ would lose half the digits where the curves are alike.
    x, y = (values / np.sqrt(weights) for values in (x, y))
    return float(np.square(x / np.linalg.norm(x) - y / np.linalg.norm(y)).sum() / 2)


def first_moment(p: Float[Tensor, " R"], radii: Float[Tensor, " R"]) -> float:
    """Mean radius ∫ r p dr of a curve of mass 1, in units of the radii. Arguments and errors as in `kl_divergence`.

    >>> import torch
    >>> first_moment(torch.ones(3), torch.tensor([0.0, 1.0, 2.0]))
    1.0
    """
    x, _, _ = _masses(p, p, radii)
    return float(x @ as_array("radii", radii))


def _masses(p: Tensor, q: Tensor, radii: Tensor) -> tuple[Array, Array, Array]:
    """The masses of two curves at each radius, of sum 1, and the weights of the trapezoidal rule."""
    r = as_array("radii", radii, ndim=(1,))
    if r.size < 2 or not (np.diff(r) > 0).all():
        raise ValueError(f"radii: expected two or more ascending numbers, got {r.tolist()[:4]} …; sort the curve with them")
    gaps = np.diff(r)
    weights = (np.append(gaps, 0) + np.append(0, gaps)) / 2
    masses = []
    for name, curve in (("p", p), ("q", q)):
        values = as_array(name, curve, ndim=(1,))
        if values.shape != r.shape or values.min() < 0 or values.max() == 0:
            raise ValueError(
                f"{name}: expected {r.size} numbers ≥ 0, not all 0, one a radius, got shape {values.shape}, least {values.min():.3g}"
            )
        mass = weights * (values / values.max())
        masses.append(mass / mass.sum())
    return masses[0], masses[1], weights
