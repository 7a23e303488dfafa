"""Reading and writing scans: geometry, formats, and damaged files."""

import gzip
import itertools
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from covid_jax.data.geometry import from_file_axes, from_spacing, in_file_axes
from covid_jax.data.scans import scans_in
from covid_jax.data.volume import files_of, read_volume, write_volume
from covid_jax.errors import UserError
from tests.networks import assert_near


def test_axes_point_to_head_back_and_left_whatever_the_file_says(thorax):
    volume = read_volume(thorax)
    assert nib.aff2axcodes(volume.affine) == ("S", "P", "L")
    np.testing.assert_allclose(volume.spacing_mm, 1.5)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((-1, 1), repeat=3)))
def test_every_orientation_keeps_each_voxel_where_it_lies(axes, signs):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 99, (3, 4, 5))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * np.array([2.0, 0.7, 0.9])
    affine[:3, 3] = (5, -6, 7)
    volume = from_file_axes(voxels, affine)
    np.testing.assert_array_equal(in_file_axes(volume), voxels)
    for index in itertools.product(*(range(n) for n in volume.voxels.shape)):
        world = volume.affine @ (*index, 1)
        there = np.rint(np.linalg.inv(affine) @ world).astype(int)
        assert volume.voxels[index] == voxels[tuple(there[:3])]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_written_volume_reads_back_on_the_same_grid(thorax, tmp_path, suffix):
    volume = read_volume(thorax)
    write_volume(tmp_path / f"copy{suffix}", volume)
    copy = read_volume(tmp_path / f"copy{suffix}")
    np.testing.assert_array_equal(copy.voxels, volume.voxels)
    np.testing.assert_allclose(copy.affine, volume.affine, atol=1e-4)


def test_a_nifti_mask_has_shape_and_affine_of_its_scan_exactly(thorax, tmp_path):
    scan = read_volume(thorax)
    write_volume(tmp_path / "mask.nii.gz", replace(scan, voxels=(scan.voxels > 0).astype(np.uint8)))
    ours, theirs = nib.load(tmp_path / "mask.nii.gz"), nib.load(thorax)
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj) > 0)
    assert ours.get_data_dtype() == np.uint8


def test_spacing_alone_gives_a_volume_in_the_order_of_its_axes():
    volume = from_spacing(np.zeros((2, 3, 4)), (5, 1, 2))
    assert volume.voxels.shape == (2, 3, 4)
    np.testing.assert_allclose(volume.spacing_mm, (5, 1, 2))


def test_a_truncated_nifti_is_refused_by_name(thorax, tmp_path):
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(thorax.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut\.nii\.gz: damaged"):
        read_volume(path)


def test_something_else_called_nifti_is_refused(tmp_path):
    path = tmp_path / "text.nii.gz"
    path.write_bytes(gzip.compress(b"not an image" * 100))
    with pytest.raises(UserError, match=r"text\.nii\.gz"):
        read_volume(path)


def test_a_4d_image_is_refused_and_one_of_one_channel_is_not(tmp_path):
    nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(UserError, match="three-dimensional"):
        read_volume(tmp_path / "a.nii")
    nib.Nifti1Image(np.zeros((4, 5, 6, 1), np.int16), np.eye(4)).to_filename(tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").voxels.size == 120


@pytest.mark.parametrize("name", ["nowhere.nii.gz", "nowhere"])
def test_a_path_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        read_volume(tmp_path / name)


def test_an_empty_folder_holds_no_scan(tmp_path):
    with pytest.raises(UserError, match="no scan in it"):
        scans_in(tmp_path)


def test_scans_are_named_by_file_or_by_series_folder(lidc_series, thorax):
    assert list(scans_in(lidc_series).paths) == ["LIDC-IDRI-0001"]
    assert list(scans_in(lidc_series.parent).paths) == ["LIDC-IDRI-0001"]
    assert list(scans_in(thorax).paths) == ["thorax_crop_1p5mm"]


def test_a_write_that_fails_leaves_no_file(thorax, tmp_path):
    with pytest.raises(UserError):
        write_volume(tmp_path / "mask.txt", read_volume(thorax))
    assert not list(tmp_path.iterdir())


VOXELS = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 12
AFFINE = np.diag([-3.0, -2.0, 5.0, 1.0])


def nifti(path, affine=AFFINE, codes=(1, 1), units="mm", voxels=VOXELS, **fields):
    """Writes a NIfTI file whose header's fields then are set to anything."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units(units)
    content = bytearray(image.to_bytes())
    header = np.frombuffer(content, nib.nifti1.header_dtype, 1)[0]
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(content)
    return path


def nrrd(path, *lines):
    """Writes a NRRD file of 2 x 3 x 4 voxels with these lines in its header."""
    header = ("NRRD0004", "type: short", "dimension: 3", "sizes: 2 3 4", "endian: little", *lines)
    text = "\n".join((*header, "encoding: raw", "", ""))
    path.write_bytes(text.encode() + VOXELS.tobytes(order="F"))
    return path


def mha(path, **fields):
    """Writes a MHA file whose header's fields are set to anything; None leaves one out."""
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), path)
    head, last, data = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    lines = dict(line.split(" = ") for line in head.decode().splitlines()) | fields
    kept = (f"{name} = {value}\n" for name, value in lines.items() if value is not None)
    path.write_bytes("".join(kept).encode() + last + data)
    return path


