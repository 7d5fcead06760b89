"""The convolution theorem and its consequences: blocks against networks and against matrices built without a Fourier transform."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import linconv as lc
from linconv import spectrum, symbols
from linconv.network import LinearCNN, circular_convolution, fold_kernel
from linconv.spectrum import FrequencyBlocks, conv_blocks, conv_singular_values, frequency_blocks, full_spectrum, mirror_index, pair_weights
from linconv.strategies import grids, images, linear_cnns, predictors
from linconv.symbols import distinct_frequencies
from linconv.witnesses import dense_convolution, dense_network

RELATIVE = {torch.float32: 1e-4, torch.float64: 1e-11}
DTYPES = st.sampled_from([torch.float64, torch.float32])


def assert_close(a, b, scale=0.0):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    size = max(scale, float(b.abs().max()), 1e-30)
    assert float((a - b).abs().max()) <= RELATIVE[a.real.dtype] * size


def transform(x, grid):
    """The unnormalised DFT of images `(N, C, *grid)`, as `(*grid, C, N)`."""
    return torch.fft.fftn(x, dim=tuple(range(2, x.ndim))).movedim((1, 0), (-2, -1))


def norms(net, x):
    """An upper bound on |f(x)|, against which rounding is measured."""
    return math.prod(float(w.detach().norm()) * math.sqrt(math.prod(net.grid)) for w in net.weights) * float(x.norm()) + 1e-30


@st.composite
def kernels(draw, dtype=DTYPES, max_sites=24, max_channels=3):
    """A kernel and a grid that it may overhang."""
    grid = draw(grids(max_sites=max_sites))
    taps = tuple(draw(st.integers(1, 2 * n + 1)) for n in grid)
    return draw(predictors(grid=taps if math.prod(taps) < 60 else grid, dtype=dtype, max_channels=max_channels)), grid


# --- Laws, as functions so that mutants can be held against them -------------------------------------------------------


def law_convolution_theorem(net, x):
    """f(x) = (1/D) Σ_u V_u x̂_u."""
    values = frequency_blocks(net).values
    f = (values @ transform(x, net.grid)).sum(tuple(range(len(net.grid)))) / math.prod(net.grid)
    expected = net(x).detach()
    assert_close(f.detach().real.T.contiguous(), expected, scale=norms(net, x))
    assert float(f.detach().imag.abs().max()) <= RELATIVE[x.dtype] * norms(net, x)


def law_layer_theorem(weight, x):
    """ŷ_u = ŵ_u x̂_u."""
    grid = tuple(x.shape[2:])
    y = transform(circular_convolution(x, weight), grid)
    scale = float(weight.abs().sum() * x.abs().sum())
    assert_close(conv_blocks(weight, grid).values @ transform(x, grid), y, scale=scale)


def law_singular_values(weight, grid):
    """All singular values over all frequencies are those of the block-circulant matrix."""
    dense = np.linalg.svd(dense_convolution(weight.numpy(), grid), compute_uv=False)
    values = conv_singular_values(weight, grid)
    assert values.shape == (*grid, min(weight.shape[:2]))
    found = np.sort(values.numpy().ravel())[::-1]
    np.testing.assert_allclose(found, dense[: found.size], atol=RELATIVE[weight.dtype] * max(dense[0], 1e-30), rtol=0)
    assert found.size == dense.size


# --- Convolution theorem -----------------------------------------------------------------------------------------------


@given(st.data())
def test_convolution_theorem_for_networks(data):
    net = data.draw(linear_cnns(dtype=DTYPES))
    law_convolution_theorem(net, data.draw(images(net=net)))


@given(kernels(), st.data())
def test_convolution_theorem_for_layers(case, data):
    weight, grid = case
    law_layer_theorem(weight, data.draw(images(channels=weight.shape[1], grid=grid, dtype=weight.dtype)))


@given(linear_cnns(grid=grids(max_sites=20)))
def test_blocks_give_the_dense_matrix(net):
    matrix = torch.from_numpy(dense_network([w.detach().numpy() for w in net.weights], net.grid))
    predictor = frequency_blocks(net).predictor().detach()
    assert_close(predictor.flatten(1), matrix, scale=norms(net, torch.ones(1, dtype=torch.float64)))


@given(st.data())
def test_predictor_is_the_function(data):
    net = data.draw(linear_cnns(dtype=DTYPES))
    x = data.draw(images(net=net))
    assert_close(x.flatten(1) @ frequency_blocks(net).predictor().detach().flatten(1).T, net(x).detach(), scale=norms(net, x))


@given(predictors(dtype=DTYPES))
def test_predictor_and_blocks_are_inverse(beta):
    blocks = FrequencyBlocks.from_predictor(beta)
    assert blocks.grid == beta.shape[2:]
    assert blocks.kind == "readout"
    back = blocks.predictor()
    assert back.is_contiguous()
    assert_close(back, beta)


@given(predictors(dtype=DTYPES))
def test_parseval(beta):
    energy = FrequencyBlocks.from_predictor(beta).values.abs().square().sum() / math.prod(beta.shape[2:])
    assert_close(energy, beta.square().sum())
    sigma = FrequencyBlocks.from_predictor(beta).singular_values()
    assert_close(sigma.square().sum() / math.prod(beta.shape[2:]), beta.square().sum())


@given(predictors())
def test_blocks_at_opposite_frequencies_are_conjugate(beta):
    values, dims = FrequencyBlocks.from_predictor(beta).values, tuple(range(beta.ndim - 2))
    mirrored = values.flip(dims).roll((1,) * len(dims), dims)
    assert_close(mirrored, values.conj(), scale=float(beta.abs().sum()))


# --- Composition, adjoint, shifts --------------------------------------------------------------------------------------


@given(st.data())
def test_composition_is_the_product_of_blocks(data):
    net = data.draw(linear_cnns(dtype=DTYPES))
    *hidden, readout = (w.detach() for w in net.weights)
    blocks = FrequencyBlocks.from_predictor(readout)
    for w in reversed(hidden):
        blocks = blocks @ conv_blocks(w, net.grid)
    assert blocks.kind == "readout"
    scale = norms(net, torch.ones(1)) * math.sqrt(math.prod(net.grid))
    assert_close(blocks.values, frequency_blocks(net).values.detach(), scale=scale)


@given(kernels(dtype=st.just(torch.float64)), st.data())
def test_two_convolutions_compose(case, data):
    first, grid = case
    second = data.draw(predictors(grid=grid, max_channels=1)).repeat(1, len(first), *[1] * len(grid))
    x = data.draw(images(channels=first.shape[1], grid=grid))
    both = conv_blocks(second, grid) @ conv_blocks(first, grid)
    assert both.kind == "equivariant"
    y = transform(circular_convolution(circular_convolution(x, first), second), grid)
    scale = float(first.abs().sum() * second.abs().sum() * x.abs().sum())
    assert_close(both.values @ transform(x, grid), y, scale=scale)


@given(predictors())
def test_adjoint_kernel_has_the_adjoint_blocks(weight):
    grid, spatial = tuple(weight.shape[2:]), tuple(range(2, weight.ndim))
    reflected = weight.flip(spatial).roll((1,) * len(grid), spatial).transpose(0, 1)
    assert_close(conv_blocks(reflected, grid).values, conv_blocks(weight, grid).values.mH, scale=float(weight.abs().sum()))


@given(kernels(), st.data())
def test_shifts_multiply_blocks_by_phases_and_keep_singular_values(case, data):
    weight, grid = case
    shift = tuple(data.draw(st.integers(0, 3)) for _ in grid)
    shifted = weight.new_zeros(*weight.shape[:2], *(k + s for k, s in zip(weight.shape[2:], shift, strict=True)))
    shifted[(..., *(slice(s, None) for s in shift))] = weight
    axes = [torch.arange(n, dtype=torch.float64) * (s / n) for n, s in zip(grid, shift, strict=True)]
    phase = torch.exp(-2j * math.pi * sum(torch.meshgrid(*axes, indexing="ij")))[..., None, None].to(conv_blocks(weight, grid).values.dtype)
    assert_close(conv_blocks(shifted, grid).values, phase * conv_blocks(weight, grid).values, scale=float(weight.abs().sum()))
    assert_close(conv_singular_values(shifted, grid), conv_singular_values(weight, grid), scale=float(weight.abs().sum()))


# --- Singular values ---------------------------------------------------------------------------------------------------


@given(kernels())
def test_singular_values_are_those_of_the_block_circulant_matrix(case):
    law_singular_values(*case)


@given(kernels())
def test_the_paths_agree(case):
    weight, grid = case
    fast = conv_singular_values(weight, grid)
    slow = conv_singular_values(weight.clone().requires_grad_(), grid)
    assert slow.requires_grad
    with torch.no_grad():
        again = conv_singular_values(weight.clone().requires_grad_(), grid)
    assert not again.requires_grad
    assert torch.equal(again, fast)
    assert fast.dtype == weight.dtype
    assert_close(fast, slow.detach(), scale=float(weight.abs().sum()))
    assert bool((fast[..., :-1] >= fast[..., 1:]).all())


@given(kernels(), st.sampled_from([0, 10**9]), st.sampled_from([1, 300, 2**21]))
def test_table_and_transform_and_chunks_agree(case, taps, chunk):
    weight, grid = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symbols, "TABLE_TAPS", taps)
        patch.setattr(symbols, "CHUNK_BYTES", chunk)
        values = conv_singular_values(weight, grid)
    assert_close(values, conv_blocks(weight, grid).singular_values(), scale=float(weight.abs().sum()))


@pytest.mark.parametrize("kernel", [(11, 11), (11, 12)])
def test_both_sides_of_the_table_limit(kernel, dtype, generator):
    weight = torch.randn(2, 3, *kernel, dtype=dtype, generator=generator)
    assert (math.prod(kernel) > symbols.TABLE_TAPS) == (kernel == (11, 12))
    assert_close(conv_singular_values(weight, (13, 12)), conv_blocks(weight, (13, 12)).singular_values())


@given(grids(max_side=9), st.integers(1, 3), st.integers(0, 2**31))
def test_half_spectrum_with_pair_weights_is_the_full_one(grid, rank, seed):
    beta = torch.randn(rank, 3, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sigma = FrequencyBlocks.from_predictor(beta).singular_values()
    half = sigma[..., : grid[-1] // 2 + 1, :]
    for p in (0.3, 1.0, 2.0):
        assert float((half**p).sum(-1).mul(pair_weights(grid)).sum()) == pytest.approx(float((sigma**p).sum()), rel=1e-11)
    assert_close(full_spectrum(half, grid), sigma)
    assert float(pair_weights(grid).sum()) * math.prod(grid[:-1]) == math.prod(grid)


@given(st.data())
def test_half_of_the_singular_values_of_a_layer_with_pair_weights(data):
    weight, grid = data.draw(kernels(dtype=st.just(torch.float64)))
    sigma = conv_singular_values(weight, grid)
    half = sigma[..., : grid[-1] // 2 + 1, :].square().sum(-1)
    assert float((half * pair_weights(grid)).sum()) == pytest.approx(float(sigma.square().sum()), rel=1e-11)
    assert_close(sigma.square().sum() / math.prod(grid), fold_kernel(weight, grid).square().sum())  # Parseval


@given(kernels())
def test_swapping_the_channels_keeps_the_singular_values(case):
    weight, grid = case
    assert_close(conv_singular_values(weight.transpose(0, 1), grid), conv_singular_values(weight, grid), scale=float(weight.abs().sum()))


@pytest.mark.parametrize("taps", [(1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("channels", [(2, 3), (3, 2), (1, 1)])
def test_dimensions_with_one_tap(taps, channels, dtype, generator):
    weight = torch.randn(*channels, *taps, dtype=dtype, generator=generator)
    law_singular_values(weight, (4, 5))
    values = conv_singular_values(weight, (4, 5))
    assert values.is_contiguous()
    for dim, k in enumerate(taps):
        if k == 1:
            assert torch.equal(values, values.narrow(dim, 0, 1).expand_as(values))
    assert_close(conv_singular_values(weight.clone().requires_grad_(), (4, 5)).detach(), values)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e150, 1e300])
def test_singular_values_of_tiny_and_huge_kernels(scale, generator):
    weight = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    assert_close(conv_singular_values(weight * scale, (5,)) / scale, conv_singular_values(weight, (5,)))
    assert_close(conv_blocks(weight * scale, (5,)).values / scale, conv_blocks(weight, (5,)).values)


def test_blocks_whose_sum_overflows_are_finite():
    huge = FrequencyBlocks(torch.full((4, 1, 1), 1e308, dtype=torch.complex128))
    assert torch.equal(huge.singular_values(), torch.full((4, 1), 1e308, dtype=torch.float64))
    for bad in (math.inf, math.nan):
        values = huge.values.clone()
        values[2] = bad
        with pytest.raises(ValueError, match=r"values: .*NaN or infinity"):
            FrequencyBlocks(values)


# --- The fast path -----------------------------------------------------------------------------------------------------


@contextmanager
def constants(**values):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(symbols, name, value)
        yield


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def assert_conjugate(values, grid):
    """Blocks at u and −u are conjugate, and those with u = −u real, bit for bit."""
    flat = values.flatten(0, len(grid) - 1)
    assert torch.equal(flat[mirror_index(grid)], flat.conj())


@given(linear_cnns(dtype=DTYPES), st.sampled_from([0, 10**9]), st.sampled_from([1, 300, 2**21]))
def test_blocks_of_a_network_are_those_of_the_plain_path(net, taps, chunk):
    plain = frequency_blocks(net)
    assert plain.values.requires_grad
    with torch.no_grad(), constants(TABLE_TAPS=taps, CHUNK_BYTES=chunk):
        fast = frequency_blocks(net)
    assert fast.kind == plain.kind
    assert fast.values.is_contiguous()
    assert not fast.values.requires_grad
    # Σ_l Π_l ‖w^l‖₁ bounds every entry of a block, and with it the rounding of the products.
    assert_close(fast.values, plain.values.detach(), scale=math.prod(float(w.detach().abs().sum()) for w in net.weights))
    assert_conjugate(fast.values, net.grid)


@given(kernels(), st.sampled_from([0, 10**9]), st.sampled_from([1, 300, 2**21]))
def test_blocks_of_a_layer_are_those_of_the_plain_path(case, taps, chunk):
    weight, grid = case
    plain = conv_blocks(weight.clone().requires_grad_(), grid).values
    with constants(TABLE_TAPS=taps, CHUNK_BYTES=chunk):
        fast = conv_blocks(weight, grid).values
    assert_close(fast, plain.detach(), scale=float(weight.abs().sum()))
    assert_conjugate(fast, grid)


@pytest.mark.parametrize("channels", [(2, 5, 4, 7), (7, 4, 5, 2)])
def test_products_from_either_end(channels, dtype, generator):
    first, *hidden, last = channels
    net = LinearCNN(first, hidden, last, (4, 5), kernel_size=3, dtype=dtype, generator=generator)
    with torch.no_grad():
        assert_close(frequency_blocks(net).values, frequency_blocks(net.requires_grad_()).values)
    plain = frequency_blocks(net).values.detach()
    assert_close(frequency_blocks(net.requires_grad_(False)).values, plain)


@given(grids(max_sites=30), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 300, 2**21]), st.integers(0, 2**31))
def test_singular_values_of_blocks_are_those_of_the_plain_path(grid, rows, columns, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    real_map = FrequencyBlocks.from_predictor(torch.randn(rows, columns, *grid, dtype=torch.float64, generator=generator))
    other = FrequencyBlocks(torch.randn(*grid, rows, columns, dtype=torch.complex128, generator=generator))
    for blocks in (real_map, other, FrequencyBlocks(real_map.values.movedim(0, len(grid) - 1)), FrequencyBlocks(other.values.conj())):
        with constants(CHUNK_BYTES=chunk):
            assert_close(blocks.singular_values(), torch.linalg.svdvals(blocks.values))


def test_one_block_that_is_not_conjugate_is_decomposed(generator):
    blocks = conv_blocks(torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=generator), (6, 5))
    minus = (-1, -2)
    for change in (1 + 1e-9, torch.tensor([[1.0], [1.0], [-2.0]])):
        values = blocks.values.clone()
        values[minus] *= change
        found, expected = FrequencyBlocks(values).singular_values(), torch.linalg.svdvals(values)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        assert torch.equal(found[1, 2], blocks.singular_values()[1, 2])
        assert float((found[minus] - found[1, 2]).abs().max()) > 1e-10


@given(grids(max_sites=60))
def test_distinct_frequencies_and_their_negatives_are_all(grid):
    first, second = distinct_frequencies(grid)
    assert torch.equal(mirror_index(grid)[first], second)
    assert sorted(set(first.tolist()) | set(second.tolist())) == list(range(math.prod(grid)))
    own = first == second
    assert len(first) + len(second) - int(own.sum()) == math.prod(grid)
    assert int((first % grid[-1]).max()) <= grid[-1] // 2


@pytest.mark.parametrize(
    ("channels", "taps", "grid", "decomposed"),
    [
        ((4, 4), (3, 3), (8, 9), 8 * 4 + 5),  # half of the last dimension, and 1 + 3 + 1 of its frequency zero
        ((4, 4), (3, 3), (8, 8), 8 * 3 + 5 + 5),
        ((9, 2), (3,), (31,), 16),
        ((2, 9), (3, 1), (31, 40), 16),
        ((4, 4), (12, 11), (12, 13), 12 * 6 + 7),  # by a fast transform
    ],
)
@pytest.mark.usefixtures("three_threads")
def test_half_is_decomposed_in_chunks(channels, taps, grid, decomposed, dtype, generator, monkeypatch):
    shapes, svdvals = [], torch.linalg.svdvals

    def record(blocks):
        shapes.append(blocks.shape)
        return svdvals(blocks)

    weight = torch.randn(*channels, *taps, dtype=dtype, generator=generator)
    expected = svdvals(conv_blocks(weight, grid).values)
    monkeypatch.setattr(torch.linalg, "svdvals", record)
    monkeypatch.setattr(symbols, "CHUNK_BYTES", 4000)
    assert_close(conv_singular_values(weight, grid), expected)
    assert sum(n for n, _, _ in shapes) == decomposed
    assert all((rows, columns) == (max(channels), min(channels)) for _, rows, columns in shapes)
    assert max(n for n, _, _ in shapes) * math.prod(channels) * 2 * dtype.itemsize <= 4000
    shapes.clear()
    with torch.no_grad():
        conv_blocks(weight, grid).singular_values()
    assert sum(n for n, _, _ in shapes) == len(distinct_frequencies(grid)[0])


# --- Threads -----------------------------------------------------------------------------------------------------------


def thread_counts():
    """Of every BLAS and OpenMP library in the process, of torch, and of the MKL in torch, as the calling thread sees them."""
    libraries = sorted((m["filepath"], m["num_threads"]) for m in threadpool_info())
    lines = [line.strip() for line in torch.__config__.parallel_info().splitlines() if "get_max_threads" in line]
    return libraries, torch.get_num_threads(), lines


def test_threads_and_randomness_are_left_as_they_were(generator):
    before, torchs = thread_counts(), torch.get_rng_state().tolist()
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002  (the global state is what is looked at)
    weight = torch.randn(4, 4, 3, 3, generator=generator)
    copy = weight.clone()
    with constants(CHUNK_BYTES=4000):
        conv_singular_values(weight, (40, 40))
        conv_blocks(weight, (8, 8)).singular_values()
    frequency_blocks(LinearCNN(1, (2,), 1, (4,), generator=generator).requires_grad_(False))
    assert thread_counts() == before
    assert torch.get_rng_state().tolist() == torchs
    assert np.random.get_state()[1].tolist() == numpys  # noqa: NPY002
    assert torch.equal(weight, copy)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("grid", [(1,), (40,)])
def test_each_worker_has_one_thread(grid):
    """One chunk, worked on by the caller, and many; `set_num_threads` has made MKL deaf to OpenMP's count."""
    before, inside, workers = thread_counts(), [], set()

    def look(u, minus):
        inside.append(thread_counts())
        workers.add(threading.get_ident())
        time.sleep(0.01)

    with constants(CHUNK_BYTES=16):
        symbols.in_chunks(look, grid, 1, torch.complex128)
    assert len(inside) == grid[0] // 2 + 1
    assert workers == {threading.get_ident()} if grid == (1,) else 1 < len(workers) <= 3
    for libraries, torchs, lines in inside:
        assert torchs == 1
        assert all(line.endswith(": 1") for line in lines)
        others = [(path, n) for path, n in libraries if "omp" not in path]
        assert others == [(path, n) for path, n in before[0] if "omp" not in path]  # NumPy's BLAS is left alone
    assert thread_counts() == before


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("grid", [(1,), (40,)])
def test_an_exception_inside_arrives_and_leaves_the_threads(grid, monkeypatch):
    before = thread_counts()

    def fail(blocks):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    with constants(CHUNK_BYTES=16), pytest.raises(torch.linalg.LinAlgError, match="did not converge"):
        conv_singular_values(torch.ones(1, 1, 3, dtype=torch.float64), grid)
    assert thread_counts() == before


