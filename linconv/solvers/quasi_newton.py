r"""L-BFGS for many starting points at once: the same smooth function, one row of a matrix a start.

Small problems cost the overhead of each array operation, large ones the passes over the data: together the rows share both.
The direction comes from the compact form of the inverse approximation (Byrd, Nocedal and Schnabel 1994), a few batched products
where the usual recursion has one for each remembered step.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MEMORY = 12
TRIALS = 15  # of a line search
DECREASE, CURVATURE = 1e-4, 0.9  # the conditions of Wolfe
COMPRESS_EVERY = 10

Evaluate = Callable[[Float[Tensor, "S n"]], tuple[Float[Tensor, " S"], Float[Tensor, "S n"]]]  # values and gradients of all rows
Late = Callable[[], bool]  # whether the time is up: a descent then returns what it has


def never() -> bool:
    """No limit."""
    return False


def lbfgs(
    evaluate: Evaluate, start: Float[Tensor, "S n"], steps: int, tol: float, late: Late = never
) -> tuple[Float[Tensor, "S n"], Float[Tensor, " S"]]:
    """The points reached from every row and their values, after at most `steps` steps or until it is `late`.

    A row ends where ‖∇f‖·‖x‖ ≤ tol·f (relative to a change of x as large as itself), or where no decrease is found.
    No row's result depends on the others, up to rounding.
    """
    x = start.clone()
    value, gradient = evaluate(x)
    rows, history = torch.arange(len(x), device=x.device), History(x)
    points, values = x.clone(), value.clone()
    for step in range(steps):
        alive = gradient.norm(dim=1) * x.norm(dim=1) > tol * value.abs()
        direction = history.direction(gradient)
        slope = (direction * gradient).sum(1)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        slope = torch.where(uphill, -gradient.square().sum(1), slope)
        # Before there is any curvature: a step of a tenth of the size of x.
        fresh = (history.scale == 0) | uphill
        first = torch.where(fresh, 0.1 * x.norm(dim=1).clamp(min=1e-30) / direction.norm(dim=1).clamp(min=1e-300), 1.0)
        moved, reached, turned, found = _line_search(evaluate, x, value, direction, slope, first, alive, late)
        history.add(moved - x, turned - gradient, found)
        finished = ~found
        x, value, gradient = moved, reached, turned
        points[rows], values[rows] = x, value
        if bool(finished.all()) or late():
            break
        if step % COMPRESS_EVERY == COMPRESS_EVERY - 1 and 2 * int(finished.sum()) >= len(rows):
            kept = ~finished
            rows, x, value, gradient = rows[kept], x[kept], value[kept], gradient[kept]
            history.keep(kept)
    return points, values


def _line_search(
    evaluate: Evaluate,
    x: Float[Tensor, "S n"],
    value: Float[Tensor, " S"],
    direction: Float[Tensor, "S n"],
    slope: Float[Tensor, " S"],
    length: Float[Tensor, " S"],
    alive: Bool[Tensor, " S"],
    late: Late,
) -> tuple[Float[Tensor, "S n"], Float[Tensor, " S"], Float[Tensor, "S n"], Bool[Tensor, " S"]]:
    """For every row a point with the conditions of Wolfe, by bisection, or the best with the first of them; rows without stay."""
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    best, best_value, best_gradient = x, value, torch.zeros_like(x)
    found, open_ = torch.zeros_like(alive), alive
    for trial in range(TRIALS):
        point = x + length[:, None] * direction
        reached, gradient = evaluate(point)
        enough = open_ & (reached <= value + DECREASE * length * slope) & (reached < value)
        flat = (gradient * direction).sum(1) >= CURVATURE * slope
        better = enough & (~found | (reached < best_value))
        whole = bool(better.all())
        best = point if whole else torch.where(better[:, None], point, best)
        best_gradient = gradient if whole else torch.where(better[:, None], gradient, best_gradient)
        best_value, found = torch.where(better, reached, best_value), found | enough
        open_ = open_ & ~(enough & flat)
        # With a decrease in hand only a few trials are spent on the second condition.
        if trial >= 3:
            open_ = open_ & ~found
        if not bool(open_.any()) or late():
            break
        # Too long: the minimum of the parabola through both values and the slope, within limits.  Too short: four times as long.
        parabola = -slope * length.square() / (2 * (reached - value - slope * length)).clamp(min=1e-300)
        shorter = torch.where(low > 0, (low + length) / 2, torch.minimum(torch.maximum(parabola, length / 50), length / 2))
        longer = torch.where(torch.isfinite(high), (length + high) / 2, 4 * length)
        low, high = torch.where(enough, length, low), torch.where(enough, high, length)
        length = torch.where(enough, longer, shorter)
    return best, best_value, best_gradient, found


class History:
    """The last steps s and changes of the gradient y of every row, in a ring; s = y = 0 where a row has none.

    Both stand in one array, `pairs`, so that all inner products with a vector are one pass over it.
    """

    def __init__(self, x: Float[Tensor, "S n"]):
        rows, size = x.shape
        self.pairs = x.new_zeros(rows, 2, MEMORY, size)
        self.sy, self.yy = x.new_zeros(rows, MEMORY, MEMORY), x.new_zeros(rows, MEMORY, MEMORY)
        self.scale = x.new_zeros(rows)
        self.count = 0
        places = torch.arange(MEMORY, device=x.device)
        self.orders = (places[:, None] + places) % MEMORY  # row k: from slot k on

    def add(self, s: Float[Tensor, "S n"], y: Float[Tensor, "S n"], found: Bool[Tensor, " S"]) -> None:
        """Remember a pair where its curvature is positive."""
        slot = self.count % MEMORY
        self.count += 1
        new = torch.stack([s, y], 1)
        gram = new @ new.mT
        inner, square = gram[:, 0, 1], gram[:, 1, 1]
        useful = found & (inner > 1e-14 * (square * gram[:, 0, 0]).sqrt())
        new = torch.where(useful[:, None, None], new, 0.0)
        self.pairs[:, :, slot] = new
        self.scale = torch.where(useful, inner / torch.where(useful, square, 1.0), self.scale)
        products = (self.pairs.flatten(1, 2) @ new.mT).unflatten(1, (2, MEMORY))
        self.sy[:, slot], self.sy[:, :, slot] = products[:, 1, :, 0], products[:, 0, :, 1]  # s of the row, y of the column
        self.yy[:, slot] = self.yy[:, :, slot] = products[:, 1, :, 1]

    def keep(self, rows: Bool[Tensor, " S"]) -> None:
        self.pairs, self.sy, self.yy, self.scale = (a[rows] for a in (self.pairs, self.sy, self.yy, self.scale))

    def direction(self, gradient: Float[Tensor, "S n"]) -> Float[Tensor, "S n"]:
        """−H∇f, −∇f where nothing is remembered."""
        scale = torch.where(self.scale > 0, self.scale, 1.0)[:, None]
        order, back = self.orders[self.count % MEMORY], self.orders[-self.count % MEMORY]  # oldest first, and the inverse
        sy, yy = self.sy[:, order[:, None], order], self.yy[:, order[:, None], order]
        curvature = sy.diagonal(dim1=1, dim2=2)
        upper = sy.triu() + torch.diag_embed((curvature == 0).to(sy.dtype))
        flat = self.pairs.flatten(1, 2)
        p, q = (flat @ gradient[:, :, None]).unflatten(1, (2, MEMORY))[:, :, order].unbind(1)
        inner = torch.linalg.solve_triangular(upper, p, upper=True)
        weighted = curvature[:, :, None] * inner + scale[:, :, None] * (yy @ inner - q)
        outer = torch.linalg.solve_triangular(upper.mT, weighted, upper=False)
        parts = torch.stack([outer, -scale[:, :, None] * inner], 1)[:, :, back]
        return -(scale * gradient + (parts.flatten(1)[:, None] @ flat)[:, 0])
