"""Reading CT series in DICOM: real slices, cut small, with what people's folders have in them."""

import copy
import io
import locale
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    JPEGExtended12Bit,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from covid_jax.data.dicom import find_series, read_series
from covid_jax.data.geometry import LPS, in_file_axes, turned_to_file_axes
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError
from tests.conftest import ROOT, installed
from tests.networks import assert_near


@pytest.fixture(scope="module")
def cut(lidc_series):
    """Eight neighbouring slices of 2.5 mm, cut to 40 x 32 pixels, from the feet to the head."""
    images = [pydicom.dcmread(file) for file in lidc_series.iterdir()]
    images.sort(key=lambda image: image.ImagePositionPatient[2])
    for image in images[:8]:
        image.PixelData = image.pixel_array[150:190, 100:132].tobytes()
        image.Rows, image.Columns = 40, 32
    return images[:8]


@pytest.fixture
def images(cut):
    return copy.deepcopy(cut)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "scan"


def save(folder, images, name="{:03d}.dcm", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images, start):
        image.save_as(folder / name.format(index))
    return folder


def of_a_new_series(images, uid=None):
    images, uid = copy.deepcopy(images), uid or generate_uid()
    for image in images:
        image.SeriesInstanceUID = uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return images


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def check_as_simpleitk(volume, folder, atol=1e-6):
    """The same values at the same places as SimpleITK has them."""
    peer = by_simpleitk(folder)
    voxels = in_file_axes(volume)
    np.testing.assert_array_equal(voxels.transpose(2, 1, 0), sitk.GetArrayFromImage(peer))
    for index in ((0, 0, 0), np.array(voxels.shape) - 1, (3, 5, 2)):
        there = volume.file_affine @ (*index, 1)
        point = peer.TransformIndexToPhysicalPoint([int(i) for i in index])
        np.testing.assert_allclose(there[:3] * (-1, -1, 1), point, atol=atol)


def test_a_real_series_reads_as_simpleitk_reads_it(lidc_series):
    volume = read_volume(lidc_series)
    check_as_simpleitk(volume, lidc_series)
    assert volume.voxels.dtype == np.int16
    assert volume.notes == ()


def test_its_file_axes_and_masks_are_those_of_simpleitk(images, folder, tmp_path):
    volume = read_series(save(folder, images))
    peer = by_simpleitk(folder)
    np.testing.assert_array_equal(turned_to_file_axes(volume).voxels, sitk.GetArrayFromImage(peer))
    mask = replace(volume, voxels=(volume.voxels > 0).astype(np.uint8))
    write_volume(tmp_path / "mask.nii.gz", mask)
    written = sitk.ReadImage(tmp_path / "mask.nii.gz")
    assert written.GetSize() == peer.GetSize()
    np.testing.assert_allclose(written.GetOrigin(), peer.GetOrigin(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(peer) > 0)


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, 0, -1),
     (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, -0.6, 0.8, 0), (0.6, 0, 0.8, 0, 1, 0)],
)  # fmt: skip
def test_slices_of_any_orientation_lie_where_simpleitk_has_them(images, folder, orientation):
    normal = np.cross(orientation[:3], orientation[3:])
    for index, image in enumerate(images):
        image.ImageOrientationPatient = list(orientation)
        image.ImagePositionPatient = list(np.round((10, -20, 30) + 2.5 * index * normal, 6))
        image.PixelSpacing = [0.7, 0.9]
    volume = read_series(save(folder, images))
    check_as_simpleitk(volume, folder)


@pytest.mark.parametrize("name", ["{:03d}", "{:03d}.DCM", "IM{:d}.ima", "deep/er/{:d}.dcm"])
def test_names_and_depth_of_files_do_not_matter(images, folder, name):
    (folder / "deep" / "er").mkdir(parents=True)
    order = np.random.default_rng(0).permutation(len(images))
    volume = read_series(save(folder, [images[index] for index in order], name))
    stored = np.stack([image.pixel_array for image in images]).astype(int) - 1024
    np.testing.assert_array_equal(in_file_axes(volume).transpose(2, 1, 0), stored)
    assert volume.notes == ()