@pytest.mark.usefixtures("three_threads")
def test_calls_from_several_threads_do_not_disturb_each_other(generator):
    """While others compute, a thread sees its own counts and those of the process unchanged; so do all afterwards."""
    weights = [torch.randn(8, 8, 3, 3, dtype=torch.float64, generator=generator) for _ in range(4)]
    expected = [conv_singular_values(w, (16, 17)) for w in weights]
    before, seen = thread_counts(), []
    with constants(CHUNK_BYTES=2**15), ThreadPoolExecutor(4) as pool:
        found = [pool.submit(lambda w: (conv_singular_values(w, (16, 17)), thread_counts()), w) for w in weights * 3]
        while not all(f.done() for f in found):
            seen.append(thread_counts())
    for i, future in enumerate(found):
        values, counts = future.result()
        assert_close(values, expected[i % 4])
        assert counts == before
    assert all(counts == before for counts in seen)
    assert thread_counts() == before


# --- Autograd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "grid"), [((3,), (4,)), ((5,), (3,)), ((2, 3), (3, 2)), ((1, 2, 3), (2, 2, 2))])
def test_gradients_flow_through_blocks_and_singular_values(kernel, grid, generator):
    weight = torch.randn(2, 2, *kernel, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: torch.view_as_real(conv_blocks(w, grid).values), weight)
    assert torch.autograd.gradcheck(lambda w: conv_singular_values(w, grid), weight)


