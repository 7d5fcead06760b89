"""Relative stability: identity and linear closed forms, the definition by loops, equivariances, estimators, what is left as it was."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from linconv import responses, stability
from linconv.activations import chunk_size, layer_outputs
from linconv.deformation import displacement_variance, draw_coefficients, expand_displacements, temperature_range, warp
from linconv.images import load
from linconv.responses import MEDIANS
from linconv.stability import PILOT, _Sorted, layer_stabilities, relative_stability

F64 = torch.float64
COLD = 5e-4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def photographs(n=40, side=12, dtype=F64):
    return load("photos", samples=n, grid=(side, side), dtype=dtype, generator=seeded(3)).images


def small_cnn(dtype=F64, seed=0):
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    )
    net.append(nn.Flatten()).append(nn.Linear(16, 5))
    generator = seeded(seed)
    for w in net.parameters():
        w.data.copy_(torch.randn(w.shape, dtype=F64, generator=generator) / math.sqrt(max(1, w[0].numel())))
    return net.to(dtype)


class Linear(nn.Module):
    """x ↦ A x of flattened images."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x):
        return x.flatten(1) @ self.matrix.T


class Same(nn.Module):
    def forward(self, x):
        return x


def measure(model, images, *, seed=1, **options):
    return relative_stability(model, images, **({"temperature": COLD, "cutoff": 2, "generator": seeded(seed), "resamples": 200} | options))


def inside(interval):
    return float(interval.low) <= float(interval.estimate) <= float(interval.high)


# The definition


@pytest.mark.parametrize("estimator", ["mean", "median"])
@pytest.mark.parametrize("noise", ["sample", "average", "rms"])
def test_it_is_what_its_definition_says(noise, estimator, dtype):
    # The same fields and the same noise, one image, draw and pair at a time; first the fields, then a seed for the noise of each image.
    net, images, draws = small_cnn(dtype).eval(), photographs(7, dtype=dtype), 3
    found = measure(net, images, noise=noise, estimator=estimator, n_draws=draws, batch_size=7)
    generator = seeded(1)
    if estimator == "median":
        torch.randint(2**62, (), generator=generator)  # for the choice of outputs, of which there are few here
    tau = expand_displacements(draw_coefficients(draws * 7, 2, generator), (12, 12), COLD).unflatten(0, (draws, 7))
    seeds = torch.randint(2**62, (draws, 7), generator=generator)
    moved, noisy = [], []
    with torch.no_grad():
        for fields, row in zip(tau, seeds.tolist(), strict=True):
            eta = torch.stack([torch.randn(images.shape[1:], dtype=dtype, generator=torch.Generator().manual_seed(seed)) for seed in row])
            y = torch.cat([warp(x[None], field[None]) for x, field in zip(images, fields, strict=True)]) - images
            norms = y.flatten(1).norm(dim=1)
            sizes = {"sample": norms, "average": norms.mean().expand(7), "rms": norms.square().mean().sqrt().expand(7)}[noise]
            eta = torch.stack([e * size / e.norm() for e, size in zip(eta, sizes, strict=True)])
            moved.append((net(images + y) - net(images)).square())
            noisy.append((net(images + eta) - net(images)).square())
        outputs = net(images)
    pairs = torch.stack([(outputs[i] - outputs[j]).square().sum() for i in range(7) for j in range(7) if i != j])
    if estimator == "mean":
        up, down, apart = (torch.cat(x).sum(1).mean() for x in (moved, noisy)), None, pairs.mean()
        up, down = up
    else:
        (up, down), apart = (torch.cat(x).median(0).values.sum() for x in (moved, noisy)), pairs.median()
    tolerance = 1e-10 if dtype == F64 else 1e-3  # sums of some thousand products; differences of outputs lose two digits
    for interval, expected in ((found.R, up / down), (found.D, up / apart), (found.G, down / apart)):
        assert float(interval.estimate) == pytest.approx(float(expected), rel=tolerance)
        assert inside(interval)
    assert (found.n_draws, found.n_outputs) == (draws, 5)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 9))
@settings(max_examples=20)
def test_medians_of_images_that_come_several_times(seed, draws, n):
    squares, chosen = normal(draws, n, 3, seed=seed).square().round(decimals=1), torch.randint(n, (n,), generator=seeded(seed))
    found = _Sorted.of(squares).medians(torch.bincount(chosen, minlength=n).to(torch.int32))
    assert torch.equal(found, squares[:, chosen].flatten(0, 1).median(0).values)


