r"""Trained CNNs are stable to deformations of their images, relative to noise of the same size, the more so the better they classify.

$R_f = D_f/G_f$ compares the change $\langle\|f(\tau x) - f(x)\|^2\rangle$ of the outputs under maximum-entropy deformations τ
with that under noise as large as τx − x. Published for CIFAR-10: (1) $R_f \approx 1$ at initialisation; (2) training lowers it by
decades; (3) the test error of 15 architectures follows $0.2\sqrt{R_f}$, and so grows with $R_f$.

(a) What holds for every module: R = 1 of the identity, the same R of a network and of its multiple, R = 1 of noise against noise.
(b) Networks of `linconv.models`, trained here: (1) to (3), each with an interval over architectures and runs. The published statements are
about networks trained on all of CIFAR-10; at a smaller preset a statement that is not found is left open.

Source: Petrini et al., arXiv 2105.02468; definitions, estimators and intervals in `linconv.stability`.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval as Between
from torch import Tensor, nn

from linconv.claims import Check, Figure, Note, Progress, agree, control, exceeds, inconclusive, main
from linconv.deformation import typical_temperature
from linconv.stability import relative_stability
from linconv.statistics import Interval, correlation_interval, mean_interval
from verification._figure_stability import figure
from verification._stability_presets import PRESETS, Architecture, tasks_of
from verification._stability_runs import CUTOFF, DISPLACEMENT, architecture_of, logarithms, prepare, run
from verification._sweeping import classified, train_all

KIND = "empirical"
FAST = {"preset": "tiny", "jobs": 1}
NEAR = math.log10(2)  # "near 1" is read as within a factor of 2
FALL = math.log10(2)  # a fall by less than a factor of 2 is none
PUBLISHED = 0.2  # test error / √R
FEWEST = 5  # architectures: with fewer their correlation is not judged

Record = dict[str, Any]
Groups = dict[Architecture, list[Record]]


def claim(
    *,
    data: Annotated[str, "data set: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    preset: Annotated[
        Literal["tiny", "smoke", "reduced", "full"], "size: tiny, smoke, reduced (minutes on two cores), full (for a GPU)"
    ] = "smoke",
    store: Annotated[str, "file that keeps finished runs, from which a run that was killed goes on; empty: none is kept"] = "",
    jobs: Annotated[int, Between(ge=1, le=256), "processes that train at the same time"] = 2,
    engine: Annotated[Literal["loky", "dask"], "where runs are trained: processes of this machine, or Dask workers"] = "loky",
    scheduler: Annotated[str, "address of a Dask scheduler, tcp://…; empty: a local cluster"] = "",
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of the first run of each kind"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    generator = torch.Generator().manual_seed(seed)
    p = PRESETS[preset]
    yield Progress("reading images")
    train = classified(data, lambda: prepare(data, p.side, p.samples)[0])
    yield from module_checks(train.images[: p.probes].double(), generator)
    records: list[Record] = []
    yield from train_all(run, tasks_of(preset, data, seed), store, jobs, engine, scheduler, records)
    what = f"{len(train)} images of {data}, {p.side}×{p.side}, {p.epochs} epochs, {p.seeds} seeds, {len(p.architectures)} architectures"
    yield Note(f"preset {preset}: {what}; δ = {DISPLACEMENT:g} pixel, cutoff {CUTOFF}", in_scope=True)
    trained, shuffled = (grouped(records, labels) for labels in ("true", "shuffled"))
    left = sorted({str(architecture_of(record).label) for record in records} - {a.label for a in trained | shuffled})
    if left:
        yield Note(f"left out, because the training of a run diverged: {', '.join(left)}", in_scope=True)
    decided = preset == "full" and data == "cifar10"
    if len(trained) < 2:
        yield inconclusive("(b) published statements", "the training of all architectures but one diverged")
        return
    yield from course_checks(trained, decided)
    yield from error_checks(trained, decided)
    yield from table(trained, shuffled)
    yield Figure("relative_stability", lambda: figure(trained, shuffled, f"Preset {preset}: {what}"))


def module_checks(x: Tensor, generator: torch.Generator) -> Iterator[Check]:
    """(a) Laws of R, on the images of the run."""
    side = x.shape[-1]
    options: dict[str, Any] = {"temperature": typical_temperature(DISPLACEMENT, side, CUTOFF), "cutoff": CUTOFF, "n_draws": 4}
    seeds = int(torch.randint(2**31, (), generator=generator))

    def measured(net: nn.Module, noise: Literal["sample", "average"] = "sample") -> Interval:
        return relative_stability(net, x, noise=noise, generator=torch.Generator().manual_seed(seeds), **options).R

    still = measured(nn.Identity())
    yield agree("(a) R of the identity", still.estimate, 1.0, size=4096)
    layer = nn.Conv2d(x.shape[1], 4, 3, bias=False).double()
    layer.weight.data = torch.randn(layer.weight.shape, dtype=x.dtype, generator=generator)
    once, often = (measured(nn.Sequential(layer, nn.ReLU(), Times(factor))) for factor in (1.0, -7.0))
    yield agree("(a) R of a layer and of its multiple", often.estimate, once.estimate, size=4096)
    yield control("(a) noise matched on average called the same", agree("", measured(nn.Identity(), "average").estimate, 1.0, size=4096))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def grouped(records: list[Record], labels: str) -> Groups:
    """The runs of each architecture, where all of them went well."""
    groups: Groups = {}
    for record in records:
        if record["parameters"]["labels"] == labels:
            groups.setdefault(architecture_of(record), []).append(record)
    return {key: group for key, group in groups.items() if all(record["result"]["alive"] for record in group)}


def over(groups: Groups, key: str, index: int) -> Tensor:
    """log₁₀ of R, D or G, `(architectures, runs)`: index 0 before training, −1 after it."""
    return torch.stack([logarithms(group, key, index) for group in groups.values()])


def interval(values: Tensor) -> Interval:
    """Student's, of the mean over architectures of the mean over the runs of each: it is about other architectures with other seeds."""
    return mean_interval(values.mean(1))


