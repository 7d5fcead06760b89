"""Frequency sensitivity of a small ReLU network, against its floor and against other ways to the same numbers.

    python -m benchmarks.sensitivity [images]

256 images of 32×32 by default, 3 channels, 10 outputs, single precision.  The floor is K backward passes over all images that stop at
the pixels, the forward pass done before and not counted; all images at once, and in chunks, which stay in a cache.  The peers: one Jacobian
a sample through a complex Fourier transform, as published; one frequency at a time, two forward derivatives each (real and imaginary part),
extrapolated from a few; and the forms that the engine could have had.  One thread; time on a core; medians of interleaved runs.
"""

import sys
from collections.abc import Callable

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.timing import interleaved, natural_images, seconds
from linconv.sensitivity import frequency_sensitivity

IMAGES, SIDE, CHANNELS, OUTPUTS, CHUNK, REPEATS = 256, 32, 3, 10, 64, 5
PROBED = [(0, 0), (0, 5), (3, 29), (16, 16)]  # frequencies, of 32·32
TARGETS = {"floor": 1.5, "published": 2.0, "probing": 250.0}


def small_network() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        features = [nn.Conv2d(CHANNELS, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, OUTPUTS)).eval()


def backward_passes(model: nn.Module, images: Tensor, size: int) -> Callable[[], None]:
    inputs = [part.clone().requires_grad_() for part in images.split(size)]
    pairs = [(x, model(x)) for x in inputs]

    def work() -> None:
        for x, outputs in pairs:
            for k in range(OUTPUTS):
                torch.autograd.grad(outputs[:, k].sum(), x, retain_graph=True)

    return work


def published(model: nn.Module, images: Tensor) -> Tensor:
    """The mean over images of the norms of Jacobians in complex coefficients, a sample at a time."""
    total = torch.zeros(images.shape[1:])
    for image in images:
        x_hat = torch.fft.fft2(image.to(torch.complex64), norm="ortho")
        jacobian = torch.autograd.functional.jacobian(lambda z: model(torch.fft.ifft2(z, norm="ortho").real[None])[0], x_hat)
        total += torch.linalg.vector_norm(jacobian, dim=0)
    return total / len(images)


def probed(model: nn.Module, images: Tensor, frequency: tuple[int, int]) -> Tensor:
    """The map at one frequency: forward derivatives along its cosine and its sine, channel by channel."""
    x_hat = torch.zeros(SIDE, SIDE, dtype=torch.complex64)
    values = []
    for c in range(CHANNELS):
        squares = torch.zeros(len(images))
        for unit in (1.0, 1.0j):
            x_hat[frequency] = unit
            wave = torch.zeros_like(images)
            wave[:, c] = torch.fft.ifft2(x_hat, norm="ortho").real
            slopes = [torch.func.jvp(model, (x,), (v,))[1] for x, v in zip(images.split(CHUNK), wave.split(CHUNK), strict=True)]
            squares += torch.cat(slopes).detach().square().sum(1)
        values.append(squares.sqrt().mean())
    return torch.stack(values)


def alternatives(model: nn.Module, images: Tensor) -> dict[str, Callable[[], object]]:
    """The same gradients by batched backward passes, by vmap over a pullback, and by one pass over repeated inputs."""
    unit = torch.eye(OUTPUTS)

    def batched() -> None:
        for part in images.split(CHUNK):
            x = part.clone().requires_grad_()
            torch.fft.rfftn(torch.autograd.grad(model(x).sum(0), x, unit, is_grads_batched=True)[0], dim=(3, 4), norm="ortho")

    def pulled() -> None:
        for part in images.split(CHUNK):
            _, pullback = torch.func.vjp(model, part)
            (gradients,) = torch.func.vmap(pullback)(unit[:, None].expand(-1, len(part), -1))
            torch.fft.rfftn(gradients, dim=(3, 4), norm="ortho")

    def repeated() -> None:
        for part in images.split(CHUNK):
            x = part.repeat_interleave(OUTPUTS, 0).requires_grad_()
            torch.fft.rfftn(torch.autograd.grad((model(x) * unit.repeat(len(part), 1)).sum(), x)[0], dim=(2, 3), norm="ortho")

    return {"batched gradients": batched, "vmap of vjp": pulled, "repeated inputs": repeated}


def main(count: int = IMAGES) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        model, images = small_network(), natural_images(count, (SIDE, SIDE), torch.float32)[0]
        found: list[Tensor] = []

        def ours() -> None:
            found[:] = [frequency_sensitivity(model, images)]

        others = alternatives(model, images)
        floors = [backward_passes(model, images, size) for size in (count, CHUNK)]
        floor, chunked, project, *times = interleaved([*floors, ours, *others.values()], REPEATS)
        print(
            f"{count} images {SIDE}×{SIDE}, {OUTPUTS} outputs: ratio to the floor {project / floor:.2f} (target {TARGETS['floor']:g}), "
            f"to that in chunks of {CHUNK} {project / chunked:.2f}"
        )
        print(
            "other forms of the engine, gradients and transforms alone: "
            + ", ".join(f"{name} {time / project:.2f}" for name, time in zip(others, times, strict=True))
        )
        theirs: list[Tensor] = []
        slow = seconds(lambda: theirs.append(published(model, images)))
        error = float((theirs[0] - found[0]).abs().max() / found[0].max())
        print(f"a Jacobian a sample, as published: ratio {slow / project:.1f} (target {TARGETS['published']:g})   agreement {error:.0e}")
        probes: list[Tensor] = []
        each = seconds(lambda: probes.extend(probed(model, images, u) for u in PROBED)) / len(PROBED)
        error = max(float((values - found[0][:, u[0], u[1]]).abs().max()) for values, u in zip(probes, PROBED, strict=True))
        print(
            f"a frequency at a time: ratio {each * SIDE**2 / project:.3g} (target {TARGETS['probing']:g}; extrapolated from "
            f"{len(PROBED)})   agreement {error / float(found[0].max()):.0e}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
