"""What a run stands on: its prepared data, and a work directory that belongs to its config."""

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from covid_jax import __version__
from covid_jax.config import (
    OUTSIDE,
    Config,
    UNetConfig,
    check_prediction,
    differences,
    left_to_plan,
    planned_fields,
    to_dict,
)
from covid_jax.data.augment import input_size
from covid_jax.data.normalization import channel_of
from covid_jax.data.plan import Plan, load_plan, save_plan
from covid_jax.data.planner import topology_of
from covid_jax.data.preparation import prepare_phantom
from covid_jax.data.sampling import Batch, Sampler, Source, Stream
from covid_jax.data.scans import listed
from covid_jax.data.store import StoredDataset, digests, load_case, load_dataset
from covid_jax.device import cores, nvidia_driver
from covid_jax.errors import UserError
from covid_jax.files import read_json, refuse_inside, write_json
from covid_jax.label_space import labels_json, together
from covid_jax.model.conv import form_in
from covid_jax.training.checkpoint import Saved, load_config, newest_step
from covid_jax.training.parallel import local_samples, put_batch, replicate
from covid_jax.training.platform import Platform
from covid_jax.training.program import Program
from covid_jax.training.state import (
    TrainState,
    epochs_of,
    initial_state,
    learning_rate,
    refreeze,
    schedule,
)
from covid_jax.transfer.freezing import split

Tree = Any
_PHANTOM_CASES = 6
_MADE = (
    *("predictions", "metrics.json", "postprocessing.json", "model", "best"),
    *("log.jsonl", "progress.png"),
)
_MAY_CHANGE = (
    "data.prepared_dir",
    "data.workers",
    "pretrained",
    "study.",
    "inference.",
    "checkpoint_every",
    "mesh.",
    "label_space.names",
)
"""Settings that a run may be continued with although they changed: they move no parameter, or, the
mesh, by no more than the rounding of its sums."""

_MADE_BY_INFERENCE = ("metrics.json", "postprocessing.json", "model")
"""What a run makes by the settings of its inference."""

_MADE_AT_THE_END = ("predictions", *_MADE_BY_INFERENCE)
"""What a run makes of its last parameters."""

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

_MEANING = {
    "spacing_mm": "spacing in mm",
    "normalization": "intensities",
    "file_axes": "axes of the file",
    **dict.fromkeys(("median_shape", "training_cases", "topology", "version"), ""),
}
"""What a plan's fields are about; nothing where a network does not depend on them."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What training works with.

    Attributes:
      config: with the number of classes that the datasets have, and the platform's dtype.
      training, validation: where batches come from.
      mesh, platform: the devices, and what was chosen for them.
      params: before the first step.
      masks: of what is frozen, by the epoch from which each holds.
    """

    config: Config
    plan: Plan
    datasets: list[StoredDataset]
    training: Sampler
    validation: Sampler
    mesh: Mesh
    platform: Platform
    program: Program
    params: Tree
    masks: dict[int, Tree]

    def begin(self, saved: Saved | None) -> tuple[TrainState, Tree]:
        """(state, frozen) on the devices, as saved or before the first step.

        Raises:
          UserError: the checkpoint is of another network.
        """
        last = max(saved.step - 1, 0) // self.config.steps_per_epoch if saved else 0
        held = self.held_at(last)
        trainable, frozen = split(self.params, held)
        state = initial_state(trainable, self.program.transform)
        if saved:
            state, frozen = saved.state(state, held)
        return replicate((state, frozen), self.mesh)

    def held_at(self, epoch: int) -> Tree:
        """The mask of what is frozen in an epoch."""
        return self.masks[max(since for since in self.masks if since <= epoch)]

    def frozen_parameters(self, epoch: int) -> int:
        """How many parameters are frozen in an epoch."""
        _, frozen = split(self.params, self.held_at(epoch))
        return sum(leaf.size for leaf in jax.tree.leaves(frozen))

    def enter(self, epoch: int, state: TrainState, frozen: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) at the beginning of an epoch, from which on others may be frozen."""
        if epoch not in self.masks:
            return state, frozen
        refrozen = refreeze(state, frozen, self.masks[epoch], self.program.transform)
        return replicate(refrozen, self.mesh)

    def put(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch of the host on the devices."""
        return put_batch(vars(batch), self.mesh, self.config.data.batch_size)

    def batch_names(self, step: int) -> str:
        """The cases of the batch of a training step, and where they are cut."""
        samples = range(self.config.data.batch_size)
        return ", ".join(str(self.training.draw(step, sample)) for sample in samples)

    @property
    def samples(self) -> range:
        """Those of each batch that this process makes."""
        return local_samples(self.mesh, self.config.data.batch_size)


