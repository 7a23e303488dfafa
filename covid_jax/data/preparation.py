"""A raw dataset becomes a prepared one: its cases by one plan, each whole or absent."""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from covid_jax.data import phantom, store
from covid_jax.data.datasets import Case, RawDataset, read_dataset
from covid_jax.data.plan import (
    FINGERPRINT_VOXELS,
    Plan,
    fingerprint,
    load_plan,
    make_plan,
    save_plan,
)
from covid_jax.data.preprocess import nonzero_box, prepare_case, read_label, read_scan
from covid_jax.data.volume import Volume
from covid_jax.errors import UserError


def prepare_dataset(name: str, raw_dir: Path, out_dir: Path, plan_fold: int = 0) -> RawDataset:
    """Prepares every case of a raw dataset into `out_dir`/`name`; done cases are kept.

    The plan is `out_dir`/plan.json; where there is none yet, the training cases of fold
    `plan_fold` of this dataset make it.

    Raises:
      UserError: the raw dataset is incomplete or a case of it is damaged; names the file.
    """
    raw = read_dataset(name, raw_dir)
    for note in raw.notes:
        tqdm.write(f"{name}: {note}")
    plan_path = out_dir / "plan.json"
    if plan_path.is_file():
        plan = load_plan(plan_path)
    else:
        plan = _plan_of(raw, plan_fold)
        save_plan(plan_path, plan)
    folder = out_dir / name
    for case in tqdm(raw.cases, f"preparing {name}", unit="case", mininterval=1):
        if store.has_case(folder, case.name, plan.hash):
            continue
        image, label = read_case(case, raw)
        if image.note:
            tqdm.write(f"{case.name}: {image.note}")
        prepared = prepare_case(image, label, plan)
        facts = {"plan": plan.hash, "note": image.note, "synthetic": raw.synthetic}
        store.save_case(folder, case.name, prepared, label, facts)
    store.save_dataset(folder, raw, plan.hash)
    return raw


def prepare_phantom(out_dir: Path, num_cases: int, seed: int) -> None:
    """Makes and prepares the synthetic dataset `phantom` in `out_dir`, if it is not there yet."""
    if (out_dir / "phantom" / "dataset.json").is_file():
        return
    raw_dir = out_dir / "raw_phantom"
    phantom.write_raw_dataset("phantom", raw_dir, num_cases, seed)
    prepare_dataset("phantom", raw_dir, out_dir)


def read_case(case: Case, raw: RawDataset) -> tuple[Volume, Volume]:
    """Image (HU) and label of a raw case. Raises a UserError that names the file."""
    image = read_scan(case.image)
    return image, read_label(case.label, image, len(raw.labels) + 1, raw.ignored)


def _plan_of(raw: RawDataset, fold: int) -> Plan:
    if fold >= len(raw.splits) or not raw.splits[fold].train:
        raise UserError(f"--plan_fold={fold}: {raw.name} has no training cases of that fold")
    training = raw.splits[fold].train
    cases = [case for case in raw.cases if case.name in training]
    fingerprints = []
    for case in tqdm(cases, "fingerprint", unit="case", mininterval=1):
        image, label = read_case(case, raw)
        box = nonzero_box(image.voxels)
        fingerprints.append(
            fingerprint(
                replace(image, voxels=image.voxels[box]),
                replace(label, voxels=label.voxels[box]),
                FINGERPRINT_VOXELS // len(cases),
            )
        )
    return make_plan([case.name for case in cases], fingerprints)
