"""What a run was made of, as its provenance.json keeps it, and what of that changed since."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from covid_jax import __version__
from covid_jax.config import Config, differences
from covid_jax.data.plan import Plan, load_plan
from covid_jax.data.store import StoredDataset, digests
from covid_jax.device import cores, nvidia_driver
from covid_jax.errors import UserError, listed
from covid_jax.files import read_json, write_json
from covid_jax.training.checkpoint import newest_step
from covid_jax.training.pretrained import load_config
from covid_jax.training.state import epochs_of

_COMPARED_APART = (
    "data",
    "references",
    "pretrained",
    "trained_on",  # follows from the data and the config, as the next two do
    "seen_before",
    "unlike_before",
    "devices",
    "imported",
    "licences",
)
"""Of a run's provenance, what is not compared as it stands."""


_MEANING = {
    "spacing_mm": "spacing in mm",
    "normalization": "intensities",
    "file_axes": "axes of the file",
    "label_resampling": "resampling of labels",
    **dict.fromkeys(("median_shape", "training_cases", "topology", "version", "outside_apart"), ""),
}
"""What a plan's fields are about; nothing where a network does not depend on them."""


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
    if seen := sorted({*seen_before(config, datasets), *trained_and_tested(config, datasets)}):
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
    scans = scans_before(config)
    return _tested(config, datasets, scans) if scans else []


def scans_before(config: Config) -> set[str]:
    """The digests of all scans that the pre-training of a run, or one before, was trained on."""
    scans: set[str] = set()
    before = load_provenance(Path(config.pretrained)) if config.pretrained else {}
    while before:
        scans |= {scan for of in before.get("trained_on", {}).values() for scan in of.values()}
        before = before.get("pretrained", {})
    return scans


def trained_and_tested(config: Config, datasets: Sequence[StoredDataset]) -> list[str]:
    """The test cases of a run whose scans it trains on, under other names or in other datasets."""
    scans: set[str] = set()
    for data in datasets:
        known = digests(data)
        scans |= {known[case].scan for case in data.split(config.fold).train} - {""}
    return _tested(config, datasets, scans)


def _tested(config: Config, datasets: Sequence[StoredDataset], scans: Collection[str]) -> list[str]:
    """The test cases of a run that are among these scans."""
    if not datasets:
        return []
    tested, known = datasets[0].split(config.fold).test, digests(datasets[0])
    return [case for case in tested if known[case].scan in scans]


def start_notes(config: Config, plan: Plan, datasets: Sequence[StoredDataset]) -> list[str]:
    """Lines on where a run starts from, and on what in its data makes it doubtful.

    What other_plan, other_channels and unfinished say; which test cases are seen_before, or
    trained_and_tested.
    """
    notes = other_plan(config, plan) + other_channels(config, datasets) + unfinished(config)
    if cases := seen_before(config, datasets):
        notes.append(seen_warning(config.pretrained, cases, config.fold))
    if cases := trained_and_tested(config, datasets):
        notes.append(
            f"warning: {len(cases)} of the test cases of fold {config.fold} ({listed(cases)}) are "
            "trained on, under another name or in another dataset; scores of them are no test"
        )
    return notes


def unfinished(config: Config) -> list[str]:
    """A line on a pre-training that has not ended, and may go on under the runs that start there.

    Of a work directory; what was exported or is the best of another has no end of its own.
    """
    folder = Path(config.pretrained)
    if not (config.pretrained and (folder / "log.jsonl").is_file()):
        return []
    theirs = load_config(folder)
    step, last = newest_step(folder), epochs_of(theirs) * theirs.steps_per_epoch
    if step >= last:
        return []
    return [f"warning: {config.pretrained} is at step {step} of {last}, and has not ended"]


def seen_warning(network: str, cases: Sequence[str], fold: int) -> str:
    """A line on a network that was trained on some of the test cases of a fold."""
    return (
        f"warning: {network} was trained on {len(cases)} of the test cases of fold {fold} "
        f"({listed(cases)}); scores of them are no test"
    )


def other_channels(config: Config, datasets: Sequence[StoredDataset]) -> list[str]:
    """Lines on datasets, and a pre-training, whose channels are called otherwise than the first's.

    By their names alone: a network takes one channel for another, and nothing fails.
    """
    known = {data.name: data.channels for data in datasets}
    if config.pretrained:
        known[config.pretrained] = channel_names(Path(config.pretrained))
    (first, ours), *others = known.items() if known else [("", ())]
    return [
        f"warning: the channels of {name} are {', '.join(theirs)}, and those of {first} "
        f"{', '.join(ours)}; the network takes the one for the other, in this order"
        for name, theirs in others
        if ours and len(theirs) == len(ours)
        if [channel.casefold() for channel in theirs] != [channel.casefold() for channel in ours]
    ]


def channel_names(workdir: Path) -> tuple[str, ...]:
    """What the channels of a run are called, in its dataset.json; empty where that does not say."""
    names = read_json(workdir / "dataset.json").get("channel_names")
    return tuple(map(str, names.values())) if isinstance(names, dict) else ()


def other_plan(config: Config, plan: Plan) -> list[str]:
    """A line that says in what the data differs from what the pre-trained network was trained on.

    A network that goes on with other spacings or intensities than it knows starts from less.
    """
    differ = "; ".join(unlike_before(config, plan))
    line = f"note: {config.pretrained} was trained on data of another plan than this one's: "
    return [f"{line}{differ}"] if differ else []


def unlike_before(config: Config, plan: Plan) -> list[str]:
    """In what a plan differs from that of the run's pre-training, as far as it matters."""
    if not config.pretrained:
        return []
    before, here = vars(load_plan(Path(config.pretrained) / "plan.json")), vars(plan)
    differ = {_MEANING.get(name, name) for name in here if here[name] != before[name]} - {""}
    told = []
    for what in sorted(differ):
        (name,) = (name for name in here if _MEANING.get(name, name) == what)
        theirs, ours = (_told(values[name]) for values in (before, here))
        told.append(f"{what} ({theirs} there, {ours} here)")
    return told


def _told(value: Any) -> str:
    """A value of a plan, in words."""
    if not isinstance(value, tuple):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return (" x " if all(isinstance(v, int | float) for v in value) else " and ").join(
        map(_told, value)
    )


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
        and all(isinstance(origin.get(name, []), list) for name in ("seen_before", "unlike_before"))
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
    return here | ({"cores": len(cores())} if device.platform == "cpu" else {})


def note_device(workdir: Path) -> None:
    """Adds this device to those that the run was trained on, in provenance.json.

    With the fraction of a GPU's memory that the process may have, which it has not to itself then.
    """
    path, here = workdir / "provenance.json", device_here()
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
    if fraction and "cores" not in here:
        here = here | {"memory_fraction": fraction}
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
