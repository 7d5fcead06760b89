"""Hypothesis strategies for grids, predictors, linear CNNs, images, blocks, patches and displacement fields.

Imported only on demand (`from linconv import strategies`), because it needs nothing but Hypothesis and imports it.  Every option is
keyword-only, but for what a strategy is about.  `@given(net=strategies.linear_cnns())` works in any test suite, and
`Annotated[LinearCNN, strategies.linear_cnns()]` in a claim (docs/counterexamples.md).
"""

from linconv.strategies.constrained import blocks, displacements, patches, spectral_images
from linconv.strategies.general import grids, images, linear_cnns, predictors

__all__ = ["blocks", "displacements", "grids", "images", "linear_cnns", "patches", "predictors", "spectral_images"]
