"""What is planned for a dataset; tests/parity/test_planner_parity.py holds it to nnU-Net."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.data.planner import (
    PLANNERS,
    Topology,
    coarsest_first,
    configurations,
    feature_values,
)
from covid_jax.errors import UserError

ISOTROPIC = ((3, 3, 3),)


def alike(spacing_mm, shape, cases=20, labels=2, **options):
    """What is planned for cases that are all alike."""
    return configurations([spacing_mm] * cases, [shape] * cases, labels, **options)


def halving(times):
    return ((1, 1, 1), *((2, 2, 2),) * times)


def test_the_hippocampi_of_the_decathlon_have_the_plan_that_nnunet_gives_them():
    planned = alike((1.0, 1.0, 1.0), (36, 50, 35), cases=260, labels=3)
    assert planned.lowres is None
    assert planned.transpose == (0, 1, 2)
    assert planned.fullres.topology == Topology(
        patch_size=(40, 56, 40),
        batch_size=9,
        features_per_stage=(32, 64, 128, 256),
        strides=halving(3),
        kernel_sizes=ISOTROPIC * 4,
        n_conv_per_stage=(2,) * 4,
        n_conv_per_stage_decoder=(2,) * 3,
    )


def test_thick_slices_are_halved_late_and_see_kernels_of_one_slice_first():
    topology = alike((5.0, 0.75, 0.75), (40, 512, 512)).fullres.topology
    assert topology.patch_size == (24, 256, 256)
    assert [stride[0] for stride in topology.strides] == [1, 1, 1, 2, 2, 1, 1]
    assert [kernel[0] for kernel in topology.kernel_sizes] == [1, 1, 3, 3, 3, 3, 3]
    assert {stride[1:] for stride in topology.strides[1:]} == {(2, 2)}


def test_a_residual_encoder_is_planned_for_a_gpu_of_24_gb_unless_told():
    planned = alike((1.0, 1.0, 1.0), (160, 190, 160), planner="resenc_l")
    assert planned.fullres.topology == Topology(
        patch_size=(160, 192, 160),
        batch_size=3,
        features_per_stage=(32, 64, 128, 256, 320, 320),
        strides=halving(5),
        kernel_sizes=ISOTROPIC * 6,
        n_blocks_per_stage=(1, 3, 4, 6, 6, 6),
        n_conv_per_stage_decoder=(1,) * 5,
    )
    told = alike((1.0, 1.0, 1.0), (160, 190, 160), planner="resenc_l", gpu_memory_gb=24)
    assert told == planned


def test_large_cases_are_planned_at_low_resolution_too():
    planned = alike((2.0, 0.7, 0.7), (300, 600, 600))
    full, low = planned.fullres, planned.lowres
    assert full.topology.batch_dice
    assert not low.topology.batch_dice
    seen = np.prod(low.topology.patch_size) / np.prod(low.median_shape)
    assert seen >= 0.25 > np.prod(full.topology.patch_size) / np.prod(full.median_shape)
    assert np.prod(full.median_shape) > 2 * np.prod(low.median_shape)
    extent = np.multiply(full.spacing_mm, full.median_shape)
    assert np.multiply(low.spacing_mm, low.median_shape) == pytest.approx(extent, rel=0.01)


def test_low_resolution_at_which_nothing_can_be_halved_is_not_planned():
    """nnU-Net plans a network of one stage for it, which is none."""
    planned = alike((5.0, 0.25, 1.0), (322, 16, 18))
    assert planned.fullres.topology.patch_size == (55, 16, 18)
    assert planned.lowres is None


def test_a_batch_has_at_most_a_twentieth_of_a_small_dataset_but_for_residual_presets():
    few = {name: alike((1, 1, 1), (36, 50, 35), 30, planner=name) for name in PLANNERS}
    batches = {name: planned.fullres.topology.batch_size for name, planned in few.items()}
    assert batches == {"default": 2, "resenc_m": 21, "resenc_l": 21, "resenc_xl": 21}


def test_the_coarsest_axis_comes_first_unless_told():
    spacing, shape = (0.75, 0.8, 5.0), (512, 500, 40)
    planned = alike(spacing, shape)
    assert planned.transpose == coarsest_first(spacing) == (2, 0, 1)
    assert planned.fullres.spacing_mm == (5.0, 0.75, 0.8)
    turned = alike(planned.fullres.spacing_mm, (40, 512, 500))
    assert (turned.fullres, turned.lowres) == (planned.fullres, planned.lowres)
    assert turned.transpose == (0, 1, 2)
    kept = alike(spacing, shape, transpose=(0, 1, 2))
    assert kept.fullres.spacing_mm == spacing


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ((1, 300, 300), {}, "one slice each"),
        ((7, 7, 11), {}, "too small for a U-Net: 7 x 7 x 11 voxels at 1 x 1 x 1 mm"),
        ((64, 64, 64), {"gpu_memory_gb": 1e-9}, "no patch fits"),
    ],
)
def test_what_no_network_fits_is_one_line(shape, options, told):
    with pytest.raises(UserError, match=told):
        alike((1.0, 1.0, 1.0), shape, **options)


lengths, steps = st.integers(16, 700), st.floats(0.1, 8)


@settings(max_examples=40)
@given(
    st.tuples(steps, steps, steps),
    st.tuples(lengths, lengths, lengths),
    st.sampled_from(list(PLANNERS)),
    st.floats(4, 80),
    st.integers(2, 30),
)
def test_what_is_planned_can_be_built_and_fits(spacing, shape, planner, memory_gb, labels):
    planned = alike(spacing, shape, labels=labels, planner=planner, gpu_memory_gb=memory_gb)
    rules = PLANNERS[planner]
    most = rules.feature_values * memory_gb / rules.memory_gb
    for configuration in filter(None, (planned.fullres, planned.lowres)):
        topology = configuration.topology
        divisor = np.prod(topology.strides, axis=0)
        stages = len(topology.strides)
        assert stages == len(topology.features_per_stage) == len(topology.kernel_sizes)
        assert stages == len(topology.n_conv_per_stage or topology.n_blocks_per_stage)
        assert stages == len(topology.n_conv_per_stage_decoder) + 1
        assert not (topology.patch_size % divisor).any()
        assert (topology.patch_size < configuration.median_shape + divisor).all()
        values = feature_values(topology, labels)
        assert values <= most
        assert topology.batch_size == 2 or values * (topology.batch_size - 0.5) / 2 <= most