def test_medians_of_wide_layers_are_over_some_outputs(monkeypatch):
    """5 · 12 · 12 of them: by the definition on the ones that are kept, and near the value of all; means look at all."""
    images = photographs(12)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False)).double()
    net[0].weight.data.copy_(normal(5, 3, 3, 3))
    found = measure(net, images, estimator="median", n_draws=2)
    assert (found.n_outputs, measure(net, images, n_draws=2).n_outputs) == (MEDIANS, 720)
    assert inside(found.R)
    assert measure(net, images, estimator="median", n_draws=2, batch_size=5) == found
    choice = int(torch.randint(2**62, (), generator=seeded(1)))
    kept = torch.randperm(720, generator=seeded(choice))[:MEDIANS]
    some = nn.Sequential(net[0], nn.Flatten(), Linear(torch.eye(720, dtype=F64)[kept]))
    same = measure(some, images, estimator="median", n_draws=2)
    for a, b in ((found.R, same.R), (found.D, same.D), (found.G, same.G)):
        assert float(a.estimate) == pytest.approx(float(b.estimate), rel=1e-9)
    # Outputs are resampled too: the interval knows of the choice.
    assert found.R.high - found.R.low > same.R.high - same.R.low
    for module in (responses, stability):
        monkeypatch.setattr(module, "MEDIANS", 1000)
    responses._choice.cache_clear()
    every = measure(net, images, estimator="median", n_draws=2)
    responses._choice.cache_clear()
    assert every.n_outputs == 720
    assert found.R.low < every.R.estimate < found.R.high


def test_medians_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"n_draws: expected sizes whose arrays fit in memory, got one of 3\.1e"):
        measure(nn.Conv2d(3, 8, 3).double(), photographs(10), estimator="median", n_draws=60_000)


@pytest.mark.parametrize("estimator", ["mean", "median"])
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from(["sample", "average", "rms"]))
@settings(max_examples=4)
def test_chunks_and_layers_change_nothing(estimator, seed, chunk, noise):
    net, images = small_cnn(), photographs(9)
    options = {"noise": noise, "estimator": estimator, "n_draws": 2, "resamples": 20, "seed": seed}
    a, b = (measure(net, images, batch_size=size, **options) for size in (9, chunk))
    for of in ("R", "D", "G"):
        assert float(getattr(a, of).estimate) == pytest.approx(float(getattr(b, of).estimate), rel=1e-10)
    assert a.fold_fraction == b.fold_fraction


@pytest.mark.usefixtures("unchecked")
def test_lazy_modules_are_refused_and_left_alone():
    model, before = nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten()), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"model: expected weights, got a lazy module whose 0\.weight has none yet"):
        measure(model, photographs(4))
    assert torch.equal(before, torch.get_rng_state())


# Closed forms


@pytest.mark.parametrize("estimator", ["mean", "median"])
def test_the_identity_has_one(estimator):
    # Noise as large as each displacement: R = 1 exactly for means; isotropic noise has other medians than images have.
    found = measure(Same(), photographs(), estimator=estimator, n_draws=2)
    if estimator == "mean":
        assert float(found.R.estimate) == pytest.approx(1, rel=1e-12)
        assert float(found.D.estimate) == pytest.approx(float(found.G.estimate), rel=1e-12)
    else:
        assert float(found.R.estimate) < 0.5


def test_what_matching_on_average_does_to_the_identity():
    # ‖η‖ = ⟨‖y‖⟩ makes R = ⟨‖y‖²⟩/⟨‖y‖⟩², at least 1; the root mean square makes it 1.
    images = photographs()
    tau = expand_displacements(draw_coefficients(40, 2, seeded(1)), (12, 12), COLD)
    norms = (warp(images, tau) - images).flatten(1).norm(dim=1)
    found = {noise: float(measure(Same(), images, noise=noise, n_draws=1).R.estimate) for noise in ("average", "rms")}
    assert found["rms"] == pytest.approx(1, rel=1e-12)
    assert found["average"] == pytest.approx(float(norms.square().mean() / norms.mean() ** 2), rel=1e-12)
    assert found["average"] > 1.05


