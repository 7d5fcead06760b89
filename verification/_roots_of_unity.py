r"""The convolution theorem as exact algebra: polynomials in free symbols with coefficients in the ring of roots of unity.

On a grid with sides n_1, n_2, … every phase $e^{-2\pi i\,u\cdot m/n}$ is a power of $z = e^{-2\pi i/N}$, N = lcm(n_1, n_2, …), and
Z[z] is Z[t] modulo the cyclotomic polynomial $\Phi_N$. So both sides of an identity become polynomials in the entries of kernels
and images, and are equal for *all* real entries if and only if their remainders modulo $\Phi_N$ are the same. No number is rounded.
"""

import math
from itertools import product
from typing import Any, TypeAlias

from sympy import ZZ, Poly, Symbol, cyclotomic_poly
from sympy.polys.rings import ring

Site: TypeAlias = tuple[int, ...]
# An element of the ring: the coefficients of 1, z, …, z^{N−1}, each a polynomial in the entries.
Element: TypeAlias = list[Any]
# A tensor by index: channels, then site.
Entries: TypeAlias = dict[tuple[int, ...], Any]


class Grid:
    """A small grid: its sites, its roots of unity, and sums over both."""

    def __init__(self, sides: Site) -> None:
        self.sides, self.order = sides, math.lcm(*sides)
        self.sites: list[Site] = list(product(*map(range, sides)))
        t = Symbol("t")
        modulus = Poly(cyclotomic_poly(self.order, t), t)
        # z^j = Σ_k remainders[j][k] z^k with k < φ(N)
        self.remainders = [Poly(t**j, t).rem(modulus).all_coeffs()[::-1] for j in range(self.order)]

    def phase(self, u: Site, m: Site) -> int:
        """The power of z that exp(−2πi u·m/n) is."""
        return sum(a * b * (self.order // n) for a, b, n in zip(u, m, self.sides, strict=True)) % self.order

    def symbols(self, *channels: tuple[int, ...]) -> list[Entries]:
        """A tensor `(*channels, *sides)` of free symbols for each argument, all in one polynomial ring over the integers."""
        indices = [[(*c, *m) for c in product(*map(range, shape)) for m in self.sites] for shape in channels]
        _, *generators = ring([f"t{i}_{'_'.join(map(str, index))}" for i, tensor in enumerate(indices) for index in tensor], ZZ)
        fresh = iter(generators)
        return [{index: next(fresh) for index in tensor} for tensor in indices]

    def transform(self, tensor: Entries, channels: tuple[int, ...], u: Site) -> Element:
        """Σ_m tensor[channels, m] exp(−2πi u·m/n)."""
        out: Element = [0] * self.order
        for m in self.sites:
            out[self.phase(u, m)] += tensor[(*channels, *m)]
        return out

    def convolve(self, w: Entries, x: Entries, c_out: int, c_in: int, *, sign: int = -1) -> Entries:
        """y[c, i] = Σ_{m, d} w[c, d, m] x[d, i − m]; with `sign` +1 the cross-correlation, x[d, i + m]."""
        out: Entries = {}
        for c, i in product(range(c_out), self.sites):
            moved = {m: tuple((a + sign * b) % n for a, b, n in zip(i, m, self.sides, strict=True)) for m in self.sites}
            out[(c, *i)] = sum(w[(c, d, *m)] * x[(d, *moved[m])] for d in range(c_in) for m in self.sites)
        return out

    def times(self, a: Element, b: Element) -> Element:
        out: Element = [0] * self.order
        for (i, left), (j, right) in product(enumerate(a), enumerate(b)):
            out[(i + j) % self.order] += left * right
        return out

    def apply(self, block: list[list[Element]], vector: list[Element]) -> list[Element]:
        """A matrix of elements times a vector of them."""
        return [total(*(self.times(entry, x) for entry, x in zip(row, vector, strict=True))) for row in block]

    def block(self, w: Entries, c_out: int, c_in: int, u: Site) -> list[list[Element]]:
        return [[self.transform(w, (c, d), u) for d in range(c_in)] for c in range(c_out)]

    def is_zero(self, a: Element) -> bool:
        reduced: Element = [0] * max(map(len, self.remainders))
        for coefficient, remainder in zip(a, self.remainders, strict=True):
            for k, factor in enumerate(remainder):
                reduced[k] += int(factor) * coefficient
        return not any(reduced)


def conjugate(a: Element) -> Element:
    """The complex conjugate, where the entries are real: z becomes 1/z."""
    return [a[-j] for j in range(len(a))]


def total(*elements: Element) -> Element:
    return [sum(coefficients) for coefficients in zip(*elements, strict=True)]


def minus(a: Element, b: Element) -> Element:
    return [left - right for left, right in zip(a, b, strict=True)]


def orthogonality(sides: Site) -> list[bool]:
    """Σ_u exp(−2πi u·(m − m')/n) = D δ_{mm'} for all sites: F/√D is unitary, so W and F W F⁻¹ have the same singular values."""
    grid, found = Grid(sides), []
    for m, other in product(grid.sites, repeat=2):
        out: Element = [0] * grid.order
        for u in grid.sites:
            out[(grid.phase(u, m) - grid.phase(u, other)) % grid.order] += 1
        out[0] -= len(grid.sites) * (m == other)
        found.append(grid.is_zero(out))
    return found


def layer(sides: Site, *, channels: int = 2, correlation: bool = False) -> list[bool]:
    """(w ⋆ x)^_u = ŵ_u x̂_u at every frequency and channel; layers compose, so a stack of any depth has the product of their blocks."""
    grid, found = Grid(sides), []
    w, x = grid.symbols((channels, channels), (channels,))
    y = grid.convolve(w, x, channels, channels, sign=1 if correlation else -1)
    for u in grid.sites:
        spectrum = [grid.transform(x, (d,), u) for d in range(channels)]
        predicted = grid.apply(grid.block(w, channels, channels, u), spectrum)
        found += [grid.is_zero(minus(grid.transform(y, (c,), u), predicted[c])) for c in range(channels)]
    return found


def network(sides: Site, widths: tuple[int, ...], *, conjugated: bool = True, normalised: bool = True, reverse: bool = False) -> list[bool]:
    """D f_k(x) = Σ_u [conj(ŵ^L_u) ŵ^{L−1}_u ⋯ ŵ^1_u x̂_u]_k for each output; `widths` are those of the images, hidden layers, outputs.

    The options are wrong variants: readout not conjugated, D dropped, hidden layers in reverse order.
    """
    grid = Grid(sides)
    pairs = list(zip(widths[1:], widths, strict=False))
    x, *weights = grid.symbols(widths[:1], *pairs)
    space = x
    for w, pair in zip(weights[:-1], pairs, strict=False):
        space = grid.convolve(w, space, *pair)
    sums: list[Element] = [[0] * grid.order for _ in range(widths[-1])]
    for u in grid.sites:
        vector = [grid.transform(x, (d,), u) for d in range(widths[0])]
        hidden = list(zip(weights[:-1], pairs, strict=False))
        for w, pair in reversed(hidden) if reverse else hidden:
            vector = grid.apply(grid.block(w, *pair, u), vector)
        readout = grid.block(weights[-1], *pairs[-1], u)
        vector = grid.apply([[conjugate(entry) for entry in row] for row in readout] if conjugated else readout, vector)
        sums = [total(a, b) for a, b in zip(sums, vector, strict=True)]
    factor, last = len(grid.sites) if normalised else 1, weights[-1]
    outputs = [factor * sum(last[(k, c, *i)] * space[(c, *i)] for c in range(widths[-2]) for i in grid.sites) for k in range(widths[-1])]
    return [grid.is_zero(minus(found, [output] + [0] * (grid.order - 1))) for found, output in zip(sums, outputs, strict=True)]