def negative(found: Interval) -> Interval:
    return Interval(-float(found.estimate), -float(found.high), -float(found.low), found.level)


def judged(check: Check, decided: bool) -> Check:
    """A published statement: open, and not refuted, where networks are trained less than the published ones."""
    if decided or check.passed:
        return check
    found = check.note or f"not found here: {float(check.observed):.3g} against the bound {float(check.predicted):.3g} ({check.reason})"
    return inconclusive(check.name, f"{found}; networks of this size are not those of the statement")


def course_checks(groups: Groups, decided: bool) -> Iterator[Check | Note]:
    """(b) 1 and 2: R before training, and its fall."""
    draws = sum(map(len, groups.values()))
    before, after = over(groups, "R", 0), over(groups, "R", -1)
    start, fall = interval(before), interval(before - after)
    yield judged(exceeds("(b) 1: untrained, log₁₀ R above that of ½", start, -NEAR, draws=draws), decided)
    yield judged(exceeds("(b) 1: untrained, −log₁₀ R above that of 2", negative(start), -NEAR, draws=draws), decided)
    yield judged(exceeds("(b) 2: decades by which training lowers R, above those of 2", fall, FALL, draws=draws), decided)
    for key in "DG":
        change = interval(over(groups, key, 0) - over(groups, key, -1))
        yield Note(f"training lowers {key} by {shown(change)} decades")
    again = {key: torch.tensor([[r["result"]["again"][key] for r in group] for group in groups.values()]).log10() for key in "RG"}
    yield control("(b) 1: a tenth of R", exceeds("", interval(before - 1), -NEAR))
    yield control("(b) 2: the untrained networks, measured twice", exceeds("", interval(before - again["R"]), FALL))
    yield control("(b) 2: noise against other noise", exceeds("", interval(over(groups, "G", 0) - again["G"]), FALL))


def error_checks(groups: Groups, decided: bool) -> Iterator[Check | Note]:
    """(b) 3: log test error against log √R, one point an architecture, and the published line."""
    errors = torch.stack([torch.tensor([1 - r["result"]["test_accuracy"] for r in group]) for group in groups.values()]).double()
    errors = errors.clamp_min(1e-4).log10()
    roots = over(groups, "R", -1) / 2
    ratio = interval(errors - roots - math.log10(PUBLISHED))
    factor = [10 ** float(end) for end in (ratio.estimate, ratio.low, ratio.high)]
    yield Note(f"test error over the published 0.2 √R: {factor[0]:.2f} ({factor[1]:.2f} to {factor[2]:.2f}), geometric mean over runs")
    name = "(b) 3: correlation of test error and √R, logarithms, over architectures"
    if len(groups) < FEWEST:
        yield inconclusive(name, f"{len(groups)} architectures; at least {FEWEST} make a correlation", required=decided)
    else:
        found = correlation_interval(errors.mean(1), roots.mean(1))
        yield judged(exceeds(name, found, 0.0, draws=errors.numel()), decided)
    levels = torch.arange(float(FEWEST), dtype=torch.float64)
    planted = correlation_interval(levels, 0.1 * (levels % 2) - levels)
    yield control("(b) 3: errors that fall with R, planted", exceeds("", planted, 0.0))


def table(trained: Groups, shuffled: Groups) -> Iterator[Note]:
    """For each architecture, mean over runs: R before and after, test error, the published line; the first layer and the output."""
    for labels, groups in (("", trained), (", shuffled labels", shuffled)):
        for architecture, group in groups.items():
            before, after = (10 ** float(logarithms(group, "R", i).mean()) for i in (0, -1))
            error = sum(1 - r["result"]["test_accuracy"] for r in group) / len(group)
            layers = torch.tensor([r["result"]["layers"][1] for r in group]).log10().mean(0)
            by_layer = ", ".join(f"{10**v:.2f}" for v in layers.tolist())
            yield Note(
                f"{architecture.label}{labels}: R {before:.2f} before, {after:.3g} after training; test error {error:.3f}, "
                f"0.2 √R = {PUBLISHED * math.sqrt(after):.3f}; by layer {by_layer}"
            )


def shown(found: Interval) -> str:
    return f"{float(found.estimate):.2f} ({float(found.low):.2f} to {float(found.high):.2f})"


if __name__ == "__main__":
    main(claim)
