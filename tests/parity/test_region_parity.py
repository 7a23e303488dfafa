"""Regions and the label to ignore beside nnU-Net's own: label manager, loss, sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from covid_jax.data.geometry import from_spacing
from covid_jax.data.preprocess import Geometry, PreparedCase
from covid_jax.data.store import open_case, save_case
from covid_jax.label_space import IGNORED, label_space
from covid_jax.model.loss import deep_supervision_loss
from covid_jax.training.step import make_eval_step, mean_dice, pseudo_dice
from tests.conftest import installed

torch = installed("torch", extra="peers")
from batchgeneratorsv2.transforms.utils.seg_to_regions import (  # noqa: E402
    ConvertSegmentationToRegionsTransform,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # noqa: E402
    DefaultPreprocessor,
)
from nnunetv2.training.loss import dice  # noqa: E402
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss  # noqa: E402
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper  # noqa: E402
from nnunetv2.utilities.label_handling.label_handling import LabelManager  # noqa: E402

from benchmarks.peers import torch_nnunet as peer  # noqa: E402
from tests.parity import golden  # noqa: E402

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
IGNORE = 4
PARTLY = {**REGIONS, "labels": {**REGIONS["labels"], "ignore": IGNORE}}
CLASSES = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
CLASSES_PARTLY = {"labels": {**CLASSES["labels"], "ignore": IGNORE}}
DESCRIPTIONS = {
    "regions": REGIONS,
    "regions, partly annotated": PARTLY,
    "classes": CLASSES,
    "classes, partly annotated": CLASSES_PARTLY,
}
EVERY = pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
SHAPE = (8, 16, 16)
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


def manager_of(description):
    return LabelManager(description["labels"], description.get("regions_class_order"))


def labels_of(kind, seed=0):
    """(2, D, H, W): every value; one that is nowhere; only background; some voxels ignored."""
    labels = np.random.default_rng(seed).integers(0, 4, (2, *SHAPE))
    if kind == "an empty region":
        labels[labels == 3] = 2
    elif kind == "empty":
        labels[:] = 0
    elif kind == "ignored":
        labels[:, :3] = IGNORED
    elif kind == "all ignored":
        labels[:] = IGNORED
    return labels


def their_targets(description, labels):
    """(N, R, D, H, W) bool, the ignored voxels as a last channel: what nnU-Net trains on."""
    manager = manager_of(description)
    regions = list(manager.foreground_regions)
    regions += [manager.ignore_label] if manager.has_ignore_label else []
    convert = ConvertSegmentationToRegionsTransform(regions)
    theirs = torch.from_numpy(np.where(labels == IGNORED, IGNORE, labels))
    return torch.stack([convert(segmentation=one[None])["segmentation"] for one in theirs])


def their_loss(description, batch_dice, heads, labels):
    """That of nnUNetTrainer._build_loss."""
    one_head = DC_and_BCE_loss(
        {},
        {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False},
        use_ignore_label=manager_of(description).ignore_label is not None,
        dice_class=dice.MemoryEfficientSoftDiceLoss,
    )
    weights = np.array([1 / 2**i for i in range(len(heads))])
    weights[-1] = 0
    target = their_targets(description, labels).float()
    sizes = [head.shape[2:] for head in heads]
    targets = [
        torch.nn.functional.interpolate(target, size, mode="nearest-exact") for size in sizes
    ]
    return DeepSupervisionWrapper(one_head, weights / weights.sum())(heads, targets)


@pytest.fixture(params=["float32", "float64"])
def precision(request, monkeypatch):
    """Also makes nnU-Net's loss, which casts to float32 whatever its input is, work in float64."""
    if request.param == "float64":
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    with jax.enable_x64(request.param == "float64"), golden.dice_sums_in(request.param):
        yield request.param


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(
    ("kind", "description"),
    [
        *itertools.product(("all values", "an empty region", "empty"), (REGIONS, PARTLY)),
        ("ignored", PARTLY),
        ("all ignored", PARTLY),
    ],
)
def test_the_loss_and_its_gradient_to_every_head(kind, description, batch_dice, precision):
    rng = np.random.default_rng(1)
    sizes = [SHAPE, (8, 8, 8), (4, 4, 4)]
    heads = [3 * rng.normal(size=(2, *size, 3)).astype(precision) for size in sizes]
    labels = labels_of(kind)
    theirs = [peer.channels_first(head).requires_grad_() for head in heads]
    value = their_loss(description, batch_dice, theirs, labels)
    value.backward()
    ours, gradients = jax.value_and_grad(deep_supervision_loss)(
        [jnp.asarray(head) for head in heads],
        jnp.asarray(labels),
        batch_dice=batch_dice,
        label_space=label_space(description),
    )
    of_one = max(1, abs(value.item()))  # cross-entropy and Dice are each about 1
    assert abs(float(ours) - value.item()) < TOLERANCE[precision] * of_one
    for gradient, head in zip(gradients[:2], theirs[:2], strict=True):
        their_gradient = peer.channels_last(head.grad)
        scale = max(np.abs(their_gradient).max(), 1e-8)
        assert np.abs(np.asarray(gradient) - their_gradient).max() < TOLERANCE[precision] * scale
    assert not np.asarray(gradients[2]).any()