@pytest.mark.parametrize(("units", "size"), [("micron", 1e-3), ("meter", 1e3)])
def test_a_scan_in_micron_or_metres_is_read_in_mm_and_its_mask_stays_so(tmp_path, units, size):
    scan = nifti(tmp_path / "scan.nii", np.diag([*AFFINE.diagonal()[:3] / size, 1]), units=units)
    volume = read_volume(scan)
    np.testing.assert_allclose(volume.spacing_mm, (5, 2, 3))
    assert "read in mm" in volume.notes[0]
    write_volume(tmp_path / "mask.nii", volume)
    assert nib.load(tmp_path / "mask.nii").header.get_xyzt_units()[0] == units


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("units", ["unknown", "mm"])
def test_voxels_that_no_scan_has_are_refused_as_of_another_unit(tmp_path, factor, units):
    scan = nifti(tmp_path / "scan.nii", np.diag([*AFFINE.diagonal()[:3] * factor, 1]), units=units)
    with pytest.raises(UserError, match="mm apart, which is no scan of a patient; set the unit"):
        read_volume(scan)


def test_units_that_nifti_does_not_know_are_mm_as_for_itk(tmp_path):
    scan = nifti(tmp_path / "scan.nii", xyzt_units=5)
    np.testing.assert_allclose(read_volume(scan).spacing_mm, (5, 2, 3))


def test_a_header_without_form_codes_is_told_and_its_mask_has_none_either(tmp_path):
    volume = read_volume(nifti(tmp_path / "scan.nii", codes=(0, 0)))
    assert "no form code in its header: its axes are taken to point left, front" in volume.notes[0]
    assert nib.aff2axcodes(volume.file_affine) == ("L", "A", "S")
    write_volume(tmp_path / "mask.nii", volume)
    header = nib.load(tmp_path / "mask.nii").header
    assert (header["qform_code"], header["sform_code"]) == (0, 0)


SHEAR = AFFINE.copy()
SHEAR[1, 2] = 5 * np.tan(np.radians(15))


@pytest.mark.parametrize("codes", [(0, 1), (1, 1)])
def test_a_sheared_sform_is_refused_whatever_the_qform_says(tmp_path, codes):
    with pytest.raises(UserError, match=r"sheared by 15 degrees, .*dcm2niix"):
        read_volume(nifti(tmp_path / "scan.nii", SHEAR, codes))


def test_sheared_directions_are_refused_in_nrrd_and_mha_too(tmp_path):
    lines = "space: LPS", "space directions: (3,0,0) (0,2,0) (0,1.34,5)", "space origin: (0,0,0)"
    for scan in (
        nrrd(tmp_path / "scan.nrrd", *lines),
        mha(tmp_path / "scan.mha", TransformMatrix="1 0 0 0 1 0 0 0.3 1"),
    ):
        with pytest.raises(UserError, match=r"sheared by 1[57] degrees"):
            read_volume(scan)


