"""The layers that the families are made of, and the module that joins features and classifier."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ImageNetwork(nn.Module):
    """`classifier(features(x))`: `features` maps images to images, `classifier` pools, flattens and reads out; both are `nn.Sequential`.

    It takes images `(N, in_channels, *grid)`, or, where `grid` is None, 2-D images whose sides are at least `least_side`.  `forward` raises
    `ValueError` or `TypeError`, naming x, for others, and for another dtype than that of the weights.
    """

    def __init__(
        self,
        features: nn.Sequential,
        classifier: nn.Sequential,
        *,
        in_channels: int,
        grid: tuple[int, ...] | None = None,
        least_side: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.grid = grid
        self.least_side = least_side
        self.features = features
        self.classifier = classifier

    def forward(self, x: Float[Tensor, "N C *grid"]) -> Float[Tensor, "N K"]:
        """Outputs `(N, K)` of images `(N, C, *grid)`."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch tensor of images, got {type(x).__name__}; use torch.as_tensor")
        dims = 2 if self.grid is None else len(self.grid)
        if x.ndim != dims + 2 or x.shape[1] != self.in_channels or not self._takes(tuple(x.shape[2:])):
            sides = f"H, W) with H and W at least {self.least_side}" if self.grid is None else f"{', '.join(map(str, self.grid))})"
            raise ValueError(f"x: expected images (N, {self.in_channels}, {sides}, got shape {tuple(x.shape)}")
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype:
            raise TypeError(f"x: expected {dtype} as the weights have, got {x.dtype}; convert one of them with .to(...)")
        return self.classifier(self.features(x))

    def _takes(self, sites: tuple[int, ...]) -> bool:
        return min(sites) >= self.least_side if self.grid is None else sites == self.grid


class FullConvolution(nn.Module):
    r"""A true circular convolution with a kernel of the size of the grid, $y_{ci} = b_c + \sum_{d,m} w_{cdm}\, x_{d,\,i-m \bmod n}$.

    `weight` is `(C_out, C_in, *grid)` in the convention of `LinearCNN`, tap m shifting by +m, so that `conv_blocks(layer.weight, grid)` are
    its blocks; `bias` is `(C_out,)` or None.  Computed as one product a frequency between two Fourier transforms (convolution theorem):
    C_out · C_in · D multiplications an image instead of C_out · C_in · D².  Gradients of every order flow.

    >>> from linconv.network import circular_convolution
    >>> layer = FullConvolution(1, 1, (3,), bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[[10.0, 20.0, 0.0]]]))
    >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> torch.allclose(layer(x), circular_convolution(x, layer.weight))
    True
    """

    def __init__(self, in_channels: int, out_channels: int, grid: tuple[int, ...], *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *grid))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def forward(self, x: Float[Tensor, "N C_in *grid"]) -> Float[Tensor, "N C_out *grid"]:
        """Images `(N, C_out, *grid)` of images `(N, C_in, *grid)`."""
        dims = tuple(range(2, x.ndim))
        if len(x) == 0:  # MKL does not transform nothing
            return x.new_empty(0, *self.weight.shape[:1], *x.shape[2:])
        x_hat, w_hat = torch.fft.rfftn(x, dim=dims), torch.fft.rfftn(self.weight, dim=dims)
        y_hat = x_hat.flatten(2).permute(2, 0, 1) @ w_hat.flatten(2).permute(2, 1, 0)  # (u, N, C_out)
        y = torch.fft.irfftn(y_hat.permute(1, 2, 0).unflatten(2, x_hat.shape[2:]), s=x.shape[2:], dim=dims)
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(dims))

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, bias={self.bias is not None}"


class Residual(nn.Module):
    """`shortcut(x) + body(x)`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "N C_in H W"]) -> Float[Tensor, "N C_out h w"]:
        return self.shortcut(x) + self.body(x)


class Subsampling(nn.Module):
    """Every second site, and channels of zeros appended: the shortcut without parameters (option A of arXiv 1512.03385)."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    def forward(self, x: Float[Tensor, "N C_in H W"]) -> Float[Tensor, "N C_out h w"]:
        return nn.functional.pad(x[..., ::2, ::2], (0, 0, 0, 0, 0, self.extra_channels))


class Dropout(nn.Module):
    """In training each entry is zeroed with probability 1/2 and the others are doubled.

    torch's `Dropout` draws from the global generator.  Here `next_seed`, a buffer that counts up, seeds the mask of the next call, on
    every device the same; it is part of the `state_dict`, so that an interrupted training goes on with the masks that it would have had.
    """

    next_seed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("next_seed", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        if not self.training:
            return x
        generator = torch.Generator().manual_seed(int(self.next_seed))
        self.next_seed += 1
        return 2 * x * torch.randint(2, x.shape, generator=generator, device="cpu").to(x)


class Scale(nn.Module):
    """`factor · x`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor}"