def open_data(config: Config, workdir: Path) -> tuple[Plan, list[StoredDataset]]:
    """The plan and the datasets of a run.

    The synthetic dataset `phantom` is made where it is missing, in `workdir`/data if
    config.data.prepared_dir is empty.
    """
    prepared_dir = Path(config.data.prepared_dir or workdir / "data")
    if config.data.datasets == ("phantom",):
        prepare_phantom(prepared_dir, _PHANTOM_CASES, seed=0)
    elif not config.data.prepared_dir:
        raise UserError("config.data.prepared_dir is empty: give the folder that prepare wrote")
    plan = load_plan(prepared_dir / "plan.json")
    return plan, [load_dataset(prepared_dir, name, plan.hash) for name in config.data.datasets]


def planned(config: Config, plan: Plan | None) -> Config:
    """`config` for the plan's channels, with the network, patch and batch that it leaves open.

    They are those of its pre-training, or of the plan where it starts from nothing.

    Args:
      plan: the data's; None where no data is named.

    Raises:
      UserError: there are none either, a value of the config does not fit them, or it asks for
        another number of channels.
    """
    if plan:
        config = _of_channels(config, len(plan.normalization))
    left = left_to_plan(config)
    if not left:
        return config
    before = load_config(config.pretrained) if config.pretrained else None
    of_data = plan.topology if plan else None
    topology = topology_of(before) if before else of_data
    if topology is None and plan is None:
        raise UserError(
            f"config.{left[0]} is empty, and nothing says the network: give "
            "config.data.prepared_dir, a folder with plan.json (prepare --planner), or "
            "config.pretrained, a run or an imported network"
        )
    if topology is None:
        raise UserError(
            f"config.{left[0]} is empty, and plan.json plans no network: prepare with --planner, "
            "or give it"
        )
    model, fields = config.model, {name.partition(".")[2] for name in left}
    if before and not model.features_per_stage:  # with its biases and norms
        model = dataclasses.replace(
            before.model, in_channels=model.in_channels, num_classes=model.num_classes
        )
    if "n_conv_per_stage" in fields:
        fields |= {"n_blocks_per_stage"}
    values = {name: getattr(topology, name) for name in fields}
    of_model, of_batch = (
        {name: value for name, value in values.items() if hasattr(part, name)}
        for part in (model, config.data)
    )
    batch_dice = config.loss.batch_dice or topology.batch_dice
    full = dataclasses.replace(
        config,
        model=dataclasses.replace(model, **of_model),
        data=dataclasses.replace(config.data, **of_batch),
        loss=dataclasses.replace(config.loss, batch_dice=batch_dice),
    )
    check_prediction(full)
    return full


def _of_channels(config: Config, channels: int) -> Config:
    """`config` for data of so many channels."""
    asked = config.model.in_channels
    if asked not in (channels, UNetConfig.in_channels):
        raise UserError(f"config.model.in_channels={asked}: the data has {channels}; leave it out")
    model = dataclasses.replace(config.model, in_channels=channels)
    return dataclasses.replace(config, model=model)


def network_notes(config: Config) -> list[str]:
    """Lines on whose the network, patch and batch are, where `config` leaves some to a plan."""
    given = planned_fields(config)
    if all(given.values()):
        return []
    names = {own: [n for n, is_own in given.items() if is_own is own] for own in (False, True)}
    lines = [f"by {config.pretrained or 'plan.json'}: {', '.join(names[False])}"]
    return lines + ([f"by the config: {', '.join(names[True])}"] if names[True] else [])