def test_links_are_followed_and_each_file_is_read_once(images, folder, tmp_path):
    real = save(tmp_path / "elsewhere", images)
    folder.mkdir()
    (folder / "series").symlink_to(real)
    (folder / "again").symlink_to(real)
    (real / "round").symlink_to(folder)
    for file in list(real.glob("*.dcm")):
        (folder / file.name).symlink_to(file)
    (folder / "itself.dcm").symlink_to(folder / "itself.dcm")
    volume = read_series(folder)
    assert volume.voxels.shape == (8, 40, 32)
    assert volume.notes == ("passed over (not DICOM): itself.dcm",)


def test_each_slice_has_its_own_slope_and_intercept(images, folder):
    for index, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = 1 + index % 3, -1024 + index
    volume = read_series(save(folder, images))
    check_as_simpleitk(volume, folder)
    assert volume.voxels.dtype == np.int16


def test_a_slope_that_is_not_whole_gives_fractions_of_hu(images, folder):
    for image in images:
        image.RescaleSlope = 0.37
    volume = read_series(save(folder, images))
    assert volume.voxels.dtype == np.float32
    stored = images[0].pixel_array
    assert_near(volume.voxels[0], stored * 0.37 - 1024, 1e-6)


def test_values_without_a_rescale_are_said_to_be_taken_as_they_are(images, folder):
    for image in images:
        image.PixelData = (image.pixel_array - 1024).astype(np.int16).tobytes()
        image.PixelRepresentation = 1
        del image.RescaleSlope, image.RescaleIntercept
    volume = read_series(save(folder, images))
    np.testing.assert_array_equal(volume.voxels[0], images[0].pixel_array)
    (note,) = volume.notes
    assert note == "without RescaleSlope and RescaleIntercept: stored values are taken as they are"


def test_one_slice_without_a_rescale_is_named(images, folder):
    del images[3].RescaleIntercept
    with pytest.raises(UserError, match=r"003\.dcm: has no RescaleIntercept, other slices have"):
        read_series(save(folder, images))


def test_a_slope_of_nothing_is_refused(images, folder):
    images[3].RescaleSlope = 0
    with pytest.raises(UserError, match=r"003\.dcm: .*RescaleSlope"):
        read_series(save(folder, images))


def scout(images):
    """An image across the others, which says that it is a localizer."""
    image = copy.deepcopy(images[0])
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return image


def unsaid(image):
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return image


def upright(image):
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    return image


@pytest.mark.parametrize("same_series", [True, False])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda image: image, "localizer"),
        (upright, "localizer"),
        (unsaid, "no volume, a single image"),
    ],
)
def test_a_localizer_does_not_block_a_series(images, folder, change, same_series, why):
    (other,) = of_a_new_series(
        [change(scout(images))], images[0].SeriesInstanceUID if same_series else None
    )
    volume = read_series(save(folder, [*images[:3], other, *images[3:]]))
    assert volume.notes == (f"passed over ({why}): 003.dcm",)
    assert volume.voxels.shape == (8, 40, 32)


def test_series_that_are_no_volume_do_not_block_the_one_that_is(images, folder):
    single, watched, report = of_a_new_series(images[:1]), *map(of_a_new_series, 2 * [images[:3]])
    for image in watched:  # a place that is scanned until the contrast arrives
        image.ImagePositionPatient = images[4].ImagePositionPatient
    for image in report:
        del image.ImagePositionPatient, image.ImageOrientationPatient
    save(folder / "a", images)
    save(folder / "b", [*single, *watched, *report])
    volume = read_series(folder)
    assert volume.voxels.shape == (8, 40, 32)
    assert volume.notes == (
        "passed over (no volume, a single image): b/000.dcm",
        "passed over (no volume, images of one place): b/001.dcm, b/002.dcm, b/003.dcm",
        "passed over (no volume, images without ImagePositionPatient or ImageOrientationPatient): "
        "b/004.dcm, b/005.dcm, b/006.dcm",
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file that cannot be read")
def test_a_file_that_the_system_cannot_read_is_named(images, folder):
    (save(folder, images) / "unreadable.dcm").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"unreadable\.dcm: cannot be read \(Input/output error\)"):
        read_series(folder)


