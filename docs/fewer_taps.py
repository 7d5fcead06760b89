r"""A predictor costs no more when one of its taps is set to zero.

For every β and every depth L, with β′ equal to β but $\beta'_{kc0} = 0$:  $R_L(\beta') \le R_L(\beta)$.
Source: a hunch; fewer taps, smaller weights.
"""

from collections.abc import Iterator
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

import linconv as lc
from linconv import strategies
from linconv.claims import Check, at_most, control, main


def claim(
    *,
    beta: Annotated[Tensor, strategies.predictors(), "any predictor"],
    depth: Annotated[int, Interval(ge=1, le=6), "number of layers"] = 2,
) -> Iterator[Check]:
    without = beta.clone()
    without.flatten(2)[..., 0] = 0
    cost = lc.representation_cost(beta, depth).lower
    yield at_most("the cost without tap 0", lc.representation_cost(without, depth).lower, cost)
    yield control("half of the cost", at_most("", cost, cost / 2))


if __name__ == "__main__":
    main(claim)