def test_a_spacing_that_contradicts_the_sform_is_refused(tmp_path):
    scan = nifti(tmp_path / "scan.nii", codes=(0, 1), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    with pytest.raises(UserError, match=r"spacing \(pixdim\) and its sform lie 1[0-9] mm apart"):
        read_volume(scan)


@pytest.mark.parametrize("size", [0, -3, np.nan, np.inf])
@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_spacing_that_is_none_is_refused(tmp_path, size, codes):
    scan = nifti(tmp_path / "scan.nii", codes=codes, pixdim=[1, size, 2, 5, 0, 0, 0, 0])
    with pytest.raises(UserError, match=r"its spacing \(pixdim\) is [0-9a-z-]+ x 2 x 5"):
        read_volume(scan)


@pytest.mark.parametrize("field", ["srow_x", "qoffset_y", "quatern_b"])
def test_a_form_that_is_not_finite_is_refused(tmp_path, field):
    scan = nifti(tmp_path / "scan.nii", codes=(1, 1), **{field: np.nan})
    with pytest.raises(UserError, match=r"scan\.nii: "):
        read_volume(scan)


def test_a_qform_that_a_quaternion_cannot_say_better_is_no_contradiction(tmp_path):
    turned = AFFINE.copy()
    turned[:2, :2] = [[-1, 1e-3], [-1e-3, -1]]  # 0.4 mm at the other end
    scan = nifti(tmp_path / "scan.nii", turned, voxels=np.zeros((400, 2, 2), np.int16))
    apart = nib.load(scan).get_qform() - nib.load(scan).get_sform()
    assert np.abs(apart).max() > 5e-4
    np.testing.assert_allclose(read_volume(scan).file_affine, turned, atol=1e-6)


def test_a_form_code_that_nifti_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match="its sform_code is 9"):
        read_volume(nifti(tmp_path / "scan.nii", sform_code=9))


def test_a_handedness_of_zero_is_one_for_all_readers(tmp_path):
    volume = read_volume(nifti(tmp_path / "scan.nii", pixdim=[0, 3, 2, 5, 0, 0, 0, 0]))
    write_volume(tmp_path / "mask.nii", volume)
    for path in (tmp_path / "scan.nii", tmp_path / "mask.nii"):
        np.testing.assert_array_equal(read_volume(path).affine, volume.affine)


def test_a_pair_of_header_and_voxels_is_refused_with_the_mend(tmp_path):
    nib.Nifti1Pair(VOXELS, AFFINE).to_filename(tmp_path / "scan.img")
    (tmp_path / "scan.nii").write_bytes((tmp_path / "scan.hdr").read_bytes())
    for name in ("scan.img", "scan.hdr", "scan.nii"):
        with pytest.raises(UserError, match=r"of a pair of files; save both as one \.nii\.gz"):
            read_volume(tmp_path / name)


def test_compression_is_seen_in_the_content_whatever_the_name_says(tmp_path):
    content = nifti(tmp_path / "scan.nii").read_bytes()
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    (tmp_path / "plain.nii.gz").write_bytes(content)
    for name in ("packed.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(
            read_volume(tmp_path / name).voxels, read_volume(tmp_path / "scan.nii").voxels
        )