def test_what_is_no_ct_is_passed_over_by_name(images, folder):
    save(folder, images)
    (folder / "notes.txt").write_text("x")
    (folder / "._000.dcm").write_bytes(bytes(300))
    (folder / "empty.dcm").touch()
    (folder / "gone.dcm").symlink_to(folder / "nowhere.dcm")
    shutil.copy(ROOT / "tests" / "files" / "thorax_crop_1p5mm.nii.gz", folder / "mask.nii.gz")
    magnetic, coloured = of_a_new_series(images[:1]), of_a_new_series(images[:1])
    magnetic[0].SOPClassUID = magnetic[0].file_meta.MediaStorageSOPClassUID = MRImageStorage
    coloured[0].SamplesPerPixel = 3
    save(folder / "more", [*magnetic, *coloured])
    assert read_series(folder).notes == (
        "passed over (not DICOM): ._000.dcm, empty.dcm, gone.dcm and 2 more",
        "passed over (MR Image Storage, not CT): more/000.dcm",
        "passed over (in colour): more/001.dcm",
    )


def test_rtstruct_siblings_of_a_series_are_passed_over(tmp_path):
    write_raw_dataset("nsclc_effusion", tmp_path / "raw", 2, seed=0)
    patient = next((tmp_path / "raw" / "NSCLC-Radiomics").iterdir())
    (slices,), passed_over = find_series(patient)
    assert len(slices) == read_volume(patient).voxels.shape[0]
    (line,) = passed_over
    assert line.startswith("passed over (RT Structure Set Storage, not CT): ")


def test_mr_is_refused_as_mr(images, folder):
    for image in images:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    with pytest.raises(
        UserError, match=r"no CT volume in it; .*MR Image Storage, not CT.*000\.dcm"
    ):
        read_series(save(folder, images))


def test_a_single_slice_is_no_volume(images, folder):
    with pytest.raises(UserError, match=r"no CT volume in it; .*a single image\): 000\.dcm"):
        read_series(save(folder, images[:1]))


def test_what_is_written_against_the_rules_and_not_needed_is_no_warning(images, folder, caplog):
    of_66_letters = "1.2.3" + ".4" * 30 + "5"
    for image in images:
        image.SeriesInstanceUID = of_66_letters
        image.PatientAge = "about forty"
    save(folder, images)
    caplog.clear()  # it warned here too
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_series(folder).voxels.shape == (8, 40, 32)
    assert caplog.text == ""


def test_two_volumes_in_one_folder_are_refused_with_the_files_of_both(images, folder):
    save(folder, images)
    save(folder, of_a_new_series(images[:4]), start=8)
    with pytest.raises(
        UserError,
        match=r"2 CT volumes \(8 slices, 000\.dcm, .*; 4 slices, 008\.dcm.*\); move the files of",
    ):
        read_series(folder)


@pytest.mark.parametrize(
    ("places", "mend"),
    [
        (("a", "b"), "give the folder of one"),
        ((".", "b"), "move the files of one to a folder of its own"),
    ],
)
def test_of_two_volumes_in_two_folders_one_can_be_given_where_that_helps(
    images, folder, places, mend
):
    for place, of_one in zip(places, (images, of_a_new_series(images)), strict=True):
        save(folder / place, of_one)
    with pytest.raises(UserError, match=mend):
        read_series(folder)
    assert read_series(folder / "b").voxels.shape == (8, 40, 32)