def test_orthogonal_maps_and_scales_do_not_matter():
    images = photographs(20, 8)
    q = torch.linalg.qr(normal(192, 192))[0]
    plain, turned, scaled = (measure(net, images, n_draws=2) for net in (Same(), Linear(q), Linear(-7 * q)))
    for name in ("R", "D", "G"):
        assert float(getattr(turned, name).estimate) == pytest.approx(float(getattr(plain, name).estimate), rel=1e-10)
        assert float(getattr(scaled, name).estimate) == pytest.approx(float(getattr(plain, name).estimate), rel=1e-10)


def test_linear_maps_have_their_closed_form():
    # Given y, E‖Aη‖² = ‖y‖² ‖A‖²_F / n: R = n ⟨‖Ay‖²⟩ / (‖A‖²_F ⟨‖y‖²⟩) with the very y of the run, up to the noise of η alone.
    images, a = photographs(30, 8), normal(5, 192, seed=4)
    draws = 40
    found = measure(Linear(a), images, n_draws=draws, batch_size=30)
    tau = expand_displacements(draw_coefficients(draws * 30, 2, seeded(1)), (8, 8), COLD)
    repeated = images.repeat(draws, 1, 1, 1)
    y = (warp(repeated, tau) - repeated).flatten(1)
    expected = 192 * (y @ a.T).square().sum() / (a.square().sum() * y.square().sum())
    # ‖Aη‖²/‖η‖² has a relative variance of at most 2 tr(AᵀA)²/tr²; weights ‖y‖² over 1200 draws of y leave this many.
    weights = y.square().sum(1) / y.square().sum()
    gram = a @ a.T
    deviation = math.sqrt(2 * float(gram.square().sum() / gram.trace() ** 2) * float(weights.square().sum()))
    assert abs(float(found.R.estimate) / float(expected) - 1) < 5 * deviation
    assert 5 * deviation < 0.2


def test_a_constant_image_in_a_pooled_model():
    # Sums over sites of a periodic shift do not move; here the border does, and the model that sees only the mean is far more stable.
    images = photographs()
    mean = measure(nn.Sequential(nn.AdaptiveAvgPool2d(1)), images, n_draws=2)
    assert float(mean.D.high) < float(measure(Same(), images, n_draws=2).D.low)


def test_size_of_displacements_enters_squared():
    # At small displacements of a smooth image ‖τx − x‖² is ⟨τ²⟩|∇x|², so that D is proportional to the temperature.
    ramp = torch.linspace(0, 1, 12, dtype=F64)
    images = normal(6, 1, 1, 1) * ramp[:, None] + normal(6, 1, 1, 1, seed=1) * ramp
    found = measure(Same(), images, n_draws=60, temperature=1e-6)
    variance = float(displacement_variance((12, 12), temperature=1e-6, cutoff=2).sum())
    slopes = images.diff(dim=2)[..., 0, 0].square() + images.diff(dim=3)[..., 0, 0].square()
    apart = torch.pdist(images.flatten(1)).square().mean()
    expected = variance * float(slopes.mean()) / float(apart)
    # Means of squares of 60 fields for each of 6 images, of two components at least: a deviation of √(2/(60·6·2)) = 0.05 or less.
    assert float(found.D.estimate) == pytest.approx(expected, rel=0.2)


# Intervals and draws


def test_intervals_cover_the_value_of_many_images():
    # 24 runs on different images of a map that treats them alike: at level 0.95, fewer than 18 that cover have a probability of 1e-4.
    net, covered = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()).double(), 0
    for w in net.parameters():
        w.data.copy_(normal(*w.shape, seed=9))

    def images(n, seed):
        return normal(n, 1, 8, 8, seed=seed).cumsum(2).cumsum(3) / 8

    truth = float(measure(net, images(1500, 999), n_draws=2, resamples=20).R.estimate)
    for seed in range(24):
        interval = measure(net, images(40, seed), n_draws=2, seed=seed).R
        covered += interval.low <= truth <= interval.high
    assert covered >= 18


@pytest.mark.parametrize("estimator", ["mean", "median"])
def test_as_many_draws_as_the_precision_needs(estimator):
    net, images = small_cnn(), photographs(12)
    coarse, fine = (measure(net, images, precision=p, estimator=estimator, resamples=5) for p in (0.8, 0.1))
    assert coarse.n_draws == PILOT < fine.n_draws


