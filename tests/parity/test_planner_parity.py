"""Plans beside those of nnU-Net's own planners, for drawn datasets: every number is the same."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
    residual_encoder_unet_planners as residual,
)

from covid_jax.data.planner import PLANNERS, Configuration, Topology, configurations, feature_values

DRAWS = 50
NETWORKS: dict[Any, Any] = {}
"""Of nnU-Net's own, as they are made for most draws of most planners."""
THEIRS = {
    "default": ExperimentPlanner,
    "resenc_m": residual.nnUNetPlannerResEncM,
    "resenc_l": residual.nnUNetPlannerResEncL,
    "resenc_xl": residual.nnUNetPlannerResEncXL,
}
COMPARED = (
    "spacing",
    "median_image_size_in_voxels",
    "patch_size",
    "batch_size",
    "batch_dice",
    "n_stages",
    "features_per_stage",
    "strides",
    "kernel_sizes",
    "n_conv_per_stage",
    "n_blocks_per_stage",
    "n_conv_per_stage_decoder",
)


@dataclass(frozen=True)
class Draw:
    """A dataset, and what it is planned for."""

    spacings_mm: np.ndarray
    shapes: np.ndarray
    channels: int
    labels: int
    of_memory: float | None  # of the planner's own
    transposed: bool


def draw(seed: int) -> Draw:
    """Of cubes and of slices along any axis, of 0.05 to 10 mm, of 14 to 1500 voxels."""
    rng = np.random.default_rng(seed)
    cases = int(rng.choice([2, 3, 8, 21, 60, 400]))
    axes = rng.permutation(3)
    thick = np.array([rng.choice([1, 1.25, 2, 3.1, 5, 10]), 1, rng.choice([1, 1, 1, 1.5, 2.5])])
    spacing = 10 ** rng.uniform(-1.3, 0.5) * thick[axes]
    extent = 2 ** rng.uniform(5, 9.5) * 2 ** rng.uniform(-0.7, 0.7, 3)
    spread = rng.choice([0, 0, 0.05, 0.3])
    spacings = spacing * np.exp(spread * rng.normal(size=(cases, 3)))
    shapes = extent / thick[axes] * np.exp(spread * rng.normal(size=(cases, 3)))
    return Draw(
        spacings.round(4),
        np.clip(shapes, 14, 1500).astype(int),
        channels=int(rng.integers(1, 6)),
        labels=int(rng.choice([2, 25])),
        of_memory=rng.choice([None, None, 2 ** rng.uniform(-2, 2)]),
        transposed=bool(rng.random() < 0.75),
    )