def test_two_stacks_of_one_series_are_two_volumes(images, folder):
    across = of_a_new_series(images, images[0].SeriesInstanceUID)
    for index, image in enumerate(across):
        image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        image.ImagePositionPatient = [0, index, 0]
    with pytest.raises(UserError, match="2 CT volumes"):
        read_series(save(folder, [*images, *across]))


def test_rounded_positions_are_one_series_and_said(images, folder):
    for index, image in enumerate(images):
        image.ImagePositionPatient = [-100, -100, f"{-100 + 0.625 * index:.1f}"]
    volume = read_series(save(folder, images))
    assert volume.spacing_mm[0] == pytest.approx(0.625, abs=0.01)
    (note,) = volume.notes
    assert note.startswith("slice positions up to 0.039 mm off even ones")
    check_as_simpleitk(volume, folder, atol=0.1)


def test_a_missing_slice_is_refused_and_its_neighbours_named(images, folder):
    with pytest.raises(
        UserError, match=r"5\.00 mm between 003\.dcm and 004\.dcm.*a slice is missing"
    ):
        read_series(save(folder, images[:4] + images[5:]))


def test_a_doubled_slice_is_refused_and_both_files_named(images, folder):
    images += of_a_new_series(images[2:3], images[0].SeriesInstanceUID)
    with pytest.raises(UserError, match=r"002\.dcm and 008\.dcm lie at the same"):
        read_series(save(folder, images))


def test_a_tilted_gantry_is_refused(images, folder):
    for image in images:
        image.ImageOrientationPatient = [1, 0, 0, 0, np.cos(0.2), np.sin(0.2)]
    with pytest.raises(UserError, match=r"tilted by 11\.5 degrees"):
        read_series(save(folder, images))


def test_a_slice_of_another_size_is_named(images, folder):
    images[2].PixelData = images[2].pixel_array[:20, :20].tobytes()
    images[2].Rows = images[2].Columns = 20
    with pytest.raises(UserError, match=r"002\.dcm: its matrix .* is 20 20, and 40 32"):
        read_series(save(folder, images))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, r"003\.dcm: a slice without ImagePositionPatient"),
        ([1, 2], r"003\.dcm: its ImagePositionPatient is not 3 numbers"),
    ],
)
def test_a_slice_without_a_position_is_named(images, folder, value, said):
    images[3].ImagePositionPatient = value
    with pytest.raises(UserError, match=said):
        read_series(save(folder, images))


def test_a_series_without_positions_is_refused_as_such(images, folder):
    for image in images:
        del image.ImagePositionPatient
    with pytest.raises(UserError, match="images without ImagePositionPatient"):
        read_series(save(folder, images))


@pytest.mark.parametrize("keep_meta", [True, False])
def test_files_without_a_preamble_are_read(images, folder, keep_meta):
    expected = read_series(save(folder, images)).voxels
    for file in folder.iterdir():
        content = io.BytesIO()
        if keep_meta:
            content.write(file.read_bytes()[132:])
        else:
            pydicom.dcmwrite(content, bare(file), implicit_vr=True, little_endian=True)
        file.write_bytes(content.getvalue())
    volume = read_series(folder)
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.notes == ()


def bare(file):
    """A file's elements without what stands before them."""
    image = pydicom.dcmread(file)
    return pydicom.Dataset({element.tag: element for element in image})


def test_a_truncated_slice_is_refused_by_name(folder):
    folder.mkdir()
    for name in ("cut.dcm", "again.dcm"):
        shutil.copy(ROOT / "tests" / "files" / "truncated_slice.dcm", folder / name)
    image = pydicom.dcmread(folder / "again.dcm", stop_before_pixels=False)
    image.ImagePositionPatient[2] += 2.5
    image.save_as(folder / "again.dcm")
    with pytest.raises(UserError, match=r"(cut|again)\.dcm: damaged"):
        read_series(folder)


