"""The plan of a folder of prepared data: the one that is there, or a new one."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from covid_jax.data.findings import read_case
from covid_jax.data.plan import (
    FINGERPRINT_VOXELS,
    Fingerprint,
    Plan,
    fingerprint,
    load_plan,
    make_plan,
    save_plan,
    with_topology,
)
from covid_jax.data.planner import Planning, Topology
from covid_jax.data.preprocess import nonzero_box
from covid_jax.data.processes import each
from covid_jax.data.raw import Case, RawDataset
from covid_jax.errors import UserError
from covid_jax.lock import only_here


def known_plan(out_dir: Path | None) -> Plan | None:
    """The plan in `out_dir`, where there is one."""
    path = out_dir / "plan.json" if out_dir else None
    return load_plan(path) if path and path.is_file() else None


def check_plan_fold(raw: RawDataset, fold: int) -> None:
    """Raises a UserError where a fold has no training cases to make a plan from."""
    splits = raw.splits
    if fold < len(splits) and splits[fold].train:
        return
    others = [str(number) for number, split in enumerate(splits) if split.train]
    if others:
        raise UserError(
            f"--plan_fold={fold}: {raw.name} has no training cases of that fold, but of "
            f"{', '.join(others)}"
        )
    raise UserError(
        f"{raw.folder}: no fold of its {len(raw.cases)} cases has any to train on, and a plan is "
        "made from such; at least two cases are needed"
    )


def refuse_other_channels(raw: RawDataset, plan: Plan, path: Path) -> None:
    """Raises a UserError where the dataset's channels are not what a plan is of."""
    if raw.schemes != plan.schemes:
        channels = ", ".join(raw.channels)
        raise UserError(
            f"{raw.folder}: its channels ({channels}) want {', '.join(raw.schemes)}, and {path} is "
            f"of {', '.join(plan.schemes)}; give another --out_dir, or by --plans the plan that it "
            "is"
        )


def network_told(topology: Topology, spacing_mm: Sequence[float]) -> str:
    """A line on what was planned."""
    blocks = "residual" if topology.n_blocks_per_stage else "plain"
    patch = " x ".join(str(n) for n in topology.patch_size)
    spacing = " x ".join(f"{mm:.3g}" for mm in spacing_mm)
    return (
        f"a {blocks} network of {len(topology.strides)} stages, for {topology.batch_size} patches "
        f"of {patch} at {spacing} mm"
    )


def plan_for(
    raw: RawDataset,
    out_dir: Path,
    fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> Plan:
    """The plan in `out_dir`; made, or given another network, by one preparation alone.

    Raises:
      UserError: it is of other channels, or on another grid than the one that is given or planned.
    """
    path = out_dir / "plan.json"
    if planning or given or not known_plan(out_dir):
        with only_here(out_dir, "a preparation that makes plan.json"):
            before = known_plan(out_dir)
            if not before:
                save_plan(path, _first_plan(raw, fold, processes, planning, given))
            else:
                refuse_other_channels(raw, before, path)
                if given and given.schemes != raw.schemes:
                    given = _with_intensities_of(before, given)
                topology = _network_for(before, raw, path, fold, processes, planning, given)
                if topology != before.topology:
                    save_plan(path, replace(before, topology=topology))
                    which = "another network" if before.topology else "a network"
                    tqdm.write(f"{path}: {which}, on the grid that it has: its cases stay")
    plan = load_plan(path)
    refuse_other_channels(raw, plan, path)
    return plan


def _network_for(
    plan: Plan,
    raw: RawDataset,
    path: Path,
    fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> Topology | None:
    """The network that is asked for, where it is one for the grid of the plan at `path`."""
    if given:
        if given.hash != plan.hash:
            raise UserError(
                f"{path}: is there already, and another plan than the one that is given; give "
                "another --out_dir"
            )
        return given.topology or plan.topology
    if not planning:
        return plan.topology
    cases = list(_fingerprints(raw, fold, processes, 0).values())
    planned = with_topology(plan, cases, _named_labels(raw), planning)
    turned = plan.file_axes or plan.axes != Plan.axes  # where no planning sees the cases
    if turned or (planned.spacing_mm, planned.transpose) != (plan.spacing_mm, plan.transpose):
        here, there = (" x ".join(f"{mm:.3g}" for mm in p.spacing_mm) for p in (plan, planned))
        raise UserError(
            f"{path}: is there already, on another grid ({here} mm) than what is to be planned "
            f"({there} mm); give another --out_dir, or delete it, and the cases are prepared again"
        )
    return planned.topology


def _first_plan(
    raw: RawDataset,
    fold: int,
    processes: int,
    planning: Planning | None,
    given: Plan | None,
) -> Plan:
    if given and given.schemes == raw.schemes:
        return given
    own = _plan_of(raw, fold, processes, planning)
    if not given:
        return own
    count, theirs = len(given.schemes), f"of {', '.join(given.schemes)}"
    tqdm.write(
        f"{raw.name}: its channels ({', '.join(raw.channels)}) are normalised by its own "
        "intensities, as the plan that is given is "
        + (theirs if count == len(raw.channels) else f"of {count} channel{'s' * (count > 1)}")
    )
    return _with_intensities_of(own, given)


def _with_intensities_of(own: Plan, given: Plan) -> Plan:
    """The plan that is given, for the channels of another one."""
    return replace(given, normalization=own.normalization, training_cases=own.training_cases)


def _plan_of(raw: RawDataset, fold: int, processes: int, planning: Planning | None) -> Plan:
    fingerprints = _fingerprints(raw, fold, processes, FINGERPRINT_VOXELS)
    plan = make_plan(list(fingerprints), list(fingerprints.values()), raw.schemes)
    if planning:
        plan = with_topology(plan, list(fingerprints.values()), _named_labels(raw), planning)
    return plan


def _named_labels(raw: RawDataset) -> int:
    """How many labels dataset.json names."""
    return 1 + len(raw.labels) + (raw.label_space.ignored is not None)


def _fingerprints(
    raw: RawDataset, fold: int, processes: int, voxels: int
) -> dict[str, Fingerprint]:
    """Of the training cases of a fold, by their names, from `voxels` of lesions in all."""
    check_plan_fold(raw, fold)
    training = raw.splits[fold].train
    cases = [case for case in raw.cases if case.name in training]
    of_case = functools.partial(_fingerprint, raw=raw, samples=voxels // len(cases))
    found = each(of_case, cases, processes, "fingerprint")
    return dict(zip((case.name for case in cases), found, strict=True))


def _fingerprint(case: Case, raw: RawDataset, samples: int) -> Fingerprint:
    channels, label = read_case(case, raw)
    box = nonzero_box([channel.voxels for channel in channels])
    *cropped, label = (replace(one, voxels=one.voxels[box]) for one in (*channels, label))
    share = label.voxels.size / channels[0].voxels.size
    return fingerprint(cropped, label, samples, share)