@pytest.mark.parametrize("suffix", [".NII", ".Nii.GZ", ".Nrrd", ".MHA", ".MHD"])
def test_endings_are_read_in_any_case(tmp_path, suffix):
    volume = from_file_axes(VOXELS, AFFINE)
    write_volume(tmp_path / f"scan{suffix.lower()}", volume)
    (tmp_path / f"scan{suffix.lower()}").rename(tmp_path / f"SCAN{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"SCAN{suffix}").voxels, volume.voxels)


@pytest.mark.parametrize("shape", [(2, 3, 4, 1, 1), (2, 3, 4, 1), (2, 3, 1), (1, 1, 1)])
def test_a_mask_has_the_shape_of_its_file_with_all_axes_of_one(tmp_path, shape):
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    volume = read_volume(nifti(tmp_path / "scan.nii", voxels=voxels))
    write_volume(tmp_path / "mask.nii.gz", volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").dataobj, voxels)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((4, 5), "is flat"), ((4, 5, 1, 6), "slices along the third"), ((4, 5, 6, 1, 3), "channel")],
)
def test_what_has_no_three_axes_is_refused_with_its_shape(tmp_path, shape, words):
    scan = nifti(tmp_path / "scan.nii", voxels=np.zeros(shape, np.int16))
    with pytest.raises(UserError, match=words) as refused:
        read_volume(scan)
    assert str(shape) in str(refused.value)


@pytest.mark.parametrize("shape", [(1, 4, 5, 3), (6, 4, 5, 3)])
@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_an_image_of_several_components_is_refused_also_where_it_is_one_slice(
    tmp_path, shape, suffix
):
    image = sitk.GetImageFromArray(np.zeros(shape, np.int16), isVector=True)
    sitk.WriteImage(image, tmp_path / f"scan.{suffix}")
    with pytest.raises(UserError, match="each of its voxels has 3 components"):
        read_volume(tmp_path / f"scan.{suffix}")


def test_colours_and_flat_images_are_refused_and_one_component_is_not(tmp_path):
    nifti(tmp_path / "rgb.nii", voxels=np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(UserError, match="holds colours"):
        read_volume(tmp_path / "rgb.nii")
    sitk.WriteImage(sitk.Image(4, 5, sitk.sitkInt16), tmp_path / "flat.nrrd")
    with pytest.raises(UserError, match="is flat"):
        read_volume(tmp_path / "flat.nrrd")
    one = sitk.GetImageFromArray(np.zeros((4, 5, 6, 1), np.int16), isVector=True)
    sitk.WriteImage(one, tmp_path / "one.nrrd")
    assert read_volume(tmp_path / "one.nrrd").voxels.shape == (4, 5, 6)


def test_a_nrrd_without_a_space_is_told_and_without_a_spacing_refused(tmp_path):
    volume = read_volume(nrrd(tmp_path / "scan.nrrd", "spacings: 3 2 5"))
    assert "no space in its header: its axes are taken to point left, back" in volume.notes[0]
    assert nib.aff2axcodes(volume.file_affine) == ("L", "P", "S")
    with pytest.raises(UserError, match="says no spacing"):
        read_volume(nrrd(tmp_path / "none.nrrd"))
    with pytest.raises(UserError, match="says no spacing"):
        read_volume(mha(tmp_path / "none.mha", ElementSpacing=None))
    units = 'space units: "cm" "cm" "cm"'
    directions = "space directions: (3,0,0) (0,2,0) (0,0,5)"
    with pytest.raises(UserError, match="space units are cm"):
        read_volume(nrrd(tmp_path / "cm.nrrd", "space: LPS", directions, units))


@pytest.mark.parametrize("spacing", ["0 1 1", "-1 1 1", "nan 1 1", "inf 1 1", "1e9 1 1"])
def test_a_spacing_of_mha_that_is_none_is_refused(tmp_path, spacing):
    with pytest.raises(UserError, match=r"scan\.mha: "):
        read_volume(mha(tmp_path / "scan.mha", ElementSpacing=spacing))


@pytest.mark.parametrize("sizes", ["900 900 900", "99999 99999 99999", "2147483647 2 1"])
def test_an_itk_header_that_lies_about_its_size_is_refused_before_it_is_read(tmp_path, sizes):
    scan = nrrd(tmp_path / "scan.nrrd", "spacings: 3 2 5")
    scan.write_bytes(scan.read_bytes().replace(b"sizes: 2 3 4", f"sizes: {sizes}".encode()))
    for path in (scan, mha(tmp_path / "scan.mha", DimSize=sizes)):
        with pytest.raises(UserError, match="more than are in the file"):
            read_volume(path)


@pytest.mark.parametrize("name", ["Müller", "患者", "a b"])
def test_the_voxels_of_a_header_may_have_any_name(tmp_path, name):
    volume = from_file_axes(VOXELS, AFFINE)
    write_volume(tmp_path / f"{name}.mhd", volume)
    np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.mhd").voxels, volume.voxels)
    assert [file.name for file in files_of(tmp_path / f"{name}.mhd")] == [
        f"{name}.mhd",
        f"{name}.raw",
    ]


def test_a_quaternion_that_is_longer_than_1_by_rounding_is_read_as_others_read_it(tmp_path):
    """By its direction: nibabel finds "w2 should be positive" in it, and no place."""
    scan = nifti(tmp_path / "scan.nii")
    image = nib.load(scan)
    header = image.header.copy()
    for name, part in zip("bcd", (0.0, 0.6, 0.8), strict=True):
        header[f"quatern_{name}"] = part * (1 + 4e-7)
    header["qform_code"], header["sform_code"] = 1, 0
    raw = bytearray(scan.read_bytes())
    raw[: len(header.binaryblock)] = header.binaryblock
    scan.write_bytes(raw)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(scan)
    by_direction = read_volume(scan).file_affine
    assert_near(np.linalg.norm(by_direction[:3, :3], axis=0), (3.0, 2.0, 5.0), 1e-5)


def test_a_mhd_without_its_voxels_is_refused_by_their_name(tmp_path):
    write_volume(tmp_path / "scan.mhd", from_file_axes(VOXELS, AFFINE))
    (tmp_path / "scan.raw").unlink()
    with pytest.raises(UserError, match=r"in scan\.raw, which is not beside it"):
        read_volume(tmp_path / "scan.mhd")


def test_slices_by_a_pattern_are_found_wherever_they_lie(tmp_path):
    """Their digests are what prepare and predict know them by."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
    for folder in ("", f"{tmp_path}/"):
        (tmp_path / "scan.mhd").write_text(f"{header}ElementDataFile = {folder}s%02d.raw 1 2 1\n")
        for k in (1, 2):
            (tmp_path / f"s{k:02d}.raw").write_bytes(bytes(4))
        names = [file.name for file in files_of(tmp_path / "scan.mhd")]
        assert names == ["scan.mhd", "s01.raw", "s02.raw"]


def test_a_written_mhd_names_its_voxels_and_is_whole_or_not_there(tmp_path):
    volume = from_file_axes(VOXELS, AFFINE)
    write_volume(tmp_path / "scan.mhd", volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.mhd", "scan.raw"]
    assert "ElementDataFile = scan.raw" in (tmp_path / "scan.mhd").read_text()
    with pytest.raises(TypeError):  # no type of ITK's
        write_volume(tmp_path / "scan.mhd", replace(volume, voxels=VOXELS.astype(np.float16)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.mhd", "scan.raw"]
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.mhd").voxels, volume.voxels)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".mhd"])
def test_a_full_disk_is_one_line_and_leaves_no_volume(small_disk, suffix):
    voxels = np.random.default_rng(0).integers(0, 255, (100, 100, 200), np.uint8)
    with pytest.raises(UserError, match=rf"scan\{suffix}: (the disk is full|cannot be written)"):
        write_volume(small_disk / f"scan{suffix}", from_file_axes(voxels, AFFINE))
    assert list(small_disk.iterdir()) == []


def test_a_mask_of_another_format_has_its_place_in_both_forms(tmp_path):
    write_volume(tmp_path / "scan.mha", from_file_axes(VOXELS, AFFINE))
    write_volume(tmp_path / "mask.nii.gz", read_volume(tmp_path / "scan.mha"))
    image = nib.load(tmp_path / "mask.nii.gz")
    for form, code in (image.get_qform(coded=True), image.get_sform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("axes", ["-1", "0", "65536", "nan", "3\nNDims = -1", "-1\nNDims = 3"])
def test_a_number_of_axes_that_crashes_itk_is_refused_before(tmp_path, axes):
    with pytest.raises(UserError, match="NDims of its header is"):
        read_volume(mha(tmp_path / "scan.mha", NDims=axes))


def test_what_itk_prints_is_what_the_line_says(tmp_path):
    with pytest.raises(UserError, match=r"damaged or not \.mha \(DimSize required and not defined"):
        read_volume(mha(tmp_path / "scan.mha", DimSize=None))


def test_a_file_that_cannot_be_opened_is_not_called_damaged():
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        read_volume("x" * 300 + ".nii")


def test_a_refusal_is_all_that_is_printed(tmp_path, capfd):
    (tmp_path / "text.nii").write_bytes(b"not an image" * 100)
    nifti(tmp_path / "code.nii", datatype=77)
    nifti(tmp_path / "infinite.nii", srow_x=np.inf)
    content = mha(tmp_path / "scan.mha").read_bytes()
    (tmp_path / "cut.mha").write_bytes(content[:-9])
    (tmp_path / "head.mha").write_bytes(content[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("text.nii", "code.nii", "infinite.nii", "cut.mha", "head.mha"):
            with pytest.raises(UserError, match=name):
                read_volume(tmp_path / name)
    assert capfd.readouterr() == ("", "")
