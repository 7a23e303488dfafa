"""A trained network as a folder to share: weights, config, plan, and a card of what it is."""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from covid_jax import __version__
from covid_jax.config import Config, RawDirs, to_dict
from covid_jax.data.plan import Plan
from covid_jax.evaluation.folders import load_metrics
from covid_jax.evaluation.metrics import NOT_OVER_LABELS, never_predicted
from covid_jax.files import whole_file, whole_folder, write_json
from covid_jax.reporting.words import counted
from covid_jax.training.checkpoint import best_of, copy_newest
from covid_jax.training.pretrained import load_run
from covid_jax.training.provenance import channel_names, load_provenance
from covid_jax.training.state import epochs_of
from covid_jax.transfer.strategies import STRATEGIES

_BESIDE = (
    "plan.json",
    "dataset.json",
    "provenance.json",
    "metrics.json",
    "postprocessing.json",
)


def export_model(workdir: Path) -> Path:
    """Writes RUN/model, which predict and config.pretrained take like a run; whole or not at all.

    It is not there yet. Its config names no folder of this machine.

    Returns:
      its path
    """
    config, plan, params = load_run(workdir)
    final = workdir / "model"
    shared = dataclasses.replace(
        config,
        pretrained="",
        data=dataclasses.replace(config.data, prepared_dir=""),
        study=dataclasses.replace(config.study, raw=RawDirs(), scans=()),
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    origin, tested = load_provenance(workdir), workdir / "metrics.json"
    metrics = load_metrics(tested) if tested.is_file() else {}
    card = model_card(config, plan, size, origin, metrics, channel_names(workdir))
    with whole_folder(final) as partial:
        copy_newest(workdir, partial)
        for name in _BESIDE:
            if (workdir / name).is_file():
                shutil.copy(workdir / name, partial / name)
        write_json(partial / "config.json", to_dict(shared))
        (partial / "README.md").write_text(card, "utf-8")
    return final


def write_card_of_best(workdir: Path, config: Config, plan: Plan, size: int) -> None:
    """Writes RUN/best/README.md, the card of the best epoch, where the run has one.

    Args:
      config, plan, size: of the run, as model_card has them.
    """
    if best := best_of(workdir):
        origin, channels = load_provenance(workdir), channel_names(workdir)
        chosen = (
            f"{best.step // config.steps_per_epoch} of {epochs_of(config)}, the best by the "
            "moving average of the Dice of its test cases, whose scores are then no test, "
            f"{best.average:.3f}"
        )
        card = model_card(config, plan, size, origin, {}, channels, chosen)
        with whole_file(workdir / "best" / "README.md") as partial:
            partial.write_text(card, "utf-8")


def model_card(
    config: Config,
    plan: Plan,
    size: int,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    channels: Sequence[str] = (),
    epoch: str = "",
) -> str:
    """The card, in Markdown: what was trained on what, how good it is, and under which terms.

    Args:
      config, plan: of the run.
      size: number of parameters.
      provenance, metrics: what its provenance.json and metrics.json say; empty where there is none.
      channels: what they are called, in the order of a scan's files; empty where nobody knows.
      epoch: which one the parameters are of, in words, if not the last.
    """
    model, chain = config.model, [provenance]
    while before := chain[-1].get("pretrained"):
        chain.append(before)
    synthetic = {name for one in chain for name in one.get("synthetic", ())}
    licences = {name: text for one in chain for name, text in one.get("licences", {}).items()}
    data, *before_it = [list(one.get("data", ())) for one in chain]
    earlier = list(dict.fromkeys(name for names in before_it for name in names))
    epochs = epochs_of(config)
    steps = epochs * config.steps_per_epoch
    lengths = [
        f"of {of['epochs']} epochs until step {of['until_step']}"
        for of in provenance.get("earlier_lengths", ())
    ]
    named = lambda names: ", ".join(f"{'SYNTHETIC ' * (n in synthetic)}{n}" for n in names)  # noqa: E731
    what = "Pre-training" if config.pretraining else f"Strategy {config.strategy}"
    trained = f"{what} on {named(data) or 'data that is not known'}, fold {config.fold}"
    strategy = STRATEGIES[config.strategy]
    frozen = [*strategy.frozen, *config.frozen]
    frozen += [f"from epoch {epoch}: {pattern}" for epoch, pattern in config.frozen_schedule]
    imported = [one["imported"] for one in chain[1:] if "imported" in one]
    origins = [f"a network trained on {named(earlier)}"] if earlier else []
    origins += [f"a network imported from nnU-Net ({name})" for name in imported]
    several = len(plan.normalization) > 1
    names = plan.channel_names(channels)
    seen = " and ".join(
        f"_{number:04} " * several + f"{name} " + ("in HU" if how.is_ct else f"by {how.scheme}")
        for number, (name, how) in enumerate(zip(names, plan.normalization, strict=True))
    )
    facts = {
        "Trained": f"{trained}, {steps} steps of {config.data.batch_size} patches",
        "Schedule": ", then ".join([*lengths, f"of {epochs} epochs"]) if lengths else "",
        "Epoch": epoch,
        "Started from": ", ".join(origins) if strategy.needs_pretraining else "",
        "Unlike what that was trained on": "; ".join(provenance.get("unlike_before", ())),
        "First convolution, of other channels there": config.first_conv,
        "Trained on before, of its test cases": ", ".join(provenance.get("seen_before", ())),
        "Frozen": ", ".join(frozen),
        "Network": f"nnU-Net's 3D U-Net, {size:,} parameters, features {model.features_per_stage}, "
        f"patch {config.data.patch_size}, {config.label_space.told(model.num_classes)}",
        "Input": f"{seen}, resampled to {plan.spacing_mm} mm (plan {plan.hash})",
        "Made by": f"covid_jax {__version__}",
    }
    return "\n".join(
        [
            f"# {trained}",
            "",
            *([f"**SYNTHETIC data: {', '.join(sorted(synthetic))}**", ""] if synthetic else []),
            *(f"- {name}: {fact}" for name, fact in facts.items() if fact),
            "",
            "## How good it is",
            *_scores(metrics),
            "",
            "## How to use it",
            "    python -m covid_jax.predict --checkpoint=FOLDER --input=SCANS --output_dir=MASKS",
            "    python -m covid_jax.train ... --config.pretrained=FOLDER",
            "",
            *(["SCANS is a folder with NAME_0000, NAME_0001, ... of each scan.", ""] * several),
            "For research; it is no medical device.",
            "",
            "## Terms",
            *(
                f"- {name}: {_terms(licences.get(name, ''), name in synthetic)}"
                for name in dict.fromkeys(data + earlier)
            ),
            *(f"- nnU-Net's network ({name}): see where it was published" for name in imported),
            "- covid_jax: Apache-2.0. Whether the data's terms bind what is learned from it is for "
            "whoever shares this to judge.",
            "",
        ]
    )


def _scores(metrics: dict[str, Any]) -> Sequence[str]:
    if not metrics:
        return ["It was not tested."]
    labels = metrics.get("labels", {})
    of_what = f"{counted(len(metrics['cases']), 'test case')} of the fold"
    of_what += ", of the mean over labels" if labels else ""
    lines = [
        f"Mean and standard deviation over {of_what}:",
        "",
        "| metric | mean | deviation |",
        "| --- | --- | --- |",
    ]
    for name, mean in metrics["mean"].items():
        lines.append(
            f"| {name}{_of_cases(metrics, name)} | {mean:.3f} | {metrics['std'][name]:.3f} |"
        )
    if labels:
        if "volume_difference_ml" not in metrics["mean"]:  # as in runs of before
            lines += ["", f"Over labels {NOT_OVER_LABELS}."]
        lines += ["", "| label | DSC | deviation |", "| --- | --- | --- |"]
        for label, of_label in labels.items():
            of_what = f"{label}{_of_cases(of_label, 'dsc')}"
            of_what += " (in no mask, though in a reference)" if never_predicted(of_label) else ""
            dsc, deviation = (of_label[what].get("dsc", math.nan) for what in ("mean", "std"))
            lines.append(f"| {of_what} | {dsc:.3f} | {deviation:.3f} |")
    return lines


def _of_cases(metrics: dict[str, Any], name: str) -> str:
    """Of how many cases a mean is, where some have no value."""
    count = sum(case.get(name) is not None for case in metrics["cases"].values())
    return f" (of {counted(count, 'case')})" if count < len(metrics["cases"]) else ""


def _terms(licence: str, synthetic: bool) -> str:
    if synthetic:
        return "SYNTHETIC, made by this program"
    return licence or "see where it was published"