@pytest.mark.parametrize("description", [REGIONS, PARTLY], ids=["regions", "partly annotated"])
def test_the_pseudo_dice_is_that_of_its_validation_step(description):
    logits = np.random.default_rng(0).normal(size=(2, *SHAPE, 3)).astype(np.float32)
    labels = labels_of("ignored" if description is PARTLY else "all values")
    step = make_eval_step(lambda p, x: (x,), label_space=label_space(description))
    found = step({}, {}, {"image": jnp.asarray(logits), "label": jnp.asarray(labels)})
    target, mask = their_targets(description, labels), None
    if description is PARTLY:
        target, mask = target[:, :-1], ~target[:, -1:]
    predicted = (torch.sigmoid(peer.channels_first(logits)) > 0.5).long()
    tp, fp, fn, _ = dice.get_tp_fp_fn_tn(predicted, target, [0, 2, 3, 4], mask)
    np.testing.assert_array_equal(found["overlap"], 2 * tp)
    np.testing.assert_array_equal(found["volume"], 2 * tp + fp + fn)
    expected = (2 * tp / (2 * tp + fp + fn)).mean()
    assert mean_dice(pseudo_dice([found])) == pytest.approx(float(expected))


@EVERY
def test_the_numbers_of_the_label_manager(description):
    ours, theirs = label_space(description), manager_of(description)
    assert ours.heads == theirs.num_segmentation_heads
    assert [0, *ours.values] == theirs.all_labels
    assert ours.ignored == theirs.ignore_label
    foreground = theirs.foreground_regions if theirs.has_regions else theirs.foreground_labels
    as_tuples = [one if isinstance(one, tuple) else (one,) for one in foreground]
    assert [one if isinstance(one, tuple) else (one,) for one in ours.scored] == as_tuples
    assert (ours.activation == "sigmoid") == theirs.has_regions


@EVERY
@given(seed=st.integers(0, 99))
def test_probabilities_become_the_masks_of_the_label_manager(description, seed):
    ours, theirs = label_space(description), manager_of(description)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ours.heads, 3, 4, 5)).astype(np.float32)
    logits[:, 0] = np.rint(logits[:, 0])  # equal ones, and halves
    activate = special.expit if ours.regions else lambda x: special.softmax(x, axis=0)
    expected = theirs.convert_logits_to_segmentation(logits)
    np.testing.assert_array_equal(ours.mask(activate(logits)), expected)
    box = [[1, 4], [0, 4], [2, 7]]
    padded = ours.outside((ours.heads, 5, 6, 7))
    padded[:, 1:4, 0:4, 2:7] = activate(logits)
    np.testing.assert_array_equal(
        padded, theirs.revert_cropping_on_probabilities(activate(logits), box, (5, 6, 7))
    )


@EVERY
def test_voxels_to_centre_patches_on_are_those_of_the_preprocessor(tmp_path, description):
    space, manager = label_space(description), manager_of(description)
    label = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    label[label == 2] = 3
    if space.ignored:
        label[:, :5] = IGNORED
    geometry = Geometry(SHAPE, ((0, 1),) * 3, (1.0,) * 3, ((1.0,) * 4,) * 4, ((1.0,) * 4,) * 4)
    prepared = PreparedCase(np.zeros((*SHAPE, 1), np.float32), label, geometry)
    save_case(tmp_path, "a", prepared, from_spacing(label, (1.0, 1.0, 1.0)), {}, space)
    case = open_case(tmp_path / "cases" / "a")
    collected = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    collected += [[-1, *manager.all_labels]] if manager.has_ignore_label else []
    found = DefaultPreprocessor._sample_foreground_locations(
        np.where(label == IGNORED, IGNORE, label)[None].astype(np.int16), collected
    )
    theirs = [voxels for voxels in found.values() if len(voxels)]
    ours = [*case.foreground, *([] if case.annotated is None else [case.annotated])]
    assert (case.annotated is not None) == manager.has_ignore_label
    assert len(ours) == len(theirs)
    for voxels, their_voxels in zip(ours, theirs, strict=True):
        assert {*map(tuple, voxels)} == {tuple(voxel[1:]) for voxel in their_voxels}