def test_gradients_flow_through_network_blocks_and_predictor(generator):
    net = LinearCNN(2, (2, 3), 2, (3, 2), kernel_size=(2, 3), generator=generator)
    names, values = zip(*net.named_parameters(), strict=True)
    values = [v.detach().requires_grad_() for v in values]

    def through(function):
        def run(*weights):
            for name, weight in zip(names, weights, strict=True):
                index = int(name.split(".")[1])
                layers[index] = weight
            return function(FrequencyBlocks(blocks_of(layers), "readout"))

        layers = list(values)
        return run

    def blocks_of(weights):
        blocks = FrequencyBlocks.from_predictor(weights[-1])
        for w in reversed(weights[:-1]):
            blocks = blocks @ conv_blocks(w, net.grid)
        return blocks.values

    assert torch.autograd.gradcheck(through(lambda b: b.predictor()), values)
    assert torch.autograd.gradcheck(through(lambda b: b.singular_values()), values)
    loss = frequency_blocks(net).values.abs().square().sum()
    gradients = torch.autograd.grad(loss, net.weights)
    direct = frequency_blocks(net).predictor().square().sum() * 6  # Parseval, D = 6
    for a, b in zip(gradients, torch.autograd.grad(direct, net.weights), strict=True):
        assert_close(a, b)