def fitted(config: Config, plan: Plan, datasets: list[StoredDataset]) -> Config:
    """`config` as planned, for what all datasets' labels are.

    Raises:
      UserError: it asks for another number of them, or of several datasets one has regions; as
        planned.
    """
    config = planned(config, plan)
    space = together({dataset.name: dataset.label_space for dataset in datasets})
    classes, asked = space.heads, config.model.num_classes
    if asked not in (classes, UNetConfig.num_classes):
        what = "regions" if space.regions else "background included"
        raise UserError(
            f"config.model.num_classes={asked}: the data has {classes}, {what}; leave it out"
        )
    model = dataclasses.replace(config.model, num_classes=classes)
    return dataclasses.replace(config, model=model, label_space=space)


def title(config: Config, datasets: list[StoredDataset]) -> str:
    """What a run trains on what, with SYNTHETIC where the data is."""
    names = (f"{'SYNTHETIC ' if d.synthetic else ''}{d.name}" for d in datasets)
    what = "pre-training" if config.pretraining else config.strategy
    return f"{what} on {', '.join(names)}, fold {config.fold}"


def announcement(run: Run, start: int) -> str:
    """What is trained on what, from which step on."""
    size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    frozen = run.frozen_parameters(start // run.config.steps_per_epoch)
    _, epochs, _ = schedule(run.config)
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    going_on = f"\ngoing on from the checkpoint of step {start}" if start else ""
    return (
        f"{title(run.config, run.datasets)}: {epochs} epochs of {run.config.steps_per_epoch} "
        f"steps, {size:,} parameters, {frozen:,} of them frozen, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}{several}, in {run.config.dtype}, convolutions: "
        f"{form_in(run.config.dtype, run.platform.form)}{going_on}"
        + "".join(f"\n{note}" for note in start_notes(run.config, run.plan, run.datasets))
    )


def unfreezing(run: Run, epoch: int) -> str:
    """What an epoch of config.frozen_schedule changes."""
    patterns = " ".join(pattern for since, pattern in run.config.frozen_schedule if since == epoch)
    return (
        f"from epoch {epoch}: {patterns}; {run.frozen_parameters(epoch):,} parameters are frozen, "
        f"{run.frozen_parameters(epoch - 1):,} before"
    )


def start_notes(config: Config, plan: Plan, datasets: Sequence[StoredDataset]) -> list[str]:
    """Lines on where a run starts from: what other_plan says, and who is seen_before."""
    notes = other_plan(config, plan)
    if cases := seen_before(config, datasets):
        notes.append(
            f"warning: {config.pretrained} was trained on {len(cases)} of the test cases of fold "
            f"{config.fold} ({listed(cases)}); scores of them are no test"
        )
    return notes


def other_plan(config: Config, plan: Plan) -> list[str]:
    """A line that says in what the data differs from what the pre-trained network was trained on.

    A network that goes on with other spacings or intensities than it knows starts from less.
    """
    if not config.pretrained:
        return []
    before, here = vars(load_plan(Path(config.pretrained) / "plan.json")), vars(plan)
    differ = {_MEANING.get(name, name) for name in here if here[name] != before[name]} - {""}
    if not differ:
        return []
    told = []
    for what in sorted(differ):
        names = [name for name in here if _MEANING.get(name, name) == what]
        theirs, ours = (_told(values, names) for values in (before, here))
        told.append(f"{what} ({theirs} there, {ours} here)")
    return [
        f"note: {config.pretrained} was trained on data of another plan than this one's: "
        f"{'; '.join(told)}"
    ]


def _told(values: dict[str, Any], names: Sequence[str]) -> str:
    rounded = (
        [f"{v:.4g}" if isinstance(v, float) else str(v) for v in _tuple(values[name])]
        for name in names
    )
    return " ".join(itertools.chain(*rounded))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def samplers(
    config: Config, datasets: list[StoredDataset], masked: tuple[int, ...] = ()
) -> tuple[Sampler, Sampler]:
    """The samplers of the fold's training and test cases.

    Each dataset's labels become classes of their own: multi_lesion has one for each lesion. Those
    of which regions are made stay what they are.
    Training patches come with as much around them as augmentation needs, and where there are
    `masked` channels, with what is OUTSIDE.
    """
    patch_size = config.data.patch_size
    cut_size = {
        "training": input_size(patch_size) if config.data.augment else patch_size,
        "validation": patch_size,
    }

    def sampler(stream: Stream) -> Sampler:
        sources, first = [], 1
        for dataset in datasets:
            split = dataset.split(config.fold)
            # Without cases of their own the test cases': by these patches best/ alone is selected,
            # and what is tested is the last epoch (nnU-Net: checkpoint_final).
            names = split.train if stream == "training" else split.validation or split.test
            count = 0 if dataset.label_space.regions else len(dataset.labels)
            classes = tuple(range(first, first + count))
            sources.append(Source(tuple(load_case(dataset, name) for name in names), classes))
            first += count
        return Sampler(
            tuple(sources),
            config.model.num_classes,
            patch_size,
            cut_size[stream],
            config.data.batch_size,
            config.data.foreground_fraction,
            config.seed,
            stream,
            OUTSIDE if masked and config.data.augment and stream == "training" else 0,
        )

    return sampler("training"), sampler("validation")


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


def claim_workdir(
    workdir: Path,
    config: Config,
    plan: Plan,
    datasets: Sequence[StoredDataset] = (),
    accept_changes: bool = False,
) -> None:
    """Writes what a run is by, or checks that what is there is this run's.

    That is config.json, plan.json, provenance.json, and dataset.json for the names of its classes.

    config.json always says what the run goes on with: settings that move no parameter may change,
    and the number of epochs, which is told; provenance.json keeps the one before.
    With `accept_changes` the run's provenance may differ from the one that is there. The device
    may, but for config.deterministic: another one rounds otherwise.

    Raises:
      UserError: the work directory belongs to a run with another config, plan or provenance; or
        it was tested with other settings of inference.
    """
    check_settings(workdir, config, plan)
    is_new = not (workdir / "config.json").is_file()
    origin, path = provenance(config, datasets), workdir / "provenance.json"
    known = load_provenance(workdir)
    devices = known.get("devices", [])
    before = config if is_new else load_config(workdir)
    kept = _earlier_lengths(workdir, config, before, known)
    origin |= kept
    changed = _changes(origin, known | kept) if known else []
    if changed and accept_changes:
        for name in ("metrics.json", "postprocessing.json"):
            (workdir / name).unlink(missing_ok=True)
        shutil.rmtree(workdir / "model", ignore_errors=True)
        print(f"{workdir}: goes on with changes ({'; '.join(changed)}); its test is done again")
    if known and not accept_changes:
        what = "data or program"
        if not changed and config.deterministic and devices:
            changed, what = differences(device_here(), devices[-1]), "the device"
        if changed:
            raise UserError(
                f"{workdir}: {what} changed since the run began ({'; '.join(changed)}); "
                "use another --workdir, or --accept_changes to go on"
            )
    if not (known or is_new):
        print(f"note: {path} is missing, which told of changed data; it is made anew")
    if known != (origin := origin | {"devices": devices}):
        write_json(path, origin)
    if is_new:
        save_plan(workdir / "plan.json", plan)
    classes = workdir / "dataset.json"
    if datasets and (told := described(config, plan)) != read_json(classes):
        write_json(classes, told)
    if epochs_of(before) != epochs_of(config):
        print(_going_on(workdir, config, before))
    if is_new or before != config:
        write_json(workdir / "config.json", to_dict(config))


def _earlier_lengths(
    workdir: Path, config: Config, before: Config, known: dict[str, Any]
) -> dict[str, Any]:
    """For provenance.json, how many epochs a run was to have until which step, if not always these.

    `before` is its config, and `known` its provenance, up to now.
    """
    lengths, step = list(known.get("earlier_lengths", ())), newest_step(workdir)
    earlier = {"epochs": epochs_of(before), "until_step": step}
    if step and epochs_of(before) != epochs_of(config) and lengths[-1:] != [earlier]:
        lengths.append(earlier)
    return {"earlier_lengths": lengths} if lengths else {}


def _going_on(workdir: Path, config: Config, before: Config) -> str:
    """A line on a run that goes on to another number of epochs."""
    first, epochs, total = schedule(config)
    epoch = newest_step(workdir) // config.steps_per_epoch
    told = f"{workdir}: going on to {epochs} epochs instead of {epochs_of(before)}"
    if epoch == epochs:
        return f"{told}, which are trained"
    rate = learning_rate(config, first + epoch)
    return f"{told}: its schedule is over {total} now, learning rate {rate:.4g} in epoch {epoch}"


def described(config: Config, plan: Plan) -> dict[str, Any]:
    """The dataset.json, as nnU-Net has it, of what a run predicts.

    Classes get names where the config, which is of before it knew them, has none.
    """
    return {
        "channel_names": {
            str(k): channel_of(how.scheme) for k, how in enumerate(plan.normalization)
        },
        **labels_json(config.label_space, config.model.num_classes),
        "file_ending": ".nii.gz",
    }


def check_place(workdir: Path, config: Config) -> None:
    """Raises a UserError where `workdir` is no run and holds what a run would write over.

    Or where it is the best epoch of another, or lies in the prepared data.
    """
    if workdir.name == "best" and (workdir.parent / "config.json").is_file():
        raise UserError(
            f"{workdir}: is the best epoch of the run {workdir.parent}, and that one goes on; "
            "give another --workdir"
        )
    if config.data.prepared_dir:
        refuse_inside(workdir, Path(config.data.prepared_dir), "--workdir")
    held = [name for name in _MADE if (workdir / name).exists()]
    if held and not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir}: is no run, it has no config.json, and holds {', '.join(held)}, which a "
            "run writes over; give another --workdir"
        )