@pytest.fixture
def multi_frame(images):
    """The slices in one file, in another order."""
    for index, image in enumerate(images):
        image.InstanceNumber, image.Laterality = index + 1, ""
    order = [3, 1, 0, 2, 7, 5, 6, 4]
    return highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [images[index] for index in order], generate_uid(), 1, generate_uid(), 1
    )


@pytest.mark.parametrize("kind", [None, EnhancedCTImageStorage])
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_multi_frame_ct_reads_as_its_slices_and_as_highdicom_reads_it(
    images, multi_frame, folder, tmp_path, kind, syntax
):
    if kind:
        multi_frame.SOPClassUID = multi_frame.file_meta.MediaStorageSOPClassUID = kind
    expected = read_series(save(tmp_path / "slices", images))
    folder.mkdir()
    multi_frame.save_as(folder / "a.dcm")
    peer = highdicom.imread(folder / "a.dcm").get_volume().to_patient_orientation("HPL")
    if syntax:
        packed = pydicom.dcmread(folder / "a.dcm")
        packed.compress(syntax)
        packed.save_as(folder / "a.dcm")
    volume = read_series(folder)
    assert volume.notes == ()
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_array_equal(volume.voxels, peer.array)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(volume.affine, LPS @ peer.affine, atol=1e-9)


def test_frames_have_their_own_slope_and_localizers_among_them_are_left_out(multi_frame, folder):
    groups = multi_frame.PerFrameFunctionalGroupsSequence
    for index, frame in enumerate(groups):
        scale = pydicom.Dataset()
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1000 - index, "HU"
        frame.PixelValueTransformationSequence = [scale]
    (position,) = groups[0].PlanePositionSequence
    lowest = min(groups, key=lambda frame: frame.PlanePositionSequence[0].ImagePositionPatient[2])
    lowest.CTImageFrameTypeSequence = [pydicom.Dataset()]
    lowest.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    folder.mkdir()
    multi_frame.save_as(folder / "a.dcm")
    volume = read_series(folder)
    assert volume.voxels.shape == (7, 40, 32)
    assert volume.notes == ("passed over (localizer): a.dcm",)
    place = round((position.ImagePositionPatient[2] - volume.affine[2, 3]) / 2.5)
    stored = multi_frame.pixel_array[0].astype(int)
    np.testing.assert_array_equal(volume.voxels[place], stored - 1000)


def test_frames_that_are_doubled_are_named_by_their_number(multi_frame, folder):
    groups = multi_frame.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[4].PlanePositionSequence
    folder.mkdir()
    multi_frame.save_as(folder / "a.dcm")
    with pytest.raises(UserError, match=r"a\[2\]\.dcm and a\[5\]\.dcm lie at the same position"):
        read_series(folder)


def test_frames_of_a_plain_slice_are_not_read_as_one(images, folder):
    images[2].NumberOfFrames = 2
    with pytest.raises(UserError, match=r"002\.dcm: 2 frames, and positions of 0"):
        read_series(save(folder, images))


def gdcm_writes(folder, images, compressor):
    """The slices as GDCM compresses them, which leaves a process in the locale C."""
    before = locale.setlocale(locale.LC_ALL)
    plain = save(folder.with_name("plain"), images)
    folder.mkdir()
    kept = ("0008|0016", "0008|0018", "0008|0060", "0020|000d", "0020|000e", "0020|0032")
    kept += ("0020|0037", "0020|0052", "0028|1052", "0028|1053")
    for file in plain.iterdir():
        reader, writer = sitk.ImageFileReader(), sitk.ImageFileWriter()
        reader.SetFileName(file)
        image = sitk.Cast(reader.Execute(), sitk.sitkInt16)
        for key in kept:
            image.SetMetaData(key, reader.GetMetaData(key))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(folder / file.name)
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return folder


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian, JPEGLSLossless])
def test_lossless_compression_that_needs_no_extra_changes_nothing(images, folder, tmp_path, syntax):
    expected = read_series(save(tmp_path / "plain", images)).voxels
    for image in images:
        if syntax == DeflatedExplicitVRLittleEndian:
            image.file_meta.TransferSyntaxUID = syntax
        else:
            image.compress(syntax)
    np.testing.assert_array_equal(read_series(save(folder, images)).voxels, expected)


