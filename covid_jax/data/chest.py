"""The anatomy of a synthetic chest: what its CT would show, drawn in mm from a generator.

Coordinates are mm from the middle of the cavity: z to the head, y to the back, x to the left.
Tissue is painted over tissue by its share of a voxel, so that borders are as soft as a scanner's.
Airways and vessels are trees that grow from the root of each lung to points all over it, with
Murray's law for their radii.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

FIELD_MM = (216.0, 312.0, 384.0)
_MIDDLE_MM = (0.0, -16.0, 0.0)  # of the cavity in the field: there is a table below
AIR_HU, FAT_HU, MUSCLE_HU, MARROW_HU, BONE_HU = -1000, -100, 55, 180, 650
_MURRAY = 1 / 3  # of a tube's radius over the number of tips that it feeds


@dataclass(frozen=True)
class Grid:
    """The voxels of the field.

    Attributes:
      spacing_mm: between voxels, (D, H, W).
      z, y, x: where they lie, in mm; of shape (D, 1, 1), (1, H, 1) and (1, 1, W).
    """

    spacing_mm: tuple[float, float, float]
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.z.size, self.y.size, self.x.size


@dataclass(frozen=True)
class Chest:
    """One patient, of shape (D, H, W).

    Attributes:
      grid: where the voxels lie.
      hu: of the tissue.
      lungs, airways, vessels: each one's share of a voxel.
    """

    grid: Grid
    hu: np.ndarray
    lungs: np.ndarray
    airways: np.ndarray
    vessels: np.ndarray


@dataclass(frozen=True)
class Tubes:
    """Straight tubes, of n: their ends in mm, (n, 3), and the radius in mm all along each, (n,)."""

    starts: np.ndarray
    ends: np.ndarray
    radii: np.ndarray


def make_grid(spacing_mm: tuple[float, float, float]) -> Grid:
    """The field in voxels of this spacing."""
    axes = []
    for field, middle, spacing in zip(FIELD_MM, _MIDDLE_MM, spacing_mm, strict=True):
        size = round(field / spacing)
        axes.append((np.arange(size) - (size - 1) / 2) * spacing - middle)
    return Grid(spacing_mm, *np.ix_(*axes))


def make_chest(rng: np.random.Generator, grid: Grid) -> Chest:
    """A patient on a table: body, chest wall, bones, mediastinum, lungs, airways and vessels."""
    build = _Build(
        width=rng.uniform(124, 140),
        depth=rng.uniform(86, 100),
        fat=rng.uniform(6, 22),
        muscle=rng.uniform(17, 23),
        blood_hu=rng.choice([40, rng.uniform(120, 220)], p=[0.7, 0.3]),  # with a contrast agent
    )
    narrow = np.sqrt(np.clip(1 - (np.clip(grid.z + 60, 0, None) / 176) ** 3, 0.02, 1))
    wobble = 2.5 * smooth_noise(rng, grid, 25)
    half_axes = build.width * narrow, build.depth * (0.35 + 0.65 * narrow)
    outside = _outside(grid.x, grid.y, *half_axes) + wobble  # mm from the cavity
    heart = _heart(rng, grid)
    lungs, below = _lungs(rng, grid, build, outside, heart)

    hu = _body(rng, grid, build, outside, narrow)
    hu = _paint_belly(rng, grid, hu, below)
    hu = _paint_mediastinum(rng, grid, hu, build, inside(grid, -outside) * (1 - lungs), heart)
    hu = _paint_bones(rng, grid, hu, build, outside)
    hu, airways, vessels = _paint_lungs(rng, grid, hu, build, lungs, wobble)
    return Chest(grid, hu, lungs, airways, vessels)


def inside(grid: Grid, depth_mm: np.ndarray) -> np.ndarray:
    """The share of a voxel that lies inside of a border, by the depth in mm of its middle."""
    return np.clip(depth_mm / grid.spacing_mm[2] + 0.5, 0, 1)


def paint(hu: np.ndarray, share: np.ndarray, tissue_hu: np.ndarray | float) -> np.ndarray:
    """`hu` with `tissue_hu` in this share of each voxel."""
    return hu + share * (tissue_hu - hu)


def smooth_noise(rng: np.random.Generator, grid: Grid, mm: float) -> np.ndarray:
    """Noise (D, H, W) of mean about 0 and deviation 1, smooth over so many mm."""
    white = rng.standard_normal(grid.shape, np.float32)
    sigma = [mm / spacing for spacing in grid.spacing_mm]
    noise = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3)
    return noise / noise.std()


def draw_tubes(grid: Grid, tubes: Tubes) -> np.ndarray:
    """The share of each voxel that lies in one of the tubes."""
    share = np.zeros(grid.shape, np.float32)
    axes = (grid.z.ravel(), grid.y.ravel(), grid.x.ravel())
    voxel = grid.spacing_mm[2]
    for start, end, radius in zip(tubes.starts, tubes.ends, tubes.radii, strict=True):
        low, high = np.minimum(start, end) - radius - voxel, np.maximum(start, end) + radius + voxel
        box = tuple(
            slice(*np.searchsorted(axis, (a, b)))
            for axis, a, b in zip(axes, low, high, strict=True)
        )
        dz, dy, dx = np.ix_(
            *(axis[side] - a for axis, side, a in zip(axes, box, start, strict=True))
        )
        along = end - start
        part = (dz * along[0] + dy * along[1] + dx * along[2]) / max(along @ along, 1e-6)
        part = np.clip(part, 0, 1)
        square = (
            (dz - part * along[0]) ** 2 + (dy - part * along[1]) ** 2 + (dx - part * along[2]) ** 2
        )
        here = inside(grid, radius - np.sqrt(square)) * min(1, 2 * radius / voxel)
        share[box] = np.maximum(share[box], here)
    return share


def grow_tree(root: np.ndarray, targets: np.ndarray, radius: float) -> Tubes:
    """Tubes from `root` (3,) that reach all `targets` (n, 3), in mm, with `radius` at the root.

    From the nearest to the farthest, each target is joined to the point of the tree from which its
    way is shortest, the way back to the root counting for a part. A tube's radius follows the
    number of targets behind it (Murray's law).
    """
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))]
    points, way = np.vstack([root, targets]), np.zeros(len(targets) + 1)
    parents = np.zeros(len(points), int)
    for new in range(1, len(points)):
        step = np.linalg.norm(points[:new] - points[new], axis=1)
        parents[new] = np.argmin(step + 0.35 * way[:new])
        way[new] = way[parents[new]] + step[parents[new]]
    tips = np.zeros(len(points))
    for point in range(len(points) - 1, 0, -1):  # parents come before their children
        tips[point] += 1
        tips[parents[point]] += tips[point]
    radii = radius * (tips[1:] / len(targets)) ** _MURRAY
    return Tubes(points[parents[1:]], points[1:], radii)


@dataclass(frozen=True)
class _Build:
    """What differs between patients: half axes of the cavity and layers around it, in mm."""

    width: float
    depth: float
    fat: float
    muscle: float
    blood_hu: float

    @property
    def spine_y(self) -> float:
        """Where the middle of the vertebrae lies."""
        return self.depth - 13


def _outside(
    x: np.ndarray, y: np.ndarray, width: np.ndarray | float, depth: np.ndarray | float
) -> np.ndarray:
    """About how many mm a point lies outside of a rounded box of these half axes."""
    power = 2.4
    radius = (np.abs(x / width) ** power + np.abs(y / depth) ** power) ** (1 / power)
    return (radius - 1) * np.sqrt(width * depth)


def _body(
    rng: np.random.Generator, grid: Grid, build: _Build, outside: np.ndarray, narrow: np.ndarray
) -> np.ndarray:
    """Skin, fat, the muscles around the cavity and along the spine, and the table below, in HU."""
    z, y, x = grid.z, grid.y, grid.x
    layers = build.muscle + build.fat
    shoulders = 18 * (1 - narrow)
    body = -_outside(x, y - 3, build.width + layers + shoulders, build.depth + layers + 3)
    hu = np.full(grid.shape, float(AIR_HU))
    hu = paint(hu, inside(grid, body), MUSCLE_HU)  # the skin
    hu = paint(hu, inside(grid, body - 2), FAT_HU + 10 * smooth_noise(rng, grid, 6))
    flesh = MUSCLE_HU + 8 * smooth_noise(rng, grid, 5)
    wall = build.muscle + 3 * smooth_noise(rng, grid, 18) - outside
    hu = paint(hu, inside(grid, np.minimum(wall, body - 4)), flesh)
    strands = 1.2 - np.abs(smooth_noise(rng, grid, 9)) * 8  # fat between the muscles
    hu = paint(hu, inside(grid, np.minimum.reduce([wall, strands, outside - 4, body])), FAT_HU)
    along = 24 - np.hypot((np.abs(x) - 32) / 1.2, y - build.spine_y - 22) + 0 * z
    hu = paint(hu, inside(grid, np.minimum(along, body - 4)), flesh)
    table = y - build.depth - layers + 0.0009 * x**2 - rng.uniform(4, 8)
    shell = np.maximum(2 - np.abs(table), 2 - np.abs(table - 26))
    shell = np.minimum(shell, 175 - np.abs(x))
    return paint(hu, inside(grid, np.minimum(shell, -body - 1)), 20)


def _heart(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """How many mm deep a point lies in the heart."""
    size = rng.uniform(0.92, 1.08)
    across = ((grid.x - 20) / (62 * size)) ** 2 + ((grid.y + 26) / (50 * size)) ** 2
    return 50 * (1 - np.sqrt(across + ((grid.z + 60) / 62) ** 2))


def _lungs(
    rng: np.random.Generator, grid: Grid, build: _Build, outside: np.ndarray, heart: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lungs' share of each voxel, and how many mm a point lies under the diaphragm."""
    z, y, x = grid.z, grid.y, grid.x
    between = 9 + 17 * np.exp(-(((y + 4) / 40) ** 2)) + 6 * (z < 60) - np.abs(x - 2)
    spine = 27 - np.hypot(x, y - build.spine_y)
    aorta = 15 - np.hypot(x - 15, y - build.spine_y + 32) - 30 * (z > 50)
    mediastinum = np.maximum.reduce(np.broadcast_arrays(heart, between, spine, aorta))
    mediastinum = mediastinum + 2 * smooth_noise(rng, grid, 12)
    dome = np.where(x < 0, rng.uniform(-66, -52), rng.uniform(-78, -64))
    below = dome - 52 * (((np.abs(x) - 62) / 78) ** 2 + (y / 95) ** 2) - z
    lungs = inside(grid, np.minimum.reduce([-outside - 2, -mediastinum, -below]))
    return lungs, np.minimum(below, -outside - 1)


def _paint_belly(
    rng: np.random.Generator, grid: Grid, hu: np.ndarray, below: np.ndarray
) -> np.ndarray:
    """Liver and spleen in fat, under the diaphragm."""
    hu = paint(hu, inside(grid, below), FAT_HU)
    organs = np.where(grid.x < 20, 58, 48) + 6 * smooth_noise(rng, grid, 5)
    return paint(hu, inside(grid, np.minimum(below - 3, np.abs(grid.x - 22) - 6)), organs)


def _paint_mediastinum(
    rng: np.random.Generator,
    grid: Grid,
    hu: np.ndarray,
    build: _Build,
    share: np.ndarray,
    heart: np.ndarray,
) -> np.ndarray:
    """Fat, and in it heart, great vessels, gullet and the wall of the windpipe."""
    fat = FAT_HU + 15 + 20 * smooth_noise(rng, grid, 7)
    hu = paint(hu, share * (grid.z > -70), fat)
    hu = paint(hu, share * inside(grid, heart), build.blood_hu + 10)
    hu = paint(hu, share * draw_tubes(grid, _great_vessels(build.spine_y)), build.blood_hu)
    hu = paint(hu, share * draw_tubes(grid, _gullet(build.spine_y)), 35)
    return paint(hu, share * draw_tubes(grid, _wider(_windpipe(), 1.8)), MUSCLE_HU)


def _paint_lungs(
    rng: np.random.Generator,
    grid: Grid,
    hu: np.ndarray,
    build: _Build,
    lungs: np.ndarray,
    wobble: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lungs, denser behind, with fissures, airways and vessels; and the shares of the last two."""
    airways, walls, vessels = _trees(rng, grid, lungs)
    air = rng.uniform(-875, -825) + 0.45 * grid.y  # gravity fills what lies low
    air = air + 14 * smooth_noise(rng, grid, 3) + 12 * smooth_noise(rng, grid, 15)
    fissures = inside(grid, 0.7 - np.abs(0.6 * grid.y + 0.8 * (grid.z + 10) + 3 * wobble))
    hu = paint(hu, lungs, air + 120 * fissures)
    hu = paint(hu, lungs * walls, -150)
    hu = paint(hu, lungs * vessels, build.blood_hu - 10)
    airways = np.maximum(airways * lungs, draw_tubes(grid, _windpipe()))
    return paint(hu, airways, AIR_HU + 15), airways, vessels


def _wider(tubes: Tubes, mm: float) -> Tubes:
    return Tubes(tubes.starts, tubes.ends, tubes.radii + mm)


def _line(points: Sequence[ArrayLike], radius: float) -> Tubes:
    places = np.array(points, float)
    return Tubes(places[:-1], places[1:], np.full(len(places) - 1, radius))


def _joined(parts: Sequence[Tubes]) -> Tubes:
    return Tubes(
        *(np.concatenate([getattr(t, name) for t in parts]) for name in ("starts", "ends", "radii"))
    )


_ROOTS = {"right": np.array([8.0, -2.0, -34.0]), "left": np.array([12.0, 0.0, 38.0])}


def _windpipe() -> Tubes:
    """The trachea and the main bronchi."""
    fork = (32.0, 6.0, -1.0)
    return _joined(
        [
            _line([(120, 0, 2), fork], 8.5),
            _line([fork, _ROOTS["right"]], 6.5),
            _line([fork, _ROOTS["left"]], 5.5),
        ]
    )


def _great_vessels(spine_y: float) -> Tubes:
    """Aorta, vena cava, pulmonary arteries, and those of the neck."""
    behind = spine_y - 32
    arch: list[ArrayLike] = [
        (58 * np.sin(t) * 0.5 + 30, -22 + (behind + 22) * (1 - np.cos(t)) / 2, -14 + 32 * t / np.pi)
        for t in np.linspace(0, np.pi, 9)
    ]
    return _joined(
        [
            _line([(-30, -22, -4), *arch, (-120, behind, 14)], 12.5),
            _line([(120, -12, -26), (50, -16, -28), (-20, -14, -34)], 8),
            _line([(-10, -34, 14), (14, -24, 20), (12, -8, 42)], 12),
            _line([(14, -22, 16), (10, -8, -10), (8, -4, -38)], 10),
            _line([(58, -10, -2), (120, -14, -12)], 5),
            _line([(58, 2, 8), (120, -8, 20)], 4.5),
            _line([(0, 8, 26), (-8, 6, 44)], 6),
            _line([(0, 8, -20), (-8, 6, -42)], 6),
        ]
    )


def _gullet(spine_y: float) -> Tubes:
    return _line([(120, 16, 4), (-120, spine_y - 34, 2)], 7)


def _paint_bones(
    rng: np.random.Generator,
    grid: Grid,
    hu: np.ndarray,
    build: _Build,
    outside: np.ndarray,
) -> np.ndarray:
    """Ribs that fall to the front, sternum, shoulder blades and spine: marrow in a hard shell."""
    z, y, x = grid.z, grid.y, grid.x
    every, start = rng.uniform(27, 31), rng.uniform(0, 30)
    fall = 46 * (1 - y / 90) + start  # a rib lies lower in front than at the spine
    between = np.abs((z + fall) / every % 1 - 0.5) * every
    ribs = 1 - np.sqrt((between / 6.5) ** 2 + ((outside - 6) / 3.8) ** 2)
    cartilage = y < -62 + 0.1 * np.abs(x)
    hu = _paint_bone(grid, hu, ribs * 4.5 - 30 * (np.abs(x) < 16), shell=1.3, soft=cartilage)
    breastbone = np.minimum(17 - np.abs(x), 6 - np.abs(outside - 7)) - 30 * (y > 0) - 30 * (z < -50)
    hu = _paint_bone(grid, hu, breastbone, shell=1.5)
    blade = np.minimum(3.5 - np.abs(outside - 20 - 0.04 * (z - 40)), 40 - np.abs(y - 38))
    blade = blade - 30 * (z < 0) - 30 * (np.abs(x) < 58)
    hu = _paint_bone(grid, hu, blade, shell=1.5)

    body = 18 - np.hypot(x / 1.1, (y - build.spine_y + 1) / 0.92)
    disc = np.abs((z + start) / 23 % 1 - 0.5) * 23 < 2.5
    hu = paint(hu, inside(grid, body), np.where(disc, 85, MARROW_HU))
    hu = _paint_bone(grid, hu, body - 30 * disc, shell=1.8)
    behind = y - build.spine_y - 25
    arch = np.maximum.reduce(
        np.broadcast_arrays(
            13.5 - np.hypot(x, behind),
            np.minimum(4 - np.abs(behind - 4 - 0.15 * np.abs(x)), 30 - np.abs(x)),
            np.minimum(3.5 - np.abs(x), 11 - np.abs(behind - 11)),
        )
    )
    joint = np.abs((z + start + 6) / 23 % 1 - 0.5) * 23 > 4
    hu = _paint_bone(grid, hu, arch - 30 * ~joint, shell=1.8)
    return paint(hu, inside(grid, 8.5 - np.hypot(x, behind)), 30)


def _paint_bone(
    grid: Grid,
    hu: np.ndarray,
    depth_mm: np.ndarray,
    shell: float,
    soft: np.ndarray | bool = False,
) -> np.ndarray:
    """Marrow in a shell of so many mm of bone, or cartilage where it is soft."""
    hu = paint(hu, inside(grid, depth_mm), np.where(soft, 130, BONE_HU))
    return paint(hu, inside(grid, depth_mm - shell), np.where(soft, 100, MARROW_HU))


def _trees(
    rng: np.random.Generator, grid: Grid, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the airways' inside, of their walls, and of the vessels in the lungs."""
    depth = ndimage.distance_transform_edt(lungs > 0.5, sampling=grid.spacing_mm)
    side = np.broadcast_to(np.sign(grid.x), grid.shape)
    airways, vessels = [], []
    for name, sign in (("right", -1), ("left", 1)):
        root = _ROOTS[name]
        deep = _drawn(rng, grid, (depth > 10) & (side == sign), 45)
        shallow = _drawn(rng, grid, (depth > 4) & (side == sign), 450)
        veins = _drawn(rng, grid, (depth > 6) & (side == sign), 260)
        airways.append(grow_tree(root, deep, radius=4.2))
        beside = root + np.array([3, -8, 0])
        arteries = np.vstack([deep + np.array([0, -4, 0]), shallow])
        vessels.append(grow_tree(beside, arteries, radius=7.0))
        vessels.append(grow_tree(root + np.array([-14, 8, 0]), veins, radius=6.0))
    tree = _joined(airways)
    walls = draw_tubes(grid, _wider(tree, 1.2))
    return draw_tubes(grid, tree), walls, draw_tubes(grid, _joined(vessels))


def points_of(grid: Grid, where: np.ndarray) -> np.ndarray:
    """The voxels of a mask as points (n, 3), in mm."""
    axes = (grid.z.ravel(), grid.y.ravel(), grid.x.ravel())
    return np.stack([axis[i] for axis, i in zip(axes, np.nonzero(where), strict=True)], axis=1)


def _drawn(rng: np.random.Generator, grid: Grid, where: np.ndarray, count: int) -> np.ndarray:
    """`count` points (count, 3) in mm, anywhere in the voxels of a mask."""
    points = points_of(grid, where)
    return rng.choice(points, count) + rng.uniform(-0.5, 0.5, (count, 3)) * grid.spacing_mm