def test_draws_keep_the_promise_of_the_precision():
    # Over seeds the estimates spread by the precision, here within a factor of 2, as far as 6 of them tell; the pilot alone would leave
    # three times as much.
    net, images = small_cnn(), photographs(12)
    found = torch.tensor([float(measure(net, images, seed=seed, precision=0.1, resamples=5).R.estimate) for seed in range(6)])
    assert float(found.std() / found.mean()) < 2 * 0.1


def test_too_fine_a_precision_is_refused_with_the_number_of_draws():
    with pytest.raises(ValueError, match=r"precision: expected one within 4096 draws, got 1e-05, which takes about \d+"):
        measure(small_cnn(), photographs(3), precision=1e-5)


def test_the_same_generator_gives_the_same_numbers():
    a, b, c = (measure(small_cnn(), photographs(5), seed=seed, n_draws=2) for seed in (1, 1, 2))
    assert a == b
    assert a.R.estimate != c.R.estimate


def test_a_model_that_does_not_see_the_deformation():
    # The corner pixel never moves: D = R = 0, and the number of draws is still found.
    class Corner(nn.Module):
        def forward(self, x):
            return x[:, :, 0, 0]

    found = measure(Corner(), photographs(9))
    assert float(found.R.estimate) == pytest.approx(0, abs=1e-20)
    assert found.n_draws == PILOT


# Layers, and what is left as it was


def test_layers_by_name():
    net, images = small_cnn(), photographs(8)
    names = ["0", "2", "5", ""]
    options = {"temperature": COLD, "cutoff": 2, "resamples": 50, "n_draws": 2, "batch_size": 8}
    found = layer_stabilities(net, images, names, generator=seeded(1), **options)
    assert list(found) == names
    for end, name in ((1, "0"), (3, "2"), (6, "5"), (9, "")):
        alone = relative_stability(nn.Sequential(*list(net)[:end]), images, generator=seeded(1), **options)
        assert float(found[name].R.estimate) == pytest.approx(float(alone.R.estimate), rel=1e-10)
        assert relative_stability(net, images, generator=seeded(1), layer=name, **options).R.estimate == found[name].R.estimate


def test_layers_that_work_in_place_do_not_change_what_was_noted():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).double()
    other = nn.Sequential(net[0], nn.ReLU()).double()
    images = photographs(5)
    kept = images.clone()
    a, b = (layer_stabilities(m, images, ["0", "1"], temperature=COLD, n_draws=1, generator=seeded(), batch_size=5) for m in (net, other))
    assert a == b
    measure(nn.ReLU(inplace=True), images, n_draws=1)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("estimator", ["mean", "median"])
def test_nothing_is_left_behind(estimator):
    net = small_cnn().train()
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    images = photographs(6).requires_grad_()
    state = torch.get_rng_state()
    measure(net, images, estimator=estimator, layer="4", n_draws=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not module._forward_hooks for module in net.modules())
    assert images.grad is None
    assert all(w.grad is None for w in net.parameters())
    assert torch.is_grad_enabled()


