"""nnU-Net's plans as settings: every key of them changes the run, is refused, or cannot matter."""

import copy
import json

import pytest

from covid_jax.config import InferenceConfig
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan, Resampling
from covid_jax.errors import UserError
from covid_jax.inference.postprocess import Postprocessing
from covid_jax.nnunet.model_folder import nnunet_plan
from covid_jax.nnunet.own_plans import not_in_nnunet, write_plans
from covid_jax.nnunet.plans import read_plans
from tests.conftest import ROOT

PLANS = json.loads((ROOT / "tests" / "files" / "nnunet_plans.json").read_text())
DATASET = {
    "name": "Lesions",
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "ground glass": 1, "consolidation": 2, "ignore": 3},
    "numTraining": 4,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "SimpleITKIO",
}
FULLRES = "configurations/3d_fullres/"
ARGUMENTS = FULLRES + "architecture/arch_kwargs/"
INTENSITIES = "foreground_intensity_properties_per_channel/0/"

RESIDUAL_UNET = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def residual(plans):
    """`plans` with a residual encoder, as ResEncUNetPlanner writes them."""
    plans = copy.deepcopy(plans)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = RESIDUAL_UNET
    del architecture["arch_kwargs"]["n_conv_per_stage"]
    architecture["arch_kwargs"]["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6]
    return plans


CANNOT_MATTER = {
    "dataset_name": "a name",
    "plans_name": "a name",
    "original_median_spacing_after_transp": "what the planner found; the target is `spacing`",
    "original_median_shape_after_transp": "what the planner found",
    "experiment_planner_used": "how the plans came about",
    INTENSITIES + "max": "not in CTNormalization",
    INTENSITIES + "min": "not in CTNormalization",
    INTENSITIES + "median": "not in CTNormalization",
    FULLRES + "data_identifier": "the name of a folder of training data",
    FULLRES + "architecture/_kw_requires_import": "which arguments nnU-Net's loader looks up",
    ARGUMENTS + "dropout_op_kwargs": "there is no dropout",
    ARGUMENTS + "nonlin_kwargs/inplace": "where the result is kept",
}
CANNOT_MATTER_OF_DATASET = {
    "name": "a name",
    "channel_names/0": "the name of a channel; plans tell how it is normalised",
    "labels/ignore": "of labels, which prediction has none of",
    "numTraining": "of training",
    "file_ending": "of nnU-Net's files; predict reads any",
    "overwrite_image_reader_writer": "of planning; plans tell the reader",
}
OTHER_NETWORKS = tuple(f"configurations/{n}/" for n in ("2d", "3d_lowres", "3d_cascade_fullres"))


def leaves(tree, place=""):
    """The paths of all values that are no dictionaries."""
    if not isinstance(tree, dict):
        return [place]
    return [leaf for key in tree for leaf in leaves(tree[key], f"{place}/{key}".lstrip("/"))]


def another(value):
    """A value of the same kind that is not `value`."""
    if isinstance(value, list):
        return [another(value[0]), *value[1:]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 2
    return f"another_{value}"


def changed(tree, place, value=None):
    """`tree` with `value`, or just another one than it has, at `place`."""
    tree = copy.deepcopy(tree)
    *above, last = place.split("/")
    node = tree
    for key in above:
        node = node[key]
    node[last] = another(node[last]) if value is None else value
    return tree


def without(tree, place):
    """`tree` without what is at `place`."""
    tree = copy.deepcopy(tree)
    *above, last = place.split("/")
    node = tree
    for key in above:
        node = node[key]
    del node[last]
    return tree


def run_of(plans, dataset=DATASET, refused=lambda _: "refused", **checkpoint):
    """What decides the masks of the run; or "refused", or what `refused` makes of the error."""
    try:
        settings = read_plans(plans, dataset, **checkpoint)
    except UserError as error:
        return refused(error)
    return settings.config, settings.plan


EXPECTED = run_of(PLANS)
RESIDUAL_PLANS = residual(PLANS)


@pytest.mark.parametrize("place", leaves(PLANS))
def test_a_key_of_plans_changes_the_run_or_is_refused_or_cannot_matter(place):
    unchanged = run_of(changed(PLANS, place)) == EXPECTED
    assert unchanged == (place in CANNOT_MATTER or place.startswith(OTHER_NETWORKS))


@pytest.mark.parametrize(
    "place", [place for place in leaves(RESIDUAL_PLANS) if place.startswith(ARGUMENTS)]
)
def test_so_does_a_key_of_a_residual_encoder(place):
    unchanged = run_of(changed(RESIDUAL_PLANS, place)) == run_of(RESIDUAL_PLANS)
    assert unchanged == (place in CANNOT_MATTER)


def test_a_residual_encoder_has_its_blocks_under_every_name_that_plans_have_for_it():
    config, plan = run_of(RESIDUAL_PLANS)
    assert config.model.n_blocks_per_stage == (1, 3, 4, 6, 6, 6)
    assert config.model.n_conv_per_stage == ()
    assert plan == EXPECTED[1]
    elsewhere = copy.deepcopy(RESIDUAL_PLANS)
    architecture = elsewhere["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = RESIDUAL_UNET.replace("unet.", "residual_unet.")
    # What is left out, or given as it is anyway.
    block = "dynamic_network_architectures.building_blocks.residual.BasicBlockD"
    architecture["arch_kwargs"] |= {"block": block, "bottleneck_channels": None}
    architecture["arch_kwargs"] |= {"stem_channels": config.model.features_per_stage[0]}
    assert run_of(elsewhere) == (config, plan)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "block",
            "dynamic_network_architectures.building_blocks.residual.BottleneckD",
            "block=dynamic.*BottleneckD; supported: networks with block=BasicBlockD",
        ),
        ("bottleneck_channels", [8] * 6, r"bottleneck_channels=\[8"),
        ("stem_channels", 16, "stem_channels=16; supported: as many as the first stage.*, 32"),
        ("squeeze_excitation", True, "does not know: squeeze_excitation"),
        ("stochastic_depth_p", 0.1, "does not know: stochastic_depth_p"),
        ("n_conv_per_stage", [2] * 6, "does not know: n_conv_per_stage"),
        ("n_blocks_per_stage", [1, 2], r"n_blocks_per_stage is \[1, 2\]; wanted: a list of 6"),
    ],
)
def test_a_residual_encoder_of_another_kind_is_refused_by_name(key, value, message):
    with pytest.raises(UserError, match=message):
        read_plans(changed(RESIDUAL_PLANS, ARGUMENTS + key, value), DATASET)