@pytest.fixture
def plan_there(tmp_path, monkeypatch):
    """Plans with a planner of nnU-Net's own, from the two files that it reads.

    Its networks are its own, but without memory for weights, and each made once; 2D is left out.
    """
    raw, prepared = (
        tmp_path / "raw" / "Dataset001_drawn",
        tmp_path / "prepared" / "Dataset001_drawn",
    )
    raw.mkdir(parents=True)
    prepared.mkdir(parents=True)
    monkeypatch.setattr(default_experiment_planner, "nnUNet_raw", str(raw.parent))
    monkeypatch.setattr(default_experiment_planner, "nnUNet_preprocessed", str(prepared.parent))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    make = default_experiment_planner.get_network_from_plans

    def network(name, arguments, imports, channels, labels, allow_init):
        # No kernel has a part in the size of what it gives.
        key = (name, arguments["strides"], labels)
        if key not in NETWORKS:
            with torch.device("meta"):
                NETWORKS[key] = make(name, arguments, imports, channels, labels, allow_init)
        return NETWORKS[key]

    monkeypatch.setattr(default_experiment_planner, "get_network_from_plans", network)

    def plan(of: Draw, planner: str) -> dict[str, Any]:
        dataset = {
            "channel_names": {str(channel): "MR" for channel in range(of.channels)},
            "labels": {str(label): label for label in range(of.labels)},
            "numTraining": len(of.shapes),
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "dataset": {"case": {"images": ["image"], "label": "label"}},
        }
        fingerprint = {
            "spacings": of.spacings_mm.tolist(),
            "shapes_after_crop": of.shapes.tolist(),
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {},
        }
        (raw / "dataset.json").write_text(json.dumps(dataset))
        (prepared / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        (prepared / "plans.json").unlink(missing_ok=True)

        class Planner3D(THEIRS[planner]):
            def get_plans_for_configuration(self, spacing, *arguments):
                if len(spacing) == 2:
                    return {}
                return super().get_plans_for_configuration(spacing, *arguments)

        planned = Planner3D(
            "Dataset001_drawn",
            PLANNERS[planner].memory_gb * (of.of_memory or 1),
            plans_name="plans",
            suppress_transpose=not of.transposed,
        )
        planned.plan_experiment()
        return json.loads((prepared / "plans.json").read_text())

    return plan


def as_there(ours: Configuration) -> dict[str, Any]:
    """Ours under the keys of nnU-Net's plans."""
    topology = ours.topology
    return {
        "spacing": list(ours.spacing_mm),
        "median_image_size_in_voxels": list(ours.median_shape),
        "patch_size": list(topology.patch_size),
        "batch_size": topology.batch_size,
        "batch_dice": topology.batch_dice,
        "n_stages": len(topology.strides),
        "features_per_stage": list(topology.features_per_stage),
        "strides": [list(stride) for stride in topology.strides],
        "kernel_sizes": [list(kernel) for kernel in topology.kernel_sizes],
        "n_conv_per_stage": list(topology.n_conv_per_stage),
        "n_blocks_per_stage": list(topology.n_blocks_per_stage),
        "n_conv_per_stage_decoder": list(topology.n_conv_per_stage_decoder),
    }


def of_theirs(configuration: dict[str, Any]) -> dict[str, Any]:
    """What is compared of a configuration in nnU-Net's plans."""
    empty = {"n_conv_per_stage": [], "n_blocks_per_stage": []}
    everything = {**empty, **configuration, **configuration["architecture"]["arch_kwargs"]}
    return {key: everything[key] for key in COMPARED}


@pytest.mark.filterwarnings("ignore:WARNING. You are running nnUNetPlanner")
@pytest.mark.parametrize("planner", PLANNERS)
def test_plans_are_those_of_nnunets_planner(planner, plan_there, capsys):
    low = 0
    first = DRAWS * list(PLANNERS).index(planner)
    for seed in range(first, first + DRAWS):
        of = draw(seed)
        theirs = plan_there(of, planner)
        ours = configurations(
            of.spacings_mm,
            of.shapes,
            of.labels,
            planner,
            of.of_memory and PLANNERS[planner].memory_gb * of.of_memory,
            None if of.transposed else (0, 1, 2),
        )
        low += ours.lowres is not None
        found = {"3d_fullres": ours.fullres, "3d_lowres": ours.lowres}
        assert list(ours.transpose) == theirs["transpose_forward"], seed
        assert {name: as_there(c) for name, c in found.items() if c} == {
            name: of_theirs(c) for name, c in theirs["configurations"].items() if name in found
        }, seed
    with capsys.disabled():
        print(f"\n{planner}: {DRAWS} of {DRAWS} plans are nnU-Net's, {low} of them with 3d_lowres")
    assert 0 < low < DRAWS


sides = st.sampled_from([1, 2])
stages = st.tuples(st.tuples(sides, sides, sides), st.integers(1, 48), st.integers(1, 3))


@given(
    st.lists(stages, min_size=2, max_size=4),
    st.tuples(*(st.integers(1, 5),) * 3),
    st.integers(1, 2),
    st.integers(2, 9),
    st.booleans(),
)
def test_feature_values_are_counted_as_the_networks_count_them(
    below, deepest, decoder, labels, with_blocks
):
    """For any stages: also such that change neither the features nor the size."""
    strides = ((1, 1, 1), *(stride for stride, _, _ in below[1:]))
    features, blocks = (tuple(of_stage[k] for of_stage in below) for k in (1, 2))
    encoder = {"n_blocks_per_stage" if with_blocks else "n_conv_per_stage": blocks}
    topology = Topology(
        patch_size=tuple(int(n) for n in np.prod(strides, axis=0) * deepest),
        batch_size=2,
        features_per_stage=features,
        strides=strides,
        kernel_sizes=((3, 3, 3),) * len(below),
        n_conv_per_stage_decoder=(decoder,) * (len(below) - 1),
        **encoder,
    )
    network = (ResidualEncoderUNet if with_blocks else PlainConvUNet)(
        1,
        len(below),
        features,
        torch.nn.Conv3d,
        topology.kernel_sizes,
        strides,
        num_classes=labels,
        n_conv_per_stage_decoder=topology.n_conv_per_stage_decoder,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={},
        nonlin=torch.nn.LeakyReLU,
        **encoder,
    )
    expected = network.compute_conv_feature_map_size(topology.patch_size)
    assert feature_values(topology, labels) == expected
