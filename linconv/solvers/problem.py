r"""The penalised problem in frequency space, shared by all solvers.

F(β) = (1/N) Σ_n ℓ(f(x_n), y_n) + weight_decay · R_L(β).  With orthonormal blocks B_u = V_u/√D, x̂ the orthonormal DFT and
p = 2/L this is

    (1/N) Σ_n ℓ(Σ_u B_u x̂_{n,u}, y_n) + μ Σ_u ‖B_u‖_{S_p}^p,    μ = weight_decay · L · D^{−(L−1)/L}.

Solvers store the half spectrum; `weights` says how often each of its frequencies stands in the full one.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.cost import representation_cost
from linconv.losses import SQUARED, Loss, SquaredError
from linconv.penalties import truncate
from linconv.spectrum import half_pairs, pair_weights

EPS = 2.0**-52
SPREAD = 32 * EPS  # rounding of sums relative to the root of the sum of squares; see `dual_bound`
ROWS = 2**12  # images transformed at a time


@dataclass(frozen=True)
class Solution:
    """What a fit found and what it proved.

    `predictor` `(K, C, *grid)`; `objective`, F at that predictor (before it was rounded to single precision, where the data are),
    recomputed from the data: an upper bound on the minimum;
    `lower_bound`, proved to be at or below the minimum; `method`, the solver's name; `members`, the objective that each
    member of a portfolio reached; `nodes`, those that branch and bound has split.
    """

    predictor: Float[Tensor, "K C *grid"]
    objective: float
    lower_bound: float
    method: str
    members: dict[str, float] = field(default_factory=dict)
    nodes: int = 0

    @property
    def gap(self) -> float:
        """(objective − lower_bound)/objective; 0 where both are 0."""
        return (self.objective - self.lower_bound) / self.objective if self.objective else 0.0


@dataclass(frozen=True)
class Problem:
    """Data, depth, weight decay and loss; everything in float64.

    `constant` is added to the data term: what a reduction to fewer rows has split off (`linconv.solvers.reduction`).
    """

    x: Float[Tensor, "N C *grid"]
    y: Float[Tensor, "N K"]
    depth: int
    weight_decay: float
    max_rank: int | None = None
    loss: Loss = SQUARED
    constant: float = 0.0

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.x.shape[2:])

    @property
    def p(self) -> float:
        return 2 / self.depth

    @property
    def mu(self) -> float:
        """μ, the weight of the Schatten penalty on orthonormal blocks."""
        return self.weight_decay * self.depth * math.prod(self.grid) ** (1 / self.depth - 1)

    @property
    def quadratic(self) -> bool:
        """Whether the data term is a quadratic form of the predictor."""
        return isinstance(self.loss, SquaredError)

    @cached_property
    def weights(self) -> Float[Tensor, " F"]:
        """How often each frequency of the half spectrum, in row-major order, stands in the full one."""
        return pair_weights(self.grid).expand(*self.grid[:-1], -1).flatten().to(self.x.device)

    @cached_property
    def pixel(self) -> float:
        """The root of Σ‖x_n‖²/(N·D): what the size of an image is at one frequency, on average."""
        return float(torch.linalg.vector_norm(self.x)) / math.sqrt(len(self.x) * math.prod(self.grid))

    @cached_property
    def cross_moment(self) -> Complex[Tensor, "F K C"]:
        """G_u = (1/N) Σ_n r_n x̂_{n,u}† for the residuals r of the zero predictor, which for squared error are y."""
        return self.adjoint(-self.loss.gradient(torch.zeros_like(self.y), self.y))

    @cached_property
    def second_moments(self) -> Complex[Tensor, "F C C"]:
        """S_u = (1/N) Σ_n x̂_{n,u} x̂_{n,u}†, the blocks on the diagonal of the second moment of the data."""
        spectra = (_rfft(rows).flatten(1, -2).movedim(0, 1) for rows in self.x.split(ROWS))
        return torch.stack([s.mT @ s.conj() for s in spectra]).sum(0) / len(self.x)

    @cached_property
    def gram(self) -> Float[Tensor, "CD CD"]:
        """(1/N) XᵀX in the space domain."""
        x = self.x.flatten(1)
        return x.T @ x / len(x)

    def adjoint(self, residual: Float[Tensor, "N K"]) -> Complex[Tensor, "F K C"]:
        """(1/N) Σ_n r_n x̂_{n,u}†, by one real product and one transform."""
        return self.blocks(((residual.T @ self.x.flatten(1)) / len(self.x)).reshape(-1, *self.x.shape[1:]))

    def gradient(self, blocks: Complex[Tensor, "F K C"]) -> Complex[Tensor, "F K C"]:
        """The gradient of the data term at the blocks."""
        return -self.adjoint(self.residual(self.predictor(blocks)))

    def predictor(self, blocks: Complex[Tensor, "F K C"]) -> Float[Tensor, "K C *grid"]:
        """The real tensor β with V_u = √D B_u."""
        half = (*self.grid[:-1], self.grid[-1] // 2 + 1)
        spatial = tuple(range(2, 2 + len(self.grid)))
        return torch.fft.irfftn(blocks.conj().movedim(0, 2).unflatten(2, half), s=self.grid, dim=spatial, norm="ortho")

    def symmetric(self, blocks: Complex[Tensor, "F K C"]) -> Complex[Tensor, "F K C"]:
        """The blocks made conjugate at u and −u where both are stored, and real where u = −u, as those of a real predictor are.

        Rounding alone breaks this by little, but a threshold with a jump may then keep a component at u and drop it at −u.
        """
        first, second, own = half_pairs(self.grid)
        blocks = blocks.clone()
        blocks[second] = blocks[first].conj()
        blocks[own] = blocks[own].real.to(blocks.dtype)
        return blocks

    def blocks(self, predictor: Float[Tensor, "K C *grid"]) -> Complex[Tensor, "F K C"]:
        """The orthonormal blocks B_u of a predictor, the inverse of `predictor`."""
        return _rfft(predictor).flatten(1, -2).movedim(1, 0).conj().resolve_conj()

    def outputs(self, predictor: Float[Tensor, "K C *grid"]) -> Float[Tensor, "N K"]:
        """f(x_n)."""
        return self.x.flatten(1) @ predictor.flatten(1).T

    def residual(self, predictor: Float[Tensor, "K C *grid"]) -> Float[Tensor, "N K"]:
        """Minus the gradient of the loss with respect to the outputs: y_n − f(x_n) for squared error."""
        return -self.loss.gradient(self.outputs(predictor), self.y)

    def data_term(self, predictor: Float[Tensor, "K C *grid"]) -> float:
        """(1/N) Σ ℓ(f(x_n), y_n), the constant included."""
        return self.constant + float(self.loss.value(self.outputs(predictor), self.y)) / len(self.x)

    def dual_value(self, residual: Float[Tensor, "N K"]) -> float:
        """−(1/N) Σ ℓ*(−r_n), at or below (1/N) Σ ℓ(f(x_n), y_n) + (1/N) Σ ⟨r_n, f(x_n)⟩ whatever f is; the constant included."""
        return self.constant - float(self.loss.conjugate(-residual, self.y)) / len(self.x)

    def objective(self, predictor: Float[Tensor, "K C *grid"]) -> float:
        """F from the data and the representation cost; `inf` where the hidden widths cannot realise the predictor."""
        if self.depth == 1:  # no square of a tiny predictor is lost where the decay makes up for it
            return self.data_term(predictor) + float((math.sqrt(self.weight_decay) * predictor).square().sum())
        cost = representation_cost(predictor, self.depth, hidden_channels=self.max_rank)
        return self.data_term(predictor) + self.weight_decay * cost.upper

    def penalty(self, blocks: Complex[Tensor, "F K C"], weights: Float[Tensor, " F"]) -> float:
        """Σ_u weights_u ‖B_u‖_{S_p}^p over the full spectrum, without the dust of rounding (`truncate`), which a power p < 1 magnifies."""
        return float(self.weights @ (weights * (truncate(torch.linalg.svdvals(blocks)) ** self.p).sum(-1)))


def _rfft(images: Float[Tensor, "n C *grid"]) -> Complex[Tensor, "n *half C"]:
    """The half spectrum of images, orthonormal, channels last."""
    return torch.fft.rfftn(images, dim=tuple(range(2, images.ndim)), norm="ortho").movedim(1, -1)
