"""What is segmented: classes, or regions that may overlap, and how a network's channels mean it.

nnU-Net: LabelManager. Loss, sampling, prediction and metrics ask this value; none of them knows
more of it.
"""

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from covid_jax.errors import UserError
from covid_jax.values import mapping, read, several, whole

IGNORED = 255
"""The value of a label's voxels that take no part in loss and metrics (nnU-Net's ignore label)."""

OUTSIDE = 254
"""The value of background outside of a scan's non-zero region (nnU-Net's -1) in prepared labels.

It is there where a channel is normalised within that region, and nothing that is trained on has it.
"""

Label = int | tuple[int, ...]
"""What is scored: a class by its value, or a region by all of its values."""


@dataclass(frozen=True)
class LabelSpace:
    """Classes or regions.

    Of classes a voxel has one; the network has a channel for each, and one for the background
    before them. Regions are unions of label values; the network has a channel for each, and none
    for the background.

    Attributes:
      names: of the classes, whose label values are 1, 2, ..., or of the regions. Empty: of classes
        that nobody named.
      regions: the label values of each, in the order of the channels. Empty: these are classes.
      regions_class_order: the value that a mask gets in each region; where several overlap, the
        last one's stays (nnU-Net: regions_class_order).
      ignored: the label value of voxels that nobody annotated; None: there are no such.
    """

    names: tuple[str, ...] = ()
    regions: tuple[tuple[int, ...], ...] = ()
    regions_class_order: tuple[int, ...] = ()
    ignored: int | None = None

    @property
    def kind(self) -> Literal["classes", "regions"]:
        """What the channels are."""
        return "regions" if self.regions else "classes"

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """From the channels' logits to probabilities."""
        return "sigmoid" if self.regions else "softmax"

    @property
    def heads(self) -> int:
        """The number of channels."""
        return len(self.regions) or 1 + len(self.names)

    @property
    def values(self) -> tuple[int, ...]:
        """The label values without the background's and the ignored one."""
        highest = max(itertools.chain(*self.regions), default=len(self.names))
        return tuple(range(1, 1 + highest))

    @property
    def scored(self) -> dict[Label, str]:
        """What metrics are of, and how it is called: every class, or every region."""
        return dict(zip(self.regions or self.values, self.names, strict=True))

    def names_of(self, channels: int) -> tuple[str, ...]:
        """Of each class or region; where nobody named them, of all `channels` but background."""
        unnamed = ("lesion",) if channels == 2 else (f"lesion_{k}" for k in range(1, channels))
        return self.names or tuple(unnamed)

    def told(self, channels: int) -> str:
        """What a network's channels are, in words."""
        names = self.names if self.regions or not self.names else ("background", *self.names)
        return f"{channels} {self.kind}" + (f" ({', '.join(names)})" if names else "")

    def foreground(self, channels: int) -> range:
        """Which of a network's channels are not the background's."""
        return range(channels) if self.regions else range(1, channels)

    def outside(self, shape: Sequence[int]) -> np.ndarray:
        """Probabilities (K, ...), float32, where nothing is.

        nnU-Net: revert_cropping_on_probabilities.
        """
        probabilities = np.zeros(shape, np.float32)
        if not self.regions:
            probabilities[0] = 1
        return probabilities

    def mask(self, probabilities: np.ndarray, threshold: float = 0.0) -> np.ndarray:
        """The label values, uint8, that probabilities (K, ...) stand for.

        Of classes the likeliest; of regions the values of those above 0.5, written one over the
        other (nnU-Net: convert_probabilities_to_segmentation).

        Args:
          threshold: 0, or from what probability on a voxel is foreground: of all classes together,
            of which it then is the likeliest, or of each region.
        """
        if self.regions:
            mask = np.zeros(probabilities.shape[1:], np.uint8)
            for value, region in zip(self.regions_class_order, probabilities, strict=True):
                mask[region >= threshold if threshold else region > 0.5] = value
            return mask
        if not threshold:
            return probabilities.argmax(0).astype(np.uint8)
        lesion = 1 - probabilities[0] >= threshold
        return np.where(lesion, 1 + probabilities[1:].argmax(0), 0).astype(np.uint8)


CLASSES = LabelSpace()
"""Classes that nobody named."""


def values_of(label: Label) -> tuple[int, ...]:
    """All values of a class or region."""
    return label if isinstance(label, tuple) else (label,)


def lies_in(labels: Any, values: Sequence[int]) -> Any:
    """Which of the voxels have one of the values: bool, of NumPy's arrays and of JAX's."""
    return functools.reduce(operator.or_, (labels == value for value in values))


