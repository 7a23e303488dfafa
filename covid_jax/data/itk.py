"""NRRD and MHA, by SimpleITK."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from covid_jax.data.geometry import (
    LPS,
    Volume,
    from_file_axes,
    one_channel,
    one_line,
    three_dimensional,
)
from covid_jax.errors import UserError


def read_itk(path: Path) -> Volume:
    """Reads NRRD or MHA. Raises as read_volume."""
    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise UserError(
            f"{path}: damaged or not {path.suffix} ({one_line(error)}); fetch or export it again"
        ) from error
    array = sitk.GetArrayFromImage(image).transpose()
    voxels = three_dimensional(path, array)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return replace(from_file_axes(voxels, LPS @ affine), notes=one_channel(array))


def write_itk(path: Path, voxels: np.ndarray, file_affine: np.ndarray) -> None:
    """Writes an array (i, j, k) with its affine to RAS+ mm."""
    affine = LPS @ file_affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, path)
