r"""Sets of blocks, and exact minima of φ(σ) − ⟨Z, B⟩ over them: the pieces of every lower bound at depth ≥ 3.

In a `Cell` the i-th singular value of B_u is in [low_ui, high_ui], or 0 where `zero_ui` allows it; the real and imaginary parts of
B_u are in its `box`, if that is given.  With φ_u(t) = ½s_u t² + μt^p, concave up to t = (μp(1−p)/s_u)^{1/(2−p)} and
convex beyond, von Neumann's trace inequality makes

    min_B Σ_i φ(σ_i(B)) − Re⟨Z, B⟩  ≥  Σ_i min_t φ(t) − σ_i(Z) t,

each t in its own set: a minimum over two ends and at most one stationary point.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Complex, Float

Values = Float[np.ndarray, "O r"]
Blocks = Complex[np.ndarray, "O K C"]
NEWTON_STEPS = 8
BISECTIONS = 45


@dataclass(frozen=True)
class Box:
    """The blocks with real and imaginary parts between those of two opposite corners."""

    near: Blocks
    far: Blocks

    @property
    def centre(self) -> Blocks:
        return (self.near + self.far) / 2

    @property
    def half(self) -> Blocks:
        """Half the edges."""
        return (self.far - self.near) / 2

    def apart(self) -> Bool[np.ndarray, " O"]:
        """Which boxes are away from 0."""
        return np.abs(self.centre).max((1, 2)) > np.abs(self.half).max((1, 2)) * (1 - 1e-9)

    def largest(self) -> Float[np.ndarray, " O"]:
        """The largest norm of a block inside."""
        parts = (np.maximum(np.abs(near), np.abs(far)) for near, far in ((self.near.real, self.far.real), (self.near.imag, self.far.imag)))
        return np.sqrt(sum((part**2).sum((1, 2)) for part in parts))

    def clip(self, blocks: Blocks) -> Blocks:
        """The nearest blocks inside."""
        real = np.minimum(np.maximum(blocks.real, self.near.real), self.far.real)
        return real + 1j * np.minimum(np.maximum(blocks.imag, self.near.imag), self.far.imag)


@dataclass(frozen=True)
class Cell:
    """Intervals of singular values, descending in i, and where given a box of blocks."""

    low: Values
    high: Values
    zero: Bool[np.ndarray, "O r"]
    box: Box | None = None

    def kept(self, orbits: Bool[np.ndarray, " O"]) -> "Cell":
        """The cell on some of the orbits."""
        box = None if self.box is None else Box(self.box.near[orbits], self.box.far[orbits])
        return Cell(self.low[orbits], self.high[orbits], self.zero[orbits], box)

    def ordered(self) -> "Cell | None":
        """The same set with what σ_1 ≥ σ_2 ≥ … says about its intervals; None if it is empty."""
        zero = np.logical_and.accumulate(self.zero[:, ::-1], axis=1)[:, ::-1]
        least = np.maximum.accumulate(np.where(zero, 0.0, self.low)[:, ::-1], axis=1)[:, ::-1]
        low, high = np.maximum(self.low, least), np.minimum.accumulate(self.high, axis=1)
        gone = zero & (low > high)
        high = np.minimum.accumulate(np.where(gone, 0.0, high), axis=1)
        low = np.where(high > 0, low, 0.0)
        if bool(((low > high) | ((high == 0) & ~zero)).any()):
            return None
        return replace(self, low=low, high=high, zero=zero)


@dataclass(frozen=True)
class Penalty:
    """φ_u(t) = ½s_u t² + weight·t^p."""

    s: Float[np.ndarray, "O 1"]
    weight: float
    p: float

    def value(self, t: Values) -> Values:
        return self.s * t**2 / 2 + self.weight * t**self.p

    def slope(self, t: Values) -> Values:
        with np.errstate(divide="ignore"):
            return self.s * t + self.weight * self.p * t ** (self.p - 1)

    def bend(self) -> Float[np.ndarray, "O 1"]:
        """Where φ turns from concave to convex."""
        with np.errstate(divide="ignore"):
            return (self.weight * self.p * (1 - self.p) / self.s) ** (1 / (2 - self.p))

    def root(self, z: Values, low: Values, high: Values, extra: Float[np.ndarray, "O 1"] | float = 0.0) -> Values:
        """Where φ(t) + ½·extra·t² − zt is least on the convex part of [low, high], or an end of it."""
        s = self.s + extra
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            bend = np.minimum((self.weight * self.p * (1 - self.p) / s) ** (1 / (2 - self.p)) * (1 + 1e-9), 1e300)
            start = np.where(s > 0, z / s, np.inf)
            floor = np.minimum(np.maximum(low, bend), high)
            t = np.minimum(np.maximum(start, floor), high)
            for _ in range(NEWTON_STEPS):
                power = self.weight * self.p * t ** (self.p - 1)
                step = (s * t + power - z) / (s - (1 - self.p) * power / t)
                t = np.where(np.isfinite(step), np.minimum(np.maximum(t - step, floor), high), t)
        return t

    def valley(self, z: Values, low: Values, high: Values) -> tuple[Values, Values]:
        """The minimiser t of φ(t) − zt on the convex part of [low, high], and how far below φ(t) − zt its minimum may be."""
        t = self.root(z, low, high)
        # Convex beyond the bend, φ is above its tangents there: Newton's method need not be trusted.
        floor = np.minimum(np.maximum(low, self.bend()), high)
        rise = np.where(t > 0, self.slope(np.where(t > 0, t, 1.0)) - z, 0.0)
        return t, np.maximum(np.maximum(rise * (t - floor), -rise * (high - t)), 0.0)

    def least(self, z: Values, low: Values, high: Values) -> Values:
        """A lower bound, exact up to rounding, on min φ(t) − zt over [low, high]: at `low` or on the convex part."""
        t, slack = self.valley(z, low, high)
        return np.minimum(self.value(low) - z * low, self.value(t) - z * t - slack)

    def minima(self, z: Values, cell: Cell) -> Values:
        """Lower bounds on min φ(t) − z_i t over the set of each singular value."""
        value = self.least(z, cell.low, cell.high)
        return np.where(cell.zero, np.minimum(value, 0.0), value)

    def box_minima(self, gradient: Blocks, cell: Cell, box: Box) -> Float[np.ndarray, " O"]:
        """Lower bounds on min Σ_i φ(σ_i(B)) − Re⟨Z, B⟩ over the boxes: of second order in their size where min(K, C) = 1."""
        slope, constant = tangents(self, cell, box)
        g = gradient - slope
        total = constant
        for part, near, far in ((g.real, box.near.real, box.far.real), (g.imag, box.near.imag, box.far.imag)):
            s = self.s[:, :, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.where(s > 0, part / s, np.where(part > 0, np.inf, -np.inf))
            x = np.minimum(np.maximum(x, near), far)
            total = total + (s * x**2 / 2 - part * x).sum((1, 2))
        return total


def tangents(penalty: Penalty, cell: Cell, box: Box) -> tuple[Blocks, Float[np.ndarray, " O"]]:
    r"""A and α with weight·‖B‖_{S_p}^p ≥ Re⟨A, B⟩ + α for all B of the cell in the box.

    With C the centre of a box and ρ its half diagonal, σ_i is in [a_i, b_i], what the cell and [σ_i(C) − ρ, σ_i(C) + ρ] have in
    common (Weyl).  There t^p ≥ a_i^p + κ(t − a_i) with κ the least slope of the chords, and Σσ_i ≥ Re⟨UV*, B⟩ for C = UΣV*.
    """
    u, sigma, vh = np.linalg.svd(box.centre, full_matrices=False)
    radius = np.sqrt((np.abs(box.half) ** 2).sum((1, 2)))[:, None] * (1 + 1e-12)
    low = np.maximum(np.maximum(np.where(cell.zero, 0.0, cell.low), sigma - radius), 0.0)
    high = np.maximum(np.minimum(cell.high, sigma + radius), low)
    wide = high > low
    chord = (high**penalty.p - low**penalty.p) / np.where(wide, high - low, 1.0)
    slope = penalty.weight * np.where(wide, chord, np.inf).min(1, keepdims=True)
    slope = np.where(np.isfinite(slope), slope, 0.0)
    constant = (penalty.weight * low**penalty.p - slope * low).sum(1)
    return slope[:, :, None] * (u @ vh), constant


@dataclass(frozen=True)
class Envelope:
    """The convex envelope of φ on the set of a singular value: constant up to `start`, a chord up to `knee`, then φ, up to `high`."""

    penalty: Penalty
    start: Values
    knee: Values
    high: Values
    base: Values
    slope: Values

    def value(self, t: Values) -> Values:
        line = self.base + self.slope * (np.minimum(np.maximum(t, self.start), self.knee) - self.start)
        return line + np.where(t > self.knee, self.penalty.value(t) - self.penalty.value(self.knee), 0.0)

    def prox(self, y: Values, metric: Float[np.ndarray, "O 1"]) -> Values:
        """The minimiser of ½ metric (t − y)² + envelope."""
        line = np.minimum(np.maximum(y - self.slope / metric, self.start), self.knee)
        flat = np.minimum(y, self.start)
        curved = self.penalty.root(metric * y, self.knee, self.high, metric)
        beyond = metric * (self.knee - y) + self.penalty.slope(np.maximum(self.knee, 1e-300)) < 0
        return np.where(y <= self.start, flat, np.where(beyond & (self.knee < self.high), curved, line))


def envelope(penalty: Penalty, cell: Cell) -> Envelope:
    """The envelope on the set of each singular value."""
    start = np.where(cell.zero, 0.0, cell.low)
    with np.errstate(divide="ignore"):
        jump = (2 * (1 - penalty.p) * penalty.weight / penalty.s) ** (1 / (2 - penalty.p))
    knee = np.where(cell.zero, np.minimum(np.maximum(jump, cell.low), cell.high), cell.high)
    if not bool(cell.zero.all()):
        knee = np.where(cell.zero, knee, _touching(penalty, cell.low, cell.high))
    base, width = penalty.value(start), knee - start
    slope = (penalty.value(knee) - base) / np.where(width > 0, width, 1.0)
    return Envelope(penalty, start, knee, cell.high, base, np.where(width > 0, slope, 0.0))


def _touching(penalty: Penalty, low: Values, high: Values) -> Values:
    """Where a line from the point of φ at `low` touches φ from below, in [low, high]."""
    left = np.minimum(np.maximum(low, penalty.bend()), high)
    right = high
    for _ in range(BISECTIONS):
        middle = (left + right) / 2
        safe = np.maximum(middle, 1e-300)
        above = penalty.value(low) + penalty.slope(safe) * (middle - low) < penalty.value(middle)
        left, right = np.where(above, middle, left), np.where(above, right, middle)
    return np.where(low >= penalty.bend(), low, right)


def sublevel(penalty: Penalty, z: Values, cell: Cell, level: Values) -> tuple[Values, Values]:
    r"""low′ ≤ high′ with φ(t) − zt > level on the rest of [low, high]; low′ > high′ where that is so on all of it.

    Left of the bottom of its valley the function falls, after a rise perhaps, and right of it rises: bisection on either side.
    """
    bottom, slack = penalty.valley(z, cell.low, cell.high)
    level = level + slack

    def inside(t: Values) -> np.ndarray:
        return penalty.value(t) - z * t <= level

    at_low, at_bottom, at_high = inside(cell.low), inside(bottom), inside(cell.high)
    low = np.where(at_low, cell.low, np.where(at_bottom, _leave(inside, bottom, cell.low), np.inf))
    high = _leave(inside, np.where(at_bottom, bottom, cell.low), np.where(at_bottom, cell.high, bottom))
    return low, np.where(at_bottom & at_high, cell.high, np.where(at_bottom | at_low, high, 0.0))


def _leave(inside: Callable[[Values], np.ndarray], start: Values, end: Values) -> Values:
    """A point outside, next to where the segment from `start`, inside, to `end`, outside, leaves a set."""
    for _ in range(BISECTIONS):
        middle = (start + end) / 2
        within = inside(middle)
        start, end = np.where(within, middle, start), np.where(within, end, middle)
    return end