# --- Mutants: each wrong formula must break a law ----------------------------------------------------------------------


def generic(depth=3):
    generator = torch.Generator().manual_seed(5)
    net = LinearCNN(2, (3, 2)[: depth - 1], 2, (3, 4), generator=generator)
    return net, torch.randn(4, 2, 3, 4, dtype=torch.float64, generator=generator)


def wrong_blocks(net, kind):
    hidden = [conv_blocks(w.detach(), net.grid).values for w in net.weights[:-1]]
    readout = conv_blocks(net.weights[-1].detach(), net.grid).values
    if kind == "unconjugated readout":
        chain = [*hidden, readout]
    elif kind == "conjugated layers":
        chain = [*(h.conj() for h in hidden), readout.conj()]
    elif kind == "orthonormal transform":
        chain = [h / math.sqrt(math.prod(net.grid)) for h in (*hidden, readout.conj())]
    else:
        chain = [*hidden, readout.conj()]
    values = chain[0]
    for block in chain[1:]:
        values = block @ values
    return FrequencyBlocks(values)


@pytest.mark.parametrize("kind", ["right", "unconjugated readout", "conjugated layers", "orthonormal transform"])
def test_wrong_blocks_break_the_convolution_theorem(kind, monkeypatch):
    net, x = generic()
    monkeypatch.setitem(globals(), "frequency_blocks", lambda net: wrong_blocks(net, kind))
    if kind == "right":
        law_convolution_theorem(net, x)
    else:
        with pytest.raises(AssertionError):
            law_convolution_theorem(net, x)