def label_values(description: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The values of each label of an nnU-Net dataset.json, by its name.

    Background and the one to ignore are among them. Several values are those of a region.

    Raises:
      UserError: it has no labels; a label has no name, no value, one that is no whole number or
        one twice, two have one name or the same values, or the background is not 0.
    """
    labels = read(description, "labels", mapping)
    if _of_version_1(labels):
        labels = {name: value for value, name in labels.items()}
    values: dict[str, tuple[int, ...]] = {}
    for name, value in labels.items():
        held = [_value(name, v) for v in (value if isinstance(value, list | tuple) else [value])]
        if not held:
            raise UserError(f"label {name!r} is {value!r}; a value or a list of them is needed")
        if not str(name).strip():
            raise UserError(f"the label of the value {value} has no name")
        if len({*held}) < len(held):
            raise UserError(f"label {name!r} is {value!r}, which has a value twice; keep one")
        values[str(name)] = tuple(sorted(held))
    background = values.get("background", (0,))
    if background != (0,):
        told = background[0] if len(background) == 1 else list(background)
        raise UserError(f"its background is {told}; nnU-Net wants it to be 0")
    if len({*values.values()}) < len(values) or len(values) < len(description["labels"]):
        raise UserError("two of its labels have one name or one value")
    return values


def _of_version_1(labels: Mapping[Any, Any]) -> bool:
    """Version 1 maps values to names, version 2 names to values."""
    return all(str(key).isdigit() for key in labels)


def _value(name: str, value: Any) -> int:
    """A label's value, which may be written as 1, 1.0 or "1"."""
    try:
        return whole(float(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise UserError(f"label {name!r}: its value {value!r} is no whole number") from error


def label_space(description: Mapping[str, Any]) -> LabelSpace:
    """What an nnU-Net dataset.json says is segmented.

    Raises:
      UserError: label values that are not 1, 2, ..., or not below the one to ignore; regions that
        are not whole; as label_values.
    """
    values = label_values(description)
    ignored = take_ignored(values)
    labels = {name: of_one for name, of_one in values.items() if of_one != (0,)}
    held = sorted({*itertools.chain(*values.values())})
    highest = max(held, default=0)
    if ignored is not None and ignored <= highest:
        raise UserError(
            f"the label ignore is {ignored}, and another one {highest}; nnU-Net wants it to be the "
            "highest"
        )
    if not held or held != list(range(len(held))):
        raise UserError(
            f"label values {held} are not 0 (background), 1, 2, ...; nnU-Net wants them so"
        )
    if all(len(of_one) == 1 for of_one in labels.values()):
        return LabelSpace(tuple(sorted(labels, key=labels.__getitem__)), ignored=ignored)
    order = description.get("regions_class_order")
    if not isinstance(order, list | tuple) or len(order) != len(labels):
        raise UserError(
            f"its labels are regions, and regions_class_order is {order!r}; nnU-Net wants a value "
            f"for each of the {len(labels)}"
        )
    written = read(description, "regions_class_order", several(whole))
    if with_background := [name for name, of_one in labels.items() if 0 in of_one]:
        raise UserError(f"its region {with_background[0]!r} has the background's value, 0, in it")
    if strange := sorted(set(written) - set(held[1:])):
        raise UserError(f"its regions_class_order has {strange[0]}, which no label has")
    return LabelSpace(tuple(labels), tuple(labels.values()), written, ignored)


def unlike_nnunet(description: Mapping[str, Any]) -> list[str]:
    """Lines on labels of a dataset.json that are read here, and that nnU-Net v2 refuses.

    Raises:
      UserError: as label_space.
    """
    space, labels = label_space(description), description["labels"]
    lines, free = [], 1 + max(space.values, default=0)
    if space.ignored not in (None, free):
        lines.append(f"the label ignore is {space.ignored}; nnU-Net wants {free}")
    if not _of_version_1(labels) and isinstance(labels.get("background", []), list):
        names = [name for name, (first, *_) in label_values(description).items() if first == 0]
        told = f"{names[0]!r}: {labels[names[0]]!r}"
        lines.append(f"the background is {told}; nnU-Net wants 'background': 0")
    return lines


def take_ignored(values: dict[str, tuple[int, ...]]) -> int | None:
    """Takes the label `ignore` out of what label_values gives; its value, None where it is not.

    Raises:
      UserError: it is a region.
    """
    ignored, *more = values.pop("ignore", (None,))
    if more:
        raise UserError("its label to ignore is a region; nnU-Net wants one value")
    return ignored


def labels_json(space: LabelSpace, channels: int) -> dict[str, Any]:
    """What nnU-Net's dataset.json says of it: labels, and of regions their order.

    Args:
      channels: of the network, by which classes get names where they have none.
    """
    names = space.names_of(channels)
    held = space.regions or [(value,) for value in range(1, 1 + len(names))]
    labels: dict[str, Any] = {"background": 0}
    for name, held_by in zip(names, held, strict=True):
        labels[name] = held_by[0] if len(held_by) == 1 else list(held_by)
    if space.ignored is not None:
        labels["ignore"] = 1 + max(itertools.chain(*held))
    order = {"regions_class_order": list(space.regions_class_order)} if space.regions else {}
    return {"labels": labels, **order}


def together(spaces: Mapping[str, LabelSpace]) -> LabelSpace:
    """One of several datasets, by their names: the labels of each are classes of their own.

    Raises:
      UserError: one of several has regions.
    """
    if len(spaces) == 1:
        return next(iter(spaces.values()))
    if regions := [name for name, space in spaces.items() if space.regions]:
        raise UserError(
            f"{regions[0]}: its labels are regions, which are trained on alone; name it alone in "
            "config.data.datasets"
        )
    names = [(dataset, name) for dataset, space in spaces.items() for name in space.names]
    once = [name for _, name in names]
    told = [name if once.count(name) == 1 else f"{name} ({dataset})" for dataset, name in names]
    if len({*told}) < len(told):  # "a (x)" of one, and "a" of the dataset x
        told = [f"{name} ({dataset})" for dataset, name in names]
    ignored = [space.ignored for space in spaces.values() if space.ignored is not None]
    return LabelSpace(tuple(told), ignored=ignored[0] if ignored else None)