def test_a_network_whose_decoder_is_residual_too_is_refused():
    place = FULLRES + "architecture/network_class_name"
    name = RESIDUAL_UNET.replace("ResidualEncoderUNet", "ResidualUNet")
    with pytest.raises(UserError, match="its network is ResidualUNet"):
        read_plans(changed(RESIDUAL_PLANS, place, name), DATASET)


@pytest.mark.parametrize("place", leaves(DATASET))
def test_a_key_of_dataset_json_changes_the_run_or_is_refused_or_cannot_matter(place):
    unchanged = run_of(PLANS, changed(DATASET, place)) == EXPECTED
    assert unchanged == (place in CANNOT_MATTER_OF_DATASET)


def test_the_number_of_labels_is_that_of_the_classes():
    for labels, classes in (
        ({"background": 0, "a": 1}, 2),
        ({"background": 0, "a": [1], "b": 2, "ignore": 3}, 3),
    ):
        config, _ = run_of(PLANS, DATASET | {"labels": labels})
        assert config.model.num_classes == classes
    for labels in ({"background": 0, "whole": [1, 2]}, {"background": 0, "a": 2}):
        assert run_of(PLANS, DATASET | {"labels": labels}) == "refused"


@pytest.mark.parametrize(
    ("axes", "mirror"), [(None, False), ((), False), ((0, 2), True), ([1, 0, 2], True)]
)
def test_the_axes_of_mirroring_are_those_of_the_checkpoint(axes, mirror):
    config, _ = run_of(PLANS, mirror_axes=axes)
    assert config.inference.mirror == mirror
    assert config.inference.mirror_axes == tuple(sorted(axes or ()))


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("2d", "PlainConvUNet of 2 axes"),
        ("3d_cascade_fullres", "second stage of a cascade"),
        ("4d", r"no configuration 4d; supported: 2d, 3d_cascade_fullres"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_by_name(configuration, message):
    with pytest.raises(UserError, match=message):
        read_plans(PLANS, DATASET, configuration)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerReLU", "nnUNetTrainerV2_GroupNorm"])
def test_a_trainer_of_another_network_with_the_same_weights_is_refused(trainer):
    assert run_of(PLANS, trainer=trainer) == "refused"
    assert run_of(PLANS, trainer="nnUNetTrainer_4000epochs_NoMirroring") == EXPECTED


OLD_PLANS = copy.deepcopy(PLANS)
del OLD_PLANS["configurations"]["3d_fullres"]["architecture"]
OLD_PLANS["configurations"]["3d_fullres"] |= {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 32,
    "unet_max_num_features": 320,
    "n_conv_per_stage_encoder": [2] * 6,
    "n_conv_per_stage_decoder": [2] * 5,
    "conv_kernel_sizes": [[3, 3, 3]] * 6,
    "pool_op_kernel_sizes": [[1, 1, 1], *([[2, 2, 2]] * 5)],
}


def of_another_kind(value):
    """What may be taken for `value` without a word, and is none."""
    if isinstance(value, list):
        first = [[wrong, *value[1:]] for wrong in of_another_kind(value[0])]
        return [*first, str(value), {"0": value[0]}]
    if isinstance(value, bool):
        return [str(value).lower(), int(value)]
    if isinstance(value, int):
        return [value + 0.5, str(value), True, [value] * 7]
    if isinstance(value, float):
        return [str(value), True, float("nan"), [value]]
    return [[value], {value: value}, 1]


@pytest.mark.parametrize(
    "plans", [PLANS, RESIDUAL_PLANS, OLD_PLANS], ids=["plain", "residual", "old"]
)
def test_a_value_of_another_kind_is_refused_by_its_key(plans):
    assert run_of(plans) != "refused"
    for place in leaves(plans):
        if place.startswith(OTHER_NETWORKS) or place in CANNOT_MATTER:
            continue
        value = plans
        for key in place.split("/"):
            value = value[key]
        for wrong in [] if value is None else of_another_kind(value):
            with pytest.raises(UserError) as refused:
                read_plans(changed(plans, place, wrong), DATASET)
            assert str(wrong) in str(refused.value), place


@pytest.mark.parametrize("plans", [PLANS, RESIDUAL_PLANS, OLD_PLANS])
def test_a_key_that_is_missing_is_told_or_has_nnunets_own_value(plans):
    for place in leaves(plans):
        told = run_of(without(plans, place), refused=str)
        assert not isinstance(told, str) or place.split("/")[-1] in told, place


def with_value(place, value):
    return changed(PLANS, place, value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (FULLRES + "flavour", 1, r"keys .* does not know \(flavour\).*--plans"),
        (ARGUMENTS + "gates", True, "does not know: gates"),
        (ARGUMENTS + "norm_op_kwargs/track_running_stats", True, "track_running_stats"),
        (ARGUMENTS + "nonlin_kwargs/threshold", 1, "nonlin_kwargs has threshold"),
        (ARGUMENTS + "dropout_op", "torch.nn.Dropout3d", "dropout_op=torch.nn.Dropout3d"),
        (ARGUMENTS + "nonlin", "torch.nn.ReLU", "nonlin=torch.nn.ReLU"),
        (ARGUMENTS + "nonlin_first", True, "nonlin_first=True"),
        (ARGUMENTS + "kernel_sizes", [[2, 2, 2]] * 6, "kernel_sizes.*must be odd"),
        (
            FULLRES + "resampling_fn_data",
            "no_resampling_hack",
            "fn_data is no_resampling_hack; supp",
        ),
        (FULLRES + "resampling_fn_data_kwargs/order", 7, "orders 7 and 0"),
        (
            FULLRES + "resampling_fn_data_kwargs/is_seg",
            True,
            "is_seg=True; supported: is_seg=False",
        ),
        (
            FULLRES + "resampling_fn_seg_kwargs/is_seg",
            False,
            "is_seg=False; supported: is_seg=True",
        ),
        (
            FULLRES + "resampling_fn_seg",
            "nearest",
            "fn_seg is nearest; supported: resample_data_or",
        ),
        (FULLRES + "resampling_fn_data_kwargs/blur", 7, "resampling_fn_data_kwargs has blur"),
        (FULLRES + "use_mask_for_norm", [True], "use_mask_for_norm"),
        (FULLRES + "preprocessor_name", "Mine", "prepared by Mine; supported: DefaultPreprocessor"),
        (FULLRES + "normalization_schemes", ["MyNormalization"], "by MyNormalization"),
        (FULLRES + "normalization_schemes", ["CTNormalization"] * 2, "has 1 channels"),
        ("image_reader_writer", "Tiff3DIO", "read by Tiff3DIO; supported: SimpleITKIO"),
        ("label_manager", "Mine", "label manager is Mine"),
        ("transpose_forward", [1, 2, 0], "does not undo"),
        ("transpose_forward", [0, 0, 0], "does not undo"),
        ("transpose_forward", "012", "transpose_forward is '012'; wanted: .* a list of 3"),
        (FULLRES + "spacing", [1, 0, 1], r"spacing is \[1.0, 0.0, 1.0\]; wanted: lengths above 0"),
        (INTENSITIES + "percentile_00_5", 1e4, "its CT is clipped to 10000 to"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(place, value, message):
    with pytest.raises(UserError, match=message):
        read_plans(with_value(place, value), DATASET)


def test_labels_that_nnunet_refuses_are_told():
    notes = read_plans(PLANS, DATASET | {"labels": {"background": 0, "a": 1, "ignore": 7}}).notes
    assert "dataset.json: the label ignore is 7; nnU-Net wants 2" in notes


@pytest.mark.parametrize(
    ("plans", "dataset", "told"),
    [
        (with_value(FULLRES + "batch_dice", "false"), DATASET, r"plans\.json: its batch_dice is"),
        (PLANS, DATASET | {"labels": [1]}, r"dataset\.json: its labels is \[1\]"),
    ],
)
def test_the_file_that_is_wrong_is_named(tmp_path, plans, dataset, told):
    paths = tmp_path / "plans.json", tmp_path / "dataset.json"
    for path, content in zip(paths, (plans, dataset), strict=True):
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        nnunet_plan(*paths, "3d_fullres")


def test_a_key_that_this_program_does_not_know_is_told():
    settings = read_plans(PLANS | {"flavour": 1}, DATASET)
    assert settings.notes[-1].endswith("does not know: flavour")


def test_arguments_that_are_left_out_are_those_of_nnunets_functions():
    """Its signatures: order 3, nearest along z, and no axis apart; by torch, apart where coarse."""
    _, plan = run_of(with_value(FULLRES + "resampling_fn_data_kwargs", {"is_seg": False}))
    assert plan.image_resampling == Resampling(order=3, separate=False)
    plans = with_value(FULLRES + "resampling_fn_data", "resample_torch_fornnunet")
    plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"] = {}
    assert run_of(plans)[1].image_resampling == Resampling(order=1)


@pytest.mark.parametrize(
    ("argument", "value"), [("memefficient_seg_resampling", True), ("aniso_axis_mode", "linear")]
)
def test_labels_by_torch_are_linear_and_nearest_or_refused(argument, value):
    plans = with_value(FULLRES + "resampling_fn_seg", "resample_torch_fornnunet")
    arguments = plans["configurations"]["3d_fullres"]["resampling_fn_seg_kwargs"] = {"is_seg": True}
    assert run_of(plans)[1].label_resampling == Resampling(order=1)
    arguments[argument] = value
    with pytest.raises(UserError, match=f"resampling_fn_seg_kwargs has .*{argument}={value}"):
        read_plans(plans, DATASET)


@pytest.mark.parametrize("plans", [PLANS, RESIDUAL_PLANS], ids=["plain", "residual"])
def test_what_was_read_is_written_again(plans):
    """Plans to settings to plans to settings."""
    plans = changed(plans, "image_reader_writer", "SimpleITKIOWithReorient")
    plans |= {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
    configuration = plans["configurations"]["3d_fullres"]
    configuration["resampling_fn_data_kwargs"]["order_z"] = 1
    configuration["resampling_fn_data_kwargs"]["separate_z_anisotropy_threshold"] = 2.0
    configuration["resampling_fn_seg_kwargs"] |= {"order": 3, "force_separate_z": True}
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["nonlin_kwargs"]["negative_slope"] = 0.2
    arguments["norm_op_kwargs"]["eps"] = 1e-3
    settings = read_plans(plans, DATASET)
    again = read_plans(write_plans(settings.config, settings.plan), DATASET)
    assert (again.config, again.plan) == (settings.config, settings.plan)


def test_the_readers_axes_are_told():
    notes = read_plans(with_value("image_reader_writer", "NibabelIOWithReorient"), DATASET).notes
    assert "axes: turned to RAS" in notes
    notes = read_plans(PLANS, DATASET, mirror_axes=(0, 1)).notes
    assert "axes: those of each file" in notes
    assert "mirrored along axes (0, 1): 4 views of each window, 4 times the time" in notes


def test_an_export_says_what_nnunet_cannot_do():
    config, plan = EXPECTED
    imported = " ".join(not_in_nnunet(config, plan, Postprocessing()))
    assert "8-bit" in imported
    assert "head, back, left" not in imported
    own = Plan((1.0, 1.0, 1.0), (ct(-1000.0, 300.0, -300.0, 400.0),), (64, 64, 64), ())
    config.inference = InferenceConfig(step_size=0.75)
    lines = not_in_nnunet(config, own, Postprocessing(0.3, largest_only=True))
    for what in ("LPS", "logits", "--disable_tta", "-step_size 0.75", "0.3", "largest", "half"):
        assert any(what in line for line in lines), what


BLOCKS = "dynamic_network_architectures.building_blocks.residual."
NETWORKS = "dynamic_network_architectures.architectures."
PLAIN, WITH_REGIONS = {"background": 0, "a": 1}, {"background": 0, "whole": [1, 2], "core": 2}


def plain(place, value):
    """A plain network's plans with a value, and what else tells a run."""
    return changed(PLANS, place, value), DATASET, {}


def residual_with(key, value):
    """A residual encoder's plans with a value."""
    return changed(RESIDUAL_PLANS, ARGUMENTS + key, value), DATASET, {}


def of_dataset(**values):
    """A dataset.json with values."""
    return PLANS, DATASET | values, {}


REFUSED = {
    "a 2D configuration": (PLANS, DATASET, {"configuration": "2d"}),
    "the second stage of a cascade": (PLANS, DATASET, {"configuration": "3d_cascade_fullres"}),
    "a reader of other files": plain("image_reader_writer", "NaturalImage2DIO"),
    "another preprocessor": plain(FULLRES + "preprocessor_name", "MyPreprocessor"),
    "a normalisation of one's own": plain(FULLRES + "normalization_schemes", ["MyNormalization"]),
    "a mask for others than z-scores": plain(FULLRES + "use_mask_for_norm", [True]),
    "another resampling": plain(FULLRES + "resampling_fn_data", "no_resampling_hack"),
    "another resampling of labels": plain(FULLRES + "resampling_fn_seg", "no_resampling_hack"),
    "a label manager of one's own": plain("label_manager", "MyLabelManager"),
    "a key of a configuration that is not known": plain(FULLRES + "flavour", 1),
    "a transformer": plain(FULLRES + "architecture/network_class_name", NETWORKS + "primus.Primus"),
    "a residual decoder": plain(
        FULLRES + "architecture/network_class_name", NETWORKS + "unet.ResidualUNet"
    ),
    "another norm": plain(ARGUMENTS + "norm_op", "torch.nn.BatchNorm3d"),
    "another nonlinearity": plain(ARGUMENTS + "nonlin", "torch.nn.ReLU"),
    "dropout": plain(ARGUMENTS + "dropout_op", "torch.nn.Dropout3d"),
    "convolutions without bias": plain(ARGUMENTS + "conv_bias", False),
    "the nonlinearity before the norm": plain(ARGUMENTS + "nonlin_first", True),
    "strides in the first stage": plain(ARGUMENTS + "strides", [[2, 2, 2]] * 6),
    "bottleneck blocks": residual_with("block", BLOCKS + "BottleneckD"),
    "squeeze and excitation": residual_with("squeeze_excitation", True),
    "stochastic depth": residual_with("stochastic_depth_p", 0.1),
    "a stem of another width": residual_with("stem_channels", 16),
    "a trainer of another network": (PLANS, DATASET, {"trainer": "nnUNetTrainerReLU"}),
    "channels that plans and dataset count differently": of_dataset(
        channel_names={"0": "CT", "1": "PET"}
    ),
    "label values with a gap": of_dataset(labels={"background": 0, "a": 2}),
    "regions without their order": of_dataset(labels=WITH_REGIONS),
    "an ignored value below another": of_dataset(labels=PLAIN | {"b": 3, "ignore": 2}),
    "a value twice in a region": of_dataset(labels={"background": 0, "a": [1, 1]}),
    "a value of another kind": plain(FULLRES + "batch_dice", "false"),
    "a value of another kind in a list": plain(FULLRES + "patch_size", [16.9, 16, 16]),
    "a resampling without its arguments": (
        without(PLANS, FULLRES + "resampling_fn_probabilities_kwargs"),
        DATASET,
        {},
    ),
    "a key that is missing": (without(PLANS, FULLRES + "batch_dice"), DATASET, {}),
}
"""What docs/nnunet.md says is refused: plans, dataset and what the checkpoint says."""


def message_of(plans, dataset, **checkpoint):
    """With which it is refused."""
    with pytest.raises(UserError) as refused:
        read_plans(plans, dataset, **checkpoint)
    return str(refused.value)


def test_the_documented_messages_are_those_that_come():
    lines = (ROOT / "docs" / "nnunet.md").read_text().split("## Refused")[1].splitlines()
    documented = {tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("| ")}
    come = {
        (what, message_of(plans, dataset, **checkpoint))
        for what, (plans, dataset, checkpoint) in REFUSED.items()
    }
    assert come == documented - {("what", "message"), ("---", "---")}