def _changes(ours: dict[str, Any], known: dict[str, Any]) -> list[str]:
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
        lines += [f"of its pre-training {line}" for line in _changes(*before)]
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


def as_begun(config: Config, workdir: Path) -> Config:
    """`config` with the dtype of the run in `workdir`, where it says "auto" and there is one.

    So a run that began on a GPU goes on as it began, wherever that is.
    """
    if config.dtype != "auto" or not (workdir / "config.json").is_file():
        return config
    return dataclasses.replace(config, dtype=load_config(workdir).dtype)


def check_settings(workdir: Path, config: Config, plan: Plan) -> None:
    """Raises a UserError where `workdir` belongs to a run with another config or plan.

    And where what was made with other settings of inference, or after another number of epochs, is
    there already; or where more epochs are trained than there are to be.
    """
    if not (workdir / "config.json").is_file():
        return
    every = differences(to_dict(config), to_dict(load_config(workdir)))
    length = "pretraining_epochs: " if config.pretraining else "epochs: "
    changed = [line for line in every if not line.startswith((*_MAY_CHANGE, length))]
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); "
            "use another --workdir, or delete it to start over"
        )
    otherwise = [line for line in every if line.startswith("inference.")]
    made = [name for name in _MADE_BY_INFERENCE if (workdir / name).exists()]
    if otherwise and made:
        raise UserError(
            f"{workdir}: {', '.join(made)} there are of other settings ({'; '.join(otherwise)}); "
            "delete them to have them made with these"
        )
    if other := [line for line in every if line.startswith(length)]:
        _check_length(workdir, config, other[0])
    if load_plan(workdir / "plan.json").hash != plan.hash:
        raise UserError(f"{workdir} holds a run on data of another plan; use another --workdir")


def _check_length(workdir: Path, config: Config, told: str) -> None:
    """Raises a UserError where a run cannot go on to another number of epochs."""
    trained = -(-newest_step(workdir) // config.steps_per_epoch)
    if epochs_of(config) < trained:
        raise UserError(
            f"{workdir}: {trained} epochs are trained, and {told}; give as many or more, or "
            "another --workdir"
        )
    made = [name for name in _MADE_AT_THE_END if (workdir / name).exists()]
    if made:
        raise UserError(
            f"{workdir}: {', '.join(made)} there are of another number of epochs ({told}); delete "
            "them to go on, and the end makes them anew"
        )