def test_hooks_and_modes_are_undone_after_an_error():
    class Broken(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("no\nfurther")

    net = Broken(nn.Conv2d(3, 2, 3)).double().train()
    with pytest.raises(ValueError, match=r"images: expected some that the model takes, got \(1, 3, 12, 12\): no$"):
        measure(net, photographs(3))
    with pytest.raises(ValueError, match=r": no$"), layer_outputs(net, ["0"]) as run:
        run(photographs(2))
    assert net.training
    assert all(not module._forward_hooks for module in net.modules())


def test_chunks_are_smaller_where_layers_are_wide():
    image = torch.zeros(1, 3, 12, 12, dtype=F64)
    narrow, wide = (nn.Sequential(nn.Conv2d(3, k, 3)).double() for k in (2, 200))
    assert chunk_size(narrow, image, [""]) > 10 * chunk_size(wide, image, [""]) >= 10


def test_folds_are_reported_and_warned_of():
    t = 3 * temperature_range(12, 3)[1]
    with pytest.warns(UserWarning, match=r"% of the fields fold at .*cutoff 3, above the published maximum"):
        found = measure(Same(), photographs(20), temperature=t, cutoff=3, n_draws=2)
    assert 0.3 < found.fold_fraction <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(Same(), photographs(20), temperature=1e-5, n_draws=2).fold_fraction == 0


def test_progress_goes_to_stderr(capsys):
    measure(Same(), photographs(5), progress=True)
    assert capsys.readouterr().out == ""


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layer": "features.9"}, ValueError, r"layer: expected one of '0', '1', .*'8', got 'features.9'"),
        ({"layer": ["0"]}, TypeError, "layer: expected the name of one.*layer_stabilities"),
        ({"noise": "white"}, ValueError, "noise: expected one of 'sample', 'average', 'rms', got 'white'"),
        ({"estimator": "mode"}, ValueError, "estimator: expected one of 'mean', 'median'"),
        ({"interpolation": "cubic"}, ValueError, "interpolation: expected one of"),
        ({"temperature": 0}, ValueError, "temperature: expected a number > 0"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"cutoff": 0}, ValueError, "cutoff"),
        ({"n_draws": 0}, ValueError, "n_draws"),
        ({"precision": 0.0}, ValueError, "precision"),
        ({"level": 2.0}, ValueError, "level"),
        ({"resamples": 0}, ValueError, "resamples"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"generator": None}, TypeError, "generator"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_options(change, error, words):
    with pytest.raises(error, match=words):
        measure(small_cnn(), photographs(3), **change)


@pytest.mark.usefixtures("unchecked")
def test_bad_models_and_images():
    images = photographs(4)
    with pytest.raises(TypeError, match="model: expected a torch module"):
        measure(lambda x: x, images)
    with pytest.raises(ValueError, match=r"images: expected \(N, C, H, W\)"):
        measure(Same(), images[0])
    with pytest.raises(ValueError, match="images: expected at least two"):
        measure(Same(), images[:1])
    with pytest.raises(TypeError, match=r"images: expected torch\.float64 as the model has"):
        measure(small_cnn(), images.float())
    with pytest.raises(ValueError, match="images: expected some that the model takes"):
        measure(small_cnn(), images[:, :2])
    with pytest.raises(TypeError, match="layers: expected a sequence"):
        layer_stabilities(small_cnn(), images, "0", temperature=COLD, generator=seeded())
    with pytest.raises(ValueError, match="layers: expected at least one"):
        layer_stabilities(small_cnn(), images, [], temperature=COLD, generator=seeded())


class Wrong(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.inner = Same()

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "layer", "error", "words"),
    [
        (lambda _, x: (x, x), "", TypeError, "model: output: expected a torch tensor"),
        (lambda _, x: x / 0, "", ValueError, "model: output: expected finite"),
        (lambda _, x: x.sum(), "", ValueError, "model: expected an output with one row an image"),
        (lambda _, x: x.argmax(1), "", TypeError, "model: output: expected dtype"),
        (lambda self, x: self.inner(self.inner(x)), "inner", ValueError, "layer 'inner': expected a layer that is met once.*got 2 times"),
        (lambda _, x: x, "inner", ValueError, "layer 'inner': expected a layer that is met once.*got 0 times"),
        (lambda _, x: torch.ones_like(x), "", ValueError, "model: expected outputs that noise changes"),
        (lambda _, x: (x > 10).to(x), "", ValueError, "model: expected outputs that noise changes"),
        (lambda _, x: x - x.mean(0, keepdim=True) if len(x) > 1 else 0 * x, "", None, ""),
    ],
)
@pytest.mark.parametrize("estimator", ["mean", "median"])
@pytest.mark.usefixtures("unchecked")
def test_bad_outputs(function, layer, error, words, estimator):
    if error is None:
        assert inside(measure(Wrong(function), photographs(4), layer=layer, estimator=estimator, n_draws=2).R)
        return
    for draws in (2, None):
        with pytest.raises(error, match=words):
            measure(Wrong(function), photographs(4), layer=layer, estimator=estimator, n_draws=draws)


def test_outputs_that_are_the_same_for_all_images_are_refused():
    same = photographs(1).expand(4, -1, -1, -1)
    with pytest.raises(ValueError, match="model: expected outputs that differ from image to image"):
        measure(Same(), same, n_draws=1)
