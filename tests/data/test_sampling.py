"""Which patch of which case: a function of (seed, step, sample)."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.data.geometry import from_spacing
from covid_jax.data.preprocess import Geometry, PreparedCase
from covid_jax.data.sampling import Sampler, Source, copy_cut, cut_corner
from covid_jax.data.store import StoredCase, open_case, save_case
from covid_jax.label_space import IGNORED, OUTSIDE

GEOMETRY = Geometry((1, 1, 1), (), (), (), ())


def case(shape=(20, 30, 40), value=1.0, lesion=((5, 6, 7),)):
    image = np.full(shape, value, np.float32)
    label = np.zeros(shape, np.uint8)
    for voxel in lesion:
        label[voxel] = 1
    foreground = (np.array(lesion, np.int32),) if lesion else ()
    return StoredCase(Path("case"), image[..., None], label, foreground, GEOMETRY)


def sampler(
    sources=None,
    batch_size=2,
    seed=0,
    stream="training",
    num_classes=2,
    cut_size=(8, 12, 12),
):
    sources = sources or (Source((case(),), (1,)),)
    return Sampler(sources, num_classes, (8, 12, 12), cut_size, batch_size, 0.33, seed, stream)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_a_batch_depends_on_its_step_alone():
    rng = np.random.default_rng(0)
    cases = (
        case(value=1.0),
        case(value=2.0, lesion=tuple(map(tuple, rng.integers(0, 19, (9, 3))))),
    )
    one = sampler((Source(cases, (1,)),))
    straight = list(one.batches(0, 6))
    resumed = list(one.batches(4, 6))
    assert len(straight) == 6
    assert all(same(a, b) for a, b in zip(straight[4:], resumed, strict=True))
    assert same(straight[3], one.batch(3))


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_make_the_batches_that_threads_make(workers, tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.random((9, 20, 30), np.float32)
    prepared = PreparedCase(voxels[..., None], (voxels > 0.9).astype(np.uint8), GEOMETRY)
    reference = from_spacing(prepared.label, (1.0, 1.0, 1.0))
    save_case(tmp_path, "noise", prepared, reference, {})
    one = sampler((Source((open_case(tmp_path / "cases" / "noise"),), (1,)),))
    by_threads = list(one.batches(2, 12))
    by_processes = list(one.batches(2, 12, workers=workers))
    assert len(by_threads) == len(by_processes) == 10
    assert all(map(same, by_threads, by_processes))


def test_another_process_maps_the_files_of_a_case(tmp_path):
    voxels = np.zeros((50, 50, 50), np.float32)
    prepared = PreparedCase(voxels[..., None], voxels.astype(np.uint8), GEOMETRY)
    save_case(tmp_path, "zeros", prepared, from_spacing(voxels, (1.0, 1.0, 1.0)), {})
    sent = pickle.dumps(open_case(tmp_path / "cases" / "zeros"))
    assert len(sent) < 1000
    assert isinstance(pickle.loads(sent).image, np.memmap)


def test_the_samples_of_several_hosts_make_the_batch():
    rng = np.random.default_rng(0)
    cases = (case(), case(lesion=tuple(map(tuple, rng.integers(0, 19, (9, 3))))))
    one = sampler((Source(cases, (1,)),), batch_size=4)
    parts = [next(one.batches(5, 6, samples)) for samples in (range(1), range(1, 3), range(3, 4))]
    for name, whole in vars(one.batch(5)).items():
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, whole)


def test_a_larger_cut_has_the_same_patch_in_its_middle():
    rng = np.random.default_rng(0)
    voxels = rng.random((9, 20, 30, 2))
    noise = StoredCase(Path("noise"), voxels, np.zeros((9, 20, 30)), (), GEOMETRY)
    sources = (Source((noise,), (1,)),)
    patch = sampler(sources).batch(3).image
    cut = sampler(sources, cut_size=(8, 16, 18)).batch(3).image
    assert cut.shape == (2, 8, 16, 18, 2)
    np.testing.assert_array_equal(cut[:, :, 2:-2, 3:-3], patch)


def test_ignored_voxels_stay_ignored_whatever_the_classes_are():
    some = case()
    some.label[:] = IGNORED
    batch = sampler((Source((some,), (2,)),), num_classes=3).batch(0)
    assert set(np.unique(batch.label)) <= {0, IGNORED}
    assert (batch.label == IGNORED).any()


def test_another_step_seed_or_stream_is_another_batch():
    noisy = StoredCase(
        Path("noise"),
        np.random.default_rng(0).random((40, 60, 60, 1)).astype(np.float32),
        np.zeros((40, 60, 60), np.uint8),
        (),
        GEOMETRY,
    )
    sources = (Source((noisy,), (1,)),)
    first = sampler(sources).batch(0)
    assert not same(first, sampler(sources).batch(1))
    assert not same(first, sampler(sources, seed=1).batch(0))
    assert not same(first, sampler(sources, stream="validation").batch(0))


def test_the_last_of_a_batch_of_two_holds_a_lesion():
    one = sampler((Source((case(shape=(64, 64, 64), lesion=((40, 50, 9),)),), (1,)),))
    batches = [one.batch(step) for step in range(30)]
    assert all(batch.label[1].any() for batch in batches)
    assert sum(batch.label[0].any() for batch in batches) < 10


@pytest.mark.parametrize(("batch_size", "lesions"), [(1, 0), (2, 1), (3, 1), (4, 1), (6, 2)])
def test_as_many_of_a_batch_are_centred_on_a_lesion_as_in_nnunet(batch_size, lesions):
    one = sampler((Source((case((64, 64, 64)),), (1,)),), batch_size)
    found = np.mean([[label.any() for label in one.batch(s).label] for s in range(20)], axis=0)
    assert (found == 1).sum() == lesions


def test_each_dataset_has_its_own_class_and_says_which_it_labels():
    sources = (Source((case(value=1.0),), (1,)), Source((case(value=2.0),), (2,)))
    one = sampler(sources, num_classes=3)
    seen = set()
    for step in range(20):
        batch = one.batch(step)
        for image, label, labelled in zip(batch.image, batch.label, batch.labelled, strict=True):
            own = int(image.max())
            assert set(np.unique(label)) <= {0, own}
            assert labelled.tolist() == [True, own == 1, own == 2]
            seen.add(own)
    assert seen == {1, 2}


def test_where_not_all_is_annotated_every_patch_lies_around_what_is():
    """Those that are to hold a lesion around one, the others around any annotated voxel."""
    some = replace(case((64, 64, 64), lesion=((9, 50, 40),)), annotated=np.array([[40, 50, 9]]))
    some.label[40, 50, 9] = 2
    batches = [sampler((Source((some,), (1, 2)),), num_classes=3).batch(s) for s in range(5)]
    assert all((1 in batch.label[1], 2 in batch.label[0]) == (True, True) for batch in batches)


def test_a_case_without_lesions_is_sampled_anywhere():
    batch = sampler((Source((case(lesion=()),), (1,)),)).batch(0)
    assert not batch.label.any()


@pytest.mark.parametrize("classes", [(1,), (2,)])
@pytest.mark.parametrize("outside", [0, OUTSIDE])
def test_what_is_outside_is_background_or_marked_for_an_augmentation_that_masks(outside, classes):
    """In a case's label, and around the case (nnU-Net pads with -1)."""
    marked = case(shape=(4, 6, 6), lesion=((1, 2, 2),))
    marked.label[2:] = OUTSIDE
    found = sampler((Source((marked,), classes),), num_classes=3)
    label = replace(found, outside=outside).batch(0).label
    assert set(np.unique(label)) == {0, *classes, outside}
    inside = 2 * 6 * 6
    assert (label[1] == outside).sum() == label[1].size - (inside if outside else 1)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 99),
    on_lesion=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_is_cut_is_a_part_of_the_padded_case(shape, size, seed, on_lesion):
    rng = np.random.default_rng(seed)
    voxels = rng.random(shape)
    lesion = (tuple(int(rng.integers(n)) for n in shape),)
    corner = cut_corner(rng, case(shape, lesion=lesion), size, size, on_lesion)
    cut = np.full(size, np.nan)
    copy_cut(voxels, corner, cut)
    padded = np.pad(voxels, 12)
    expected = padded[tuple(slice(c + 12, c + 12 + s) for c, s in zip(corner, size, strict=True))]
    np.testing.assert_array_equal(cut, expected)
    if on_lesion:
        assert voxels[lesion[0]] in cut
    else:
        covered = [min(n, s) for n, s in zip(shape, size, strict=True)]
        assert np.count_nonzero(cut) == np.prod(covered)
