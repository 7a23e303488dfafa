"""Draws the pictures of these pages that no run is needed for: python docs/draw.py."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from covid_jax.config import STRATEGY_NAMES, load_config_file
from covid_jax.data import augment
from covid_jax.data.labels import read_label
from covid_jax.data.phantom import make_phantom
from covid_jax.data.preprocess import read_scan
from covid_jax.reporting.figures import LUNG_WINDOW_HU
from covid_jax.reporting.network import draw_networks

ROOT = Path(__file__).resolve().parent.parent
PATCH = (5, 160, 160)
LIDC = ROOT / "examples/lidc/LIDC-IDRI-0001"
Pair = tuple[Array, Array]


def lesion_patch() -> Pair:
    """Image (D', H', W', 1), about as a network sees it, and label, cut around a real tumour."""
    scan = read_scan(LIDC)
    label = read_label(ROOT / "tests/files/LIDC-IDRI-0001_nodule.nii.gz", scan, 2).voxels
    low, high = LUNG_WINDOW_HU
    image = (np.clip(scan.voxels, low, high) - low) / (high - low) * 2 - 1
    size = augment.input_size(PATCH)
    centre = np.argwhere(label > 0).mean(0).astype(int)
    window = tuple(slice(c - n // 2, c - n // 2 + n) for c, n in zip(centre, size, strict=True))
    return jnp.asarray(image[window], jnp.float32)[..., None], jnp.asarray(label[window], jnp.int32)


def draw_augmentation() -> Figure:
    """Each transform alone, as strong as it gets, and then draws of all of them as in training."""
    image, label = lesion_patch()
    plain = augment.middle(image, PATCH), augment.middle(label, PATCH)
    key = jax.random.key(0)

    def turned(angle: float, scale: float) -> Pair:
        matrix = augment.rotation_matrix(jnp.array([angle, 0, 0])) * jnp.array([1, scale, scale])
        return augment.warp(image, label, matrix, PATCH, planar=True)

    def changed(transform: Callable[[Array], Array]) -> Pair:
        return transform(plain[0]), plain[1]

    drawn = jax.jit(
        lambda key: augment.augment(key, image[None], label[None], patch_size=PATCH, at_once=False)
    )
    panels: dict[str, Pair] = {
        "the patch": plain,
        "rotated by 60°": turned(np.pi / 3, 1.0),
        "scaled by 0.7": turned(0.0, 0.7),
        "scaled by 1.4": turned(0.0, 1.4),
        "noise 0.1": changed(lambda x: x + 0.1 * jax.random.normal(key, x.shape)),
        "blur 1": changed(lambda x: augment.blur(x, jnp.ones(3))),
        "brightness 0.75": changed(lambda x: 0.75 * x),
        "contrast 1.25": changed(lambda x: augment.contrast(x, jnp.float32(1.25))),
        "resolution 0.5": changed(lambda x: augment.low_resolution(x, jnp.float32(0.5), (1, 2))),
        "inverted gamma 1.5": changed(lambda x: -augment.gamma_correction(-x, jnp.float32(1.5))),
        "gamma 0.7": changed(lambda x: augment.gamma_correction(x, jnp.float32(0.7))),
        "gamma 1.5": changed(lambda x: augment.gamma_correction(x, jnp.float32(1.5))),
    }
    for seed in range(6):
        x, y = drawn(jax.random.key(seed))
        panels[f"as drawn, key {seed}"] = x[0], y[0]
    figure, grid = plt.subplots(3, 6, figsize=(12, 6.6), layout="constrained")
    for axes, (name, (x, y)) in zip(grid.flat, panels.items(), strict=True):
        middle = PATCH[0] // 2
        axes.imshow(x[middle, ..., 0], cmap="gray", vmin=-1, vmax=1)
        axes.contour(y[middle], [0.5], colors="#35b779", linewidths=1)
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    figure.suptitle("LIDC-IDRI-0001, a solid tumour (outlined): real CT, lung window", fontsize=10)
    return figure


def draw_phantoms() -> Figure:
    """A slice of a real scan, and of a phantom with each kind of lesion."""
    scan = read_scan(LIDC)
    panels: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        "real: LIDC-IDRI-0001": (scan.voxels[8], None)
    }
    drawn = {"covid19": 2, "msd_lung": 5, "structseg_gtv": 2, "nsclc_effusion": 3}
    for kind, index in drawn.items():
        image, label = make_phantom(kind, 0, index, spacing_mm=(5.0, 0.8, 0.8))
        largest = label.voxels.sum((1, 2)).argmax()
        panels[f"SYNTHETIC: {kind}"] = image.voxels[largest], label.voxels[largest]
    image, _ = make_phantom("covid19", 0, 1, spacing_mm=(5.0, 0.8, 0.8))
    panels["SYNTHETIC: at the roots of the lungs"] = image.voxels[image.voxels.shape[0] // 2], None
    figure, grid = plt.subplots(2, 3, figsize=(12, 7.4), layout="constrained")
    for axes, (name, (voxels, label)) in zip(grid.flat, panels.items(), strict=True):
        low, high = LUNG_WINDOW_HU
        axes.imshow(voxels, cmap="gray", vmin=low, vmax=high)
        if label is not None:
            axes.contour(label, [0.5], colors="#35b779", linewidths=1)
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    figure.suptitle("A real CT and phantoms, lung window; lesions outlined", fontsize=10)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "covid_jax"  # the same file each time
    configs = [load_config_file(f"{ROOT}/configs/paper.py:{name}") for name in STRATEGY_NAMES]
    figure = draw_networks(configs, STRATEGY_NAMES)
    figure.savefig(ROOT / "docs" / "strategies.svg", metadata={"Date": None})
    draw_augmentation().savefig(ROOT / "docs" / "augmentation.png", dpi=90)
    draw_phantoms().savefig(ROOT / "docs" / "phantoms.png", dpi=80)
