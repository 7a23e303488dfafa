"""The fast convolution: the numbers of XLA's own, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from covid_jax.model import onednn
from covid_jax.model.conv import convolution, neighbours, transposed_convolution
from tests.conftest import needs_onednn
from tests.networks import COMPILED_SOON, assert_near

ODD = st.sampled_from([1, 3, 5])
STRIDE = st.sampled_from([1, 2, 3])


def reference(parts, kernel, strides):
    return lax.conv_general_dilated(
        jnp.concatenate(parts, -1),
        kernel,
        strides,
        [((size - 1) // 2,) * 2 for size in kernel.shape[:3]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def beside_lax(rng, form, parts, weights, strides):
    """Our result, lax's, and what lax's would be if no term had a sign, which is its scale.

    Of the value, and of the gradients to all parts and the kernel.
    """
    value = jax.eval_shape(lambda: reference(parts, weights, strides))
    dy = jnp.asarray(rng.normal(size=value.shape), value.dtype)
    ours = with_gradients(lambda p, w: convolution(p, w, strides, form))
    theirs = with_gradients(lambda p, w: reference(p, w, strides))
    arguments = dy, parts, weights
    unsigned = jax.tree.map(jnp.abs, arguments)
    return zip(ours(*arguments), theirs(*arguments), theirs(*unsigned), strict=True)


def with_gradients(function):
    """A program (dy, *inputs) -> the leaves of the value and of dy pulled back to the inputs."""

    def both(dy, *inputs):
        value, pull = jax.vjp(function, *inputs)
        return value, pull(dy)

    program = jax.jit(both, compiler_options=COMPILED_SOON)
    return lambda *arguments: jax.tree.leaves(program(*arguments))


@given(
    kernel=st.tuples(ODD, ODD, ODD),
    strides=st.tuples(STRIDE, STRIDE, STRIDE),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    channels=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    form=st.sampled_from(["lax", "packed", "slices"]),
)
@settings(max_examples=12, deadline=None)
def test_value_and_gradients_are_those_of_lax(kernel, strides, size, channels, form):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        parts = tuple(jnp.asarray(rng.normal(size=(2, *size, c))) for c in channels)
        weights = jnp.asarray(rng.normal(size=(*kernel, sum(channels), 4)))
        for a, b, scale in beside_lax(rng, form, parts, weights, strides):
            assert (jnp.abs(a - b) <= 1e-13 * scale).all()


@given(
    taps=ODD,
    depth_stride=STRIDE,
    height=st.integers(1, 5),
    blocks=st.integers(1, 4),
    channels=st.lists(st.sampled_from([1, 3, 6, 20]), min_size=1, max_size=2),
    features=st.sampled_from([1, 5, 32]),
)
@settings(max_examples=8, deadline=None)
def test_packing_neighbours_along_w_changes_no_number(
    taps, depth_stride, height, blocks, channels, features
):
    """At widths that it packs, for one kernel or several parts of one, along with its gradients."""
    rng = np.random.default_rng(0)
    strides = (depth_stride, 1, 1)
    with jax.enable_x64(True):
        parts = tuple(jnp.asarray(rng.normal(size=(1, 3, height, 8 * blocks, c))) for c in channels)
        weights = jnp.asarray(rng.normal(size=(1, 3, taps, sum(channels), features)))
        shape = (1, 3, taps, channels[0], features)
        packs = neighbours(shape, strides, 8 * blocks) > 1
        assert packs == (taps > 1)
        for a, b, scale in beside_lax(rng, "packed", parts, weights, strides):
            assert (jnp.abs(a - b) <= 1e-13 * scale).all()


@pytest.mark.parametrize(
    ("kernel", "strides", "width", "count"),
    [
        ((1, 3, 3, 32, 32), (1, 1, 1), 192, 2),  # as measured
        ((1, 3, 3, 1, 32), (1, 1, 1), 192, 8),
        ((1, 3, 3, 1, 32), (1, 1, 1), 20, 4),  # 8 do not divide it
        ((1, 3, 3, 1, 32), (1, 1, 1), 27, 1),
        ((1, 3, 3, 64, 64), (1, 1, 1), 96, 1),
        ((1, 3, 3, 32, 64), (1, 1, 1), 96, 1),
        ((3, 3, 3, 32, 32), (1, 1, 1), 96, 1),
        ((1, 3, 3, 32, 32), (1, 2, 2), 96, 1),
        ((1, 1, 1, 32, 32), (1, 1, 1), 96, 1),
    ],
)
def test_only_planar_convolutions_of_few_channels_are_packed(kernel, strides, width, count):
    assert neighbours(kernel, strides, width) == count


@needs_onednn
@given(
    kernel=st.tuples(ODD, ODD, ODD),
    strides=st.tuples(STRIDE, STRIDE, STRIDE),
    size=st.tuples(*[st.integers(1, 17)] * 3),
    channels=st.lists(st.integers(1, 17), min_size=1, max_size=2),
    features=st.integers(1, 17),
)
@settings(max_examples=8, deadline=None)
def test_onednn_gives_the_value_and_gradients_of_lax_in_float32(
    kernel, strides, size, channels, features
):
    rng = np.random.default_rng(0)
    parts = tuple(jnp.asarray(rng.normal(size=(2, *size, c)), jnp.float32) for c in channels)
    shape = (*kernel, sum(channels), features)
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    for a, b, scale in beside_lax(rng, "onednn", parts, weights, strides):
        assert (jnp.abs(a - b) <= 1e-5 * scale).all()


@needs_onednn
def test_onednn_is_for_float32_alone():
    x, kernel = jnp.ones((1, 2, 3, 3, 1), jnp.bfloat16), jnp.ones((1, 3, 3, 1, 1), jnp.bfloat16)
    traced = str(jax.make_jaxpr(lambda: convolution(x, kernel, (1, 1, 1), "onednn"))())
    assert "ffi_call" not in traced
    wide = jax.make_jaxpr(
        lambda: convolution(x.astype("float32"), kernel.astype("float32"), (1, 1, 1), "onednn")
    )()
    assert "ffi_call" in str(wide)


@needs_onednn
def test_a_compiler_that_fails_is_told_and_the_slower_form_taken(tmp_path, monkeypatch):
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho 'no room for a compiler' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="no room for a compiler"):
        assert not onednn.available.__wrapped__()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("form", ["lax", "packed", "slices"])
@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("depth", [1, 3])
def test_bfloat16_is_as_near_to_the_exact_value_as_it_can_be(form, strides, depth):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 20, 20, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(depth, 3, 3, 8, 4)), jnp.bfloat16)
    value = jax.eval_shape(lambda: reference((x,), kernel, strides))
    dy = jnp.asarray(rng.normal(size=value.shape), jnp.bfloat16)
    ours = with_gradients(lambda x, k: convolution(x, k, strides, form))(dy, x, kernel)
    exact = with_gradients(lambda x, k: reference((x,), k, strides))(
        *(v.astype("float32") for v in (dy, x, kernel))
    )
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Partial sums are rounded too: a few units in the last of 8 bits.
        assert float(jnp.abs(a - b).max() / jnp.abs(b).max()) < 2e-2


def test_slices_large_enough_for_the_scan_give_the_same_gradient():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(1, 3, 24, 24, 2)))
        kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 2, 3)))
        slices, whole = (
            jax.grad(lambda k: (convolution(x, k, (1, 1, 1), form) ** 2).sum())(kernel)  # noqa: B023
            for form in ("slices", "lax")
        )
        assert_near(slices, whole, 1e-11)


@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 2, 2), (1, 1, 1), (3, 1, 2)])
def test_the_transposed_convolution_is_the_adjoint_of_the_strided_one(strides):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*strides, 6, 7)), jnp.float32)
    up = transposed_convolution(x, kernel)
    # <up(x), y> = <x, down(y)>, where down convolves blocks of the kernel's size.
    y = jnp.asarray(rng.normal(size=up.shape), jnp.float32)
    down = lax.conv_general_dilated(
        y,
        kernel.swapaxes(3, 4),
        strides,
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    scale = jnp.linalg.norm(up.ravel()) * jnp.linalg.norm(y.ravel())
    assert abs((up * y).sum() - (x * down).sum()) < 1e-6 * scale


def test_an_input_that_nothing_needs_costs_no_gradient():
    """The gradient into a frozen skip disappears from the compiled step."""
    x = jnp.ones((1, 8, 16, 16, 8))
    kernel = jnp.ones((3, 3, 3, 16, 8))

    def flops(trained):
        def loss(trained_input):
            return convolution((trained_input, x), kernel, (1, 1, 1), "lax").var()

        def loss_of_both(both):
            return convolution(both, kernel, (1, 1, 1), "lax").var()

        function, argument = (loss, x) if trained == 1 else (loss_of_both, (x, x))
        lowered = jax.jit(jax.value_and_grad(function)).lower(argument)
        return lowered.cost_analysis()["flops"]

    forward, gradient = 2, 1  # in units of the convolution of 8 channels to 8
    assert flops(1) / flops(2) == pytest.approx((forward + gradient) / (forward + 2), rel=0.1)
