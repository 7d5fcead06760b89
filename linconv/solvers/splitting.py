r"""Squared error with a weighted nuclear norm at some frequencies, by Douglas–Rachford splitting.

    min_B (1/2N) Σ_n ‖Σ_u B_u x̂_{n,u} − y_n‖² + Σ_u μ_u ‖B_u‖_*

The two terms are minimised in turn, each near the result of the other (Lions and Mercier 1979; ADMM is the same iteration): the
first is a linear system that couples all frequencies, factored once, the second the proximal map of each block.  Nearness
is measured by R_u at each frequency.  R_u = ‖λ_u‖/‖B_u‖, λ the dual variable, makes both residuals of the iteration equally
large relative to what they are residuals of; it follows the data, the weight decay and the units by itself.  Anderson
acceleration of the fixed-point map makes the end fast, once the ranks stand still.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.penalties import Schatten
from linconv.solvers.problem import Problem
from linconv.spectrum import half_pairs

MEMORY = 10
RELAXATION = 1.6
CHECK_EVERY = 10
SPREAD = 30.0  # λ and B are estimates, and B_u may go to 0: how far R_u may be from a common multiple of the second moments
UNBALANCED = 2.0  # factor by which the metric must be wrong for a new factorisation to pay
PATIENCE = 20  # checks in which the gap must halve: rounding ends the progress of an ill-conditioned problem
ROUNDING = 2.0**-52
NUCLEAR = Schatten(1.0)


class Frequencies:
    """The data of a problem at one frequency of each pair u, −u, so scaled that sums over them are those over the full spectrum."""

    def __init__(self, problem: Problem, mu: Float[Tensor, " F"]):
        self.problem = problem
        self.first, self.second, own = half_pairs(problem.grid)
        kept = torch.ones(len(mu), dtype=torch.bool)
        kept[self.second] = False
        twice = torch.full((len(mu),), math.sqrt(2.0), dtype=torch.float64)
        twice[own] = 1.0
        self.places = kept.nonzero()[:, 0].to(mu.device)
        self.scale = twice[kept].to(mu.device)
        self.mu = mu[self.places] * self.scale
        self.spectra = torch.fft.rfftn(problem.x, dim=tuple(range(2, problem.x.ndim)), norm="ortho").flatten(2)

    def columns(self, chosen: Tensor) -> Float[Tensor, "N m"]:
        """Real columns of some frequencies: real parts, then minus imaginary parts, of each channel."""
        parts = self.spectra[:, :, self.places[chosen]] * self.scale[chosen]
        return torch.stack([parts.real, -parts.imag], 1).flatten(1)

    def gather(self, blocks: Complex[Tensor, "F K C"]) -> Complex[Tensor, "P K C"]:
        """The blocks, or the adjoint of a residual, of the half spectrum as this class scales them."""
        return blocks[self.places] * self.scale[:, None, None]

    def scatter(self, blocks: Complex[Tensor, "P K C"]) -> Complex[Tensor, "F K C"]:
        """The inverse of `gather`."""
        half = torch.zeros(len(self.problem.weights), *blocks.shape[1:], dtype=blocks.dtype, device=blocks.device)
        half[self.places] = blocks / self.scale[:, None, None]
        half[self.second] = half[self.first].conj()
        return half


class Splitting:
    """The iteration on real columns `x` of w frequencies, as `Frequencies` orders and scales them, with their μ.

    It starts from `blocks` and `pulled`, (1/N) Σ_n r_n x̂_{n,u}† for the residual r of the blocks.
    """

    def __init__(
        self,
        x: Float[Tensor, "N m"],
        y: Float[Tensor, "N K"],
        mu: Float[Tensor, " w"],
        blocks: Complex[Tensor, "w K C"],
        pulled: Complex[Tensor, "w K C"],
    ):
        self.x, self.y, self.mu, self.channels = x, y, mu, blocks.shape[-1]
        # A system of the size of the columns or of the rows, whichever are fewer; imaginary parts where u = −u are columns of zeros.
        self.tall = int(x.any(dim=0).sum()) <= len(x)
        moments = x.square().sum(0).reshape(-1, len(mu)).sum(0) / len(x)
        self.moments = moments.clamp(min=1e-12 * float(moments.max()))
        # One proximal step: at a start of zero the sizes of its result say more about the metric than zero does.
        moved = blocks + pulled / self.moments[:, None, None]
        self.blocks = NUCLEAR.prox(moved, mu / self.moments)
        self.dual = (moved - self.blocks) * self.moments[:, None, None]
        self.metric = self._balanced()
        self._factor()

    def _balanced(self) -> Float[Tensor, " w"]:
        """R_u = ‖λ_u‖/‖B_u‖ where B_u ≠ 0, within `SPREAD` of the multiple of the second moments that is best for all."""
        size, pull = (torch.linalg.vector_norm(part, dim=(1, 2)) for part in (self.blocks, self.dual))
        active = (size > 0) & (pull > 0)
        if not bool(active.any()):
            return self.moments
        scale = self.moments[active].sqrt()
        level = torch.linalg.vector_norm(pull[active] / scale) / torch.linalg.vector_norm(size[active] * scale)
        metric = level * self.moments
        metric[active] *= (pull[active] / size[active] / metric[active]).clamp(1 / SPREAD, SPREAD)
        return metric

    def _factor(self) -> None:
        """All that depends on the metric, in coordinates √R B in which it is the identity."""
        n, root = len(self.x), self.metric.sqrt()
        self.root, self.threshold = root[:, None, None], self.mu / root
        self.columns = self.x / root.repeat(2 * self.channels)
        small = self.columns.T @ self.columns if self.tall else self.columns @ self.columns.T
        small.div_(n)
        small.diagonal().add_(1.0)
        self.inverse = inverse(small)
        self.target = self.columns.T @ self.y / n
        self.point = to_real(self.root * self.blocks + self.dual / self.root)
        self.anderson = Anderson()

    def rebalance(self) -> None:
        """A new metric, where it would differ from that in use by much."""
        metric = self._balanced()
        if float((metric / self.metric).log().abs().mean()) > math.log(UNBALANCED):
            self.metric = metric
            self._factor()

    def advance(self, steps: int) -> None:
        """That many steps, after which `blocks` is the last result of the proximal map and `dual` what it cut off."""
        for _ in range(steps):
            cut = to_complex(self.point, self.channels)
            shrunk = NUCLEAR.prox(cut, self.threshold)
            z = to_real(shrunk)
            reflected = 2 * z - self.point
            if self.tall:
                fitted = self.inverse @ (self.target + reflected)
            else:
                self.residual = self.inverse @ (self.y - self.columns @ reflected)
                fitted = reflected + self.columns.T @ self.residual / len(self.x)
            self.point = self.anderson(self.point, RELAXATION * (fitted - z))
        self.blocks, self.dual = shrunk / self.root, (cut - shrunk) * self.root

    def run(self, goal: float, alone: float, steps: int, proceed: Callable[[], bool]) -> tuple[int, bool]:
        """Advance until the gap is at most `goal` and that by the residual of `blocks` at most `alone`: (steps, True).

        Or until `steps` are made, `proceed` says no or rounding ends all progress: (steps, False).
        """
        gaps: list[float] = []
        done = 0
        while done < steps:
            self.advance(min(CHECK_EVERY, steps - done))
            done += min(CHECK_EVERY, steps - done)
            own, *others = self.gaps()
            gaps.append(max(min(own, *others, math.inf), 0.0))
            if gaps[-1] <= goal and own <= alone:
                return done, True
            if not proceed() or (len(gaps) > PATIENCE and min(gaps[-PATIENCE:]) >= min(gaps[:-PATIENCE]) / 2):
                break
            if len(gaps) & (len(gaps) - 1) == 0:  # after checks 1, 2, 4, …: in the long run the metric stays, as convergence needs
                self.rebalance()
        return done, False

    def residuals(self) -> list[Float[Tensor, "N K"]]:
        """Candidates for a dual point: the residual of `blocks`, and that of the linear system where it is a variable of its own.

        The second keeps its digits where residuals are tiny: with few images and little weight decay.
        """
        own = self.y - self.x @ to_real(self.blocks)
        return [own] if self.tall else [own, self.residual]

    def gaps(self) -> list[float]:
        """The duality gap of the problem on these frequencies by each of the `residuals`."""
        n, residuals = len(self.y), self.residuals()
        value = float(residuals[0].square().sum()) / (2 * n) + float(self.mu @ torch.linalg.svdvals(self.blocks).sum(-1))
        return [value - self._dual_value(residual) for residual in residuals]

    def _dual_value(self, residual: Float[Tensor, "N K"]) -> float:
        n, linear, square = len(residual), float((residual * self.y).sum()), float(residual.square().sum())
        norms = torch.linalg.matrix_norm(to_complex(self.x.T @ residual / n, self.channels), ord=2)
        s = min(linear / square if square else 0.0, float((self.mu / norms).min()))
        return (s * linear - s**2 * square / 2) / n


def inverse(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """The inverse of a positive definite matrix, or where rounding has left none (images may be equal) of one a rounding larger."""
    triangle, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        matrix.diagonal().add_(ROUNDING * len(matrix) * float(matrix.diagonal().max()))
        triangle = torch.linalg.cholesky(matrix)
    return torch.cholesky_inverse(triangle)


class Anderson:
    """Anderson acceleration of v ↦ v + f(v), v and f(v) `(m, K)`, with a safeguard.

    The next point is the combination of the last images whose f, were the map affine, would be least.  Where f grew, the last
    accelerated step is taken back and all before it forgotten: a step without acceleration never makes f grow.
    """

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.size = math.inf
        self.image: Tensor | None = None

    def __call__(self, point: Float[Tensor, "m K"], change: Float[Tensor, "m K"]) -> Float[Tensor, "m K"]:
        size = float(torch.linalg.vector_norm(change))
        if len(self.changes) > 1 and size > self.size and self.image is not None:
            self.points, self.changes = self.points[-1:], self.changes[-1:]
            return self.image
        self.size, self.image = size, point + change
        self.points, self.changes = [*self.points, self.image][-MEMORY - 1 :], [*self.changes, change][-MEMORY - 1 :]
        if len(self.changes) == 1:
            return self.image
        steps = torch.stack(self.changes).flatten(1).diff(dim=0)
        gram = steps @ steps.T
        # Where the map is a translation its changes differ by rounding alone, and their combination would be noise.
        gram.diagonal().add_(1e-10 * gram.trace() + (1e-8 * size) ** 2 + 1e-300)
        weights = torch.linalg.solve(gram, steps @ change.flatten())
        moved = torch.stack(self.points).flatten(1).diff(dim=0)
        return self.image - (weights @ moved).reshape(point.shape)


def to_complex(numbers: Float[Tensor, "m K"], channels: int) -> Complex[Tensor, "w K C"]:
    """Blocks from their real coordinates, ordered as the columns of `Frequencies.columns`."""
    real, imaginary = numbers.reshape(2, channels, -1, numbers.shape[1])
    return torch.complex(real, imaginary).permute(1, 2, 0)


def to_real(blocks: Complex[Tensor, "w K C"]) -> Float[Tensor, "m K"]:
    """The inverse of `to_complex`."""
    ordered = blocks.permute(2, 0, 1)
    return torch.stack([ordered.real, ordered.imag]).reshape(-1, blocks.shape[1])