def test_truncating_a_wide_kernel_breaks_both_theorems(monkeypatch, generator):
    weight = torch.randn(2, 2, 5, dtype=torch.float64, generator=generator)
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    law_layer_theorem(weight, x)
    law_singular_values(weight, (3,))
    for module in (spectrum, symbols):
        monkeypatch.setattr(
            module, "fold_kernel", lambda w, grid: torch.nn.functional.pad(w[..., : grid[0]], (0, max(0, grid[0] - w.shape[-1])))
        )
    with pytest.raises(AssertionError):
        law_layer_theorem(weight, x)
    with pytest.raises(AssertionError):
        law_singular_values(weight, (3,))


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (5,), (2, 3, 4)])
def test_mirroring_without_the_roll_breaks_the_singular_values(grid, monkeypatch, generator):
    weight = torch.randn(2, 2, *grid, dtype=torch.float64, generator=generator)
    law_order = conv_blocks(weight, grid).singular_values()
    assert_close(conv_singular_values(weight, grid), law_order)
    if len(grid) > 1:
        monkeypatch.setattr(torch.Tensor, "roll", lambda self, *args: self)
        with pytest.raises(AssertionError):
            assert_close(conv_singular_values(weight, grid), law_order)


def test_dropping_pair_weights_breaks_the_sum(generator):
    sigma = FrequencyBlocks.from_predictor(torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator)).singular_values()
    half = sigma[..., :3, :].sum(-1)
    assert float((half * pair_weights((3, 4))).sum()) == pytest.approx(float(sigma.sum()))
    assert float(half.sum()) != pytest.approx(float(sigma.sum()), rel=0.1)
    assert float(2 * half.sum()) != pytest.approx(float(sigma.sum()), rel=0.1)


