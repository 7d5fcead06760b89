"""Image sets: bundled photographs, real sets from disk, arrays; and what theorems ask of data: centring, whitening, area averaging.

`load` gives an `ImageSet`; the transforms are functions of real tensors `(N, C, *grid)`.  Nothing is downloaded, nothing is
unpickled, and every random choice comes from the caller's generator.
"""

from linconv.images.loading import ImageSet, load
from linconv.images.transforms import center, greyscale, resize, whiten

__all__ = ["ImageSet", "center", "greyscale", "load", "resize", "whiten"]
