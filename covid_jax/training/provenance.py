"""What a run was made of, as its provenance.json keeps it, and what of that changed since."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from covid_jax import __version__
from covid_jax.config import Config, differences
from covid_jax.data.store import StoredDataset, digests
from covid_jax.device import cores, nvidia_driver
from covid_jax.errors import UserError, listed
from covid_jax.files import read_json, write_json

_COMPARED_APART = (
    "data",
    "references",
    "pretrained",
    "trained_on",  # follows from the data and the config, as the next does
    "seen_before",
    "devices",
    "imported",
    "licences",
)
"""Of a run's provenance, what is not compared as it stands."""


def provenance(config: Config, datasets: Sequence[StoredDataset]) -> dict[str, Any]:
    """What a run stands on besides its config and plan; and all that of its pre-training.

    The program's version, every case with its reference, whether it is synthetic, its licence, the
    scans that are trained on, and the test cases of which the pre-training saw the scan. Of what
    was made before these were kept they are left out.
    """
    origin: dict[str, Any] = {
        "covid_jax": __version__,
        "data": {},
        "references": {},
        "trained_on": {},
        "synthetic": sorted(data.name for data in datasets if data.synthetic),
        "licences": {data.name: data.licence for data in datasets if data.licence},
    }
    for data in datasets:
        known, trained_on = digests(data), data.split(config.fold).train
        origin["data"][data.name] = {case: of.arrays for case, of in known.items()}
        origin["references"][data.name] = {
            case: of.reference for case, of in known.items() if of.reference
        }
        origin["trained_on"][data.name] = {
            case: known[case].scan for case in trained_on if known[case].scan
        }
    if seen := seen_before(config, datasets):
        origin["seen_before"] = seen
    if config.pretrained and (before := load_provenance(Path(config.pretrained))):
        origin["pretrained"] = before
        path = Path(config.pretrained) / "dataset.json"
        if path.is_file() and not before["data"]:  # it was trained elsewhere
            origin["pretrained"] = before | {"imported": _imported(path)}
    return origin


def seen_before(config: Config, datasets: Sequence[StoredDataset]) -> list[str]:
    """The test cases of a run whose scans its pre-training, or one before that, was trained on.

    None are known of what was trained before provenance.json told its scans.
    """
    if not (config.pretrained and datasets):
        return []
    scans: set[str] = set()
    before = load_provenance(Path(config.pretrained))
    while before:
        scans |= {scan for of in before.get("trained_on", {}).values() for scan in of.values()}
        before = before.get("pretrained", {})
    tested, known = datasets[0].split(config.fold).test, digests(datasets[0])
    return [case for case in tested if known[case].scan in scans]


def _imported(path: Path) -> str:
    """What an imported network is called, by the dataset.json that import_nnunet leaves."""
    dataset = read_json(path)
    labels = dataset.get("labels", {})
    if not isinstance(labels, dict):
        raise UserError(f"{path}: damaged, its labels have no names; import the network again")
    named = ", ".join(name for name, value in labels.items() if value != 0)
    return str(dataset.get("name") or f"of the labels {named}")


def load_provenance(workdir: Path) -> dict[str, Any]:
    """What provenance.json says of the run in `workdir`; nothing where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / "provenance.json"
    if path.is_file() and not _is_provenance(read_json(path)):
        raise UserError(
            f"{path}: damaged; it does not say what the run was made of. Delete it, and the run "
            "that is started again makes it anew"
        )
    return read_json(path)


def _is_provenance(origin: Any) -> bool:
    """Whether this is what `provenance` says of a run, and of what it started from, and so on."""
    if not isinstance(origin, dict):
        return False
    synthetic, devices = origin.get("synthetic"), origin.get("devices")
    of_cases = [origin.get("data"), origin.get("references", {}), origin.get("trained_on", {})]
    return (
        all(isinstance(of_case, dict) for of_case in of_cases)
        and all(isinstance(c, dict) for of_case in of_cases for c in of_case.values())
        and isinstance(origin.get("seen_before", []), list)
        and isinstance(origin.get("licences", {}), dict)
        and isinstance(synthetic, list)
        and all(isinstance(name, str) for name in synthetic)
        and ("devices" not in origin or isinstance(devices, list))
        and all(
            isinstance(of, dict) and {"epochs", "until_step"} <= of.keys()
            for of in origin.get("earlier_lengths", ())
        )
        and all(isinstance(device, dict) for device in devices or ())
        and isinstance(origin.get("imported", ""), str)
        and ("pretrained" not in origin or _is_provenance(origin["pretrained"]))
    )


def device_here() -> dict[str, Any]:
    """What the rounding of a run depends on besides its program."""
    device = jax.devices()[0]
    here = {"kind": device.device_kind, "driver": nvidia_driver(), "jax": jax.__version__}
    # A CPU's sums are cut by its cores.
    return here | ({"cores": cores()} if device.platform == "cpu" else {})


def note_device(workdir: Path) -> None:
    """Adds this device to those that the run was trained on, in provenance.json."""
    path, here = workdir / "provenance.json", device_here()
    origin = load_provenance(workdir)
    devices = origin.get("devices", [])
    if devices[-1:] != [here]:
        write_json(path, origin | {"devices": [*devices, here]})


def changes(ours: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Lines on what must not change and did: the program, cases by their names, the pre-training.

    Where it was trained may change, and what it was called elsewhere.
    """
    here, there = (
        {name: value for name, value in one.items() if name not in _COMPARED_APART}
        for one in (ours, known)
    )
    lines = differences(here, there)
    for dataset in sorted(ours.get("data", {}).keys() | known.get("data", {}).keys()):
        lines += [f"{dataset}: {told}" for told in _changed_cases(ours, known, dataset)]
    if "pretrained" in ours.keys() | known.keys():
        before = (one.get("pretrained", {}) for one in (ours, known))
        lines += [f"of its pre-training {line}" for line in changes(*before)]
    return lines


def _changed_cases(ours: dict[str, Any], known: dict[str, Any], dataset: str) -> list[str]:
    """Which cases of a dataset changed, are gone or are new; references where both know them."""
    here, there = (one.get("data", {}).get(dataset, {}) for one in (ours, known))
    labels, were = (one.get("references", {}).get(dataset, {}) for one in (ours, known))
    both = here.keys() & there.keys()
    others = {case for case in both if here[case] != there[case]}
    others |= {case for case in both & labels.keys() & were.keys() if labels[case] != were[case]}
    told = {"changed": others, "gone": there.keys() - both, "new": here.keys() - both}
    return [f"{listed(cases)} {what}" for what, cases in told.items() if cases]