@pytest.mark.parametrize(
    ("compressor", "decoder"),
    [("JPEG", "gdcm"), ("JPEG2000", "gdcm"), ("JPEG2000", "pylibjpeg"), ("JPEG2000", "PIL")],
)
def test_jpeg_is_read_without_a_change(images, folder, compressor, decoder):
    installed(decoder, extra="dicom")
    save(folder.with_name("expected"), images)
    expected = read_series(folder.with_name("expected")).voxels
    gdcm_writes(folder, images, compressor)
    printed = reads_without({"gdcm", "pylibjpeg", "PIL"} - {decoder}, folder)
    assert printed == f"{expected.shape} {int(expected.astype(np.int64).sum())}"
    np.testing.assert_array_equal(read_series(folder).voxels, expected)


READ = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: cannot be imported
from pathlib import Path
from covid_jax.data.dicom import read_series
from covid_jax.errors import UserError
for folder in sys.argv[2:]:
    try:
        voxels = read_series(Path(folder)).voxels
        print(voxels.shape, voxels.sum(dtype=int))
    except UserError as error:
        print(error)
"""


def reads_without(libraries, *folders):
    """What reading the folders gives on a machine without some libraries, a line for each."""
    finished = subprocess.run(
        [sys.executable, "-c", READ, ",".join(libraries), *map(str, folders)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=True,
    )
    return finished.stdout.strip()


def test_what_no_installed_decoder_reads_names_the_install_that_mends_it(images, tmp_path):
    jpeg = gdcm_writes(tmp_path / "jpeg", images, "JPEG")
    shutil.rmtree(tmp_path / "plain")
    jpeg_2000 = gdcm_writes(tmp_path / "jpeg2000", images, "JPEG2000")
    deep = save(tmp_path / "deep", pretended(images, JPEGExtended12Bit))
    film = save(tmp_path / "film", pretended(images, MPEG2MPML))
    lines = reads_without({"gdcm", "pylibjpeg", "PIL"}, jpeg, jpeg_2000, deep, film).splitlines()
    assert len(lines) == 4
    for line, folder in zip(lines, (jpeg, jpeg_2000, deep, film), strict=True):
        assert line.startswith(f"{folder}/00")
    for line, words in zip(lines[:2], ("JPEG Lossless", "JPEG 2000"), strict=True):
        assert f".dcm: is compressed ({words}" in line
        assert line.endswith("; pip install 'covid-jax[dicom]'")
    assert lines[2].endswith("; pip install pylibjpeg-libjpeg pylibjpeg")
    assert "save the series uncompressed" in lines[3]


def pretended(images, syntax):
    """The slices with a compression that nothing here writes."""
    images = copy.deepcopy(images)
    for image in images:
        image.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        image["PixelData"].VR = "OB"
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = syntax
        image.BitsStored, image.HighBit = 12, 11
    return images


def test_bytes_that_a_decoder_cannot_read_are_damage(images, folder):
    with pytest.raises(UserError, match=r"000\.dcm: damaged"):
        read_series(save(folder, pretended(images, JPEGLSLossless)))


def test_a_deflated_file_that_ends_early_is_refused(images, folder):
    for image in images:
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(folder, images)
    (folder / "003.dcm").write_bytes((folder / "003.dcm").read_bytes()[:-300])
    with pytest.raises(UserError, match=r"003\.dcm: damaged"):
        read_series(folder)


def test_the_extra_is_part_of_what_tests_are_run_with():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "python-gdcm" in extras["dicom"]
    assert any("dicom" in package for package in extras["dev"])