# --- Bad input ---------------------------------------------------------------------------------------------------------

F64 = torch.float64
C128 = torch.complex128


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv_blocks(np.ones((1, 1, 3)), (3,)), TypeError, "weight: .*ndarray"),
        (lambda: conv_blocks(torch.ones(1, 1, 3, 3), (3,)), ValueError, r"weight: .*\(1, 1, 3, 3\)"),
        (lambda: conv_blocks(torch.ones(1, 1, 3) * math.inf, (3,)), ValueError, "weight: .*finite"),
        (lambda: conv_blocks(torch.ones(1, 1, 3, dtype=C128), (3,)), TypeError, "weight: .*complex128"),
        (lambda: conv_blocks(torch.ones(1, 0, 3), (3,)), ValueError, "weight: .*empty"),
        (lambda: conv_blocks(torch.ones(1, 1, 3), (0,)), ValueError, "grid: .*positive"),
        (lambda: conv_blocks(torch.ones(1, 1, 3), 3), TypeError, "grid: .*sequence"),
        (lambda: conv_blocks(torch.ones(1, 1, 3), (2.0,)), TypeError, "grid: .*integer"),
        (lambda: conv_singular_values(torch.ones(1, 3), (3,)), ValueError, "weight"),
        (lambda: conv_singular_values([[[1.0]]], (3,)), TypeError, "weight: .*list"),
        (lambda: conv_singular_values(torch.full((1, 1, 3), math.nan), (3,)), ValueError, "weight: .*NaN"),
        (lambda: conv_singular_values(torch.ones(1, 1, 3), (1, 1, 1, 1)), ValueError, "grid"),
        (lambda: frequency_blocks(torch.nn.Flatten()), TypeError, "net: .*Flatten.*from_torch"),
        (lambda: FrequencyBlocks.from_predictor(torch.ones(3, 3)), ValueError, r"beta: .*\(3, 3\)"),
        (lambda: FrequencyBlocks.from_predictor(torch.ones(1, 1, 2, dtype=torch.int32)), TypeError, "beta: .*int32"),
        (lambda: FrequencyBlocks(torch.ones(2, 2, dtype=C128)), ValueError, r"values: .*\(2, 2\)"),
        (lambda: FrequencyBlocks(torch.ones(2, 0, 2, dtype=C128)), ValueError, "values"),
        (lambda: FrequencyBlocks(np.ones((2, 1, 1))), TypeError, "values: .*ndarray"),
        (lambda: FrequencyBlocks(torch.ones(2, 1, 1)), TypeError, "values: .*float32"),
        (lambda: FrequencyBlocks(torch.ones(2, 1, 1, dtype=C128), "linear"), ValueError, "kind: .*'linear'"),
        (lambda: conv_blocks(torch.ones(1, 1, 3), (3,)).predictor(), ValueError, "predictor: .*equivariant"),
        (lambda: FrequencyBlocks(torch.tensor([1j, 1, 2]).reshape(3, 1, 1)).predictor(), ValueError, "predictor: .*conjugate"),
    ],
)
def test_bad_input_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_blocks_that_do_not_fit_do_not_compose():
    readout = FrequencyBlocks.from_predictor(torch.ones(2, 3, 4, dtype=F64))
    layer = conv_blocks(torch.ones(3, 2, 2, dtype=F64), (4,))
    assert (readout @ layer).kind == "readout"
    with pytest.raises(ValueError, match=r"@: .*equivariant"):
        layer @ readout
    with pytest.raises(ValueError, match=r"@: .*\(4, 3, 2\) cannot follow .*\(4, 3, 2\)"):
        layer @ layer
    with pytest.raises(ValueError, match="@: "):
        readout @ conv_blocks(torch.ones(3, 2, 2, dtype=F64), (5,))
    assert lc.FrequencyBlocks is FrequencyBlocks
