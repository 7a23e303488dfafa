"""Renders tables and figures of README.md and of pages in docs from benchmarks/results/*.json.

    python -m benchmarks.report

What stands between <!-- NAME --> and <!-- /NAME --> is replaced by what the files NAME*.json say,
each with the command, the versions and the machine it comes from; NAME begins with that of a
benchmark. No figure is typed in by hand.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.harness import gpu_times, tables
from benchmarks.harness.tables import Line
from covid_jax.command import as_process, run_command

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("benchmarks", "data", "scaling", "study", "transfer")
    ),
)

TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "epoch_time_gpu": lambda content: tables.gpu_epoch_table(
        gpu_times.with_epochs(content["results"]), content["paper"]
    ),
    "epoch_time": lambda content: tables.epoch_time_table(content["results"], content["paper"]),
    "freezing": lambda content: tables.freezing_table(content["results"]),
    "fine_tuning": lambda content: tables.fine_tuning_table(content["results"]),
    "convolution": lambda content: tables.convolution_table(content["results"]),
    "inference": lambda content: tables.inference_table(content["results"]),
    "scaling": lambda content: tables.scaling_table(content["results"]),
    "checkpoints": lambda content: tables.checkpoints_table(content["results"]),
    "grid_hours": lambda content: tables.grid_hours_table(content["results"]),
    "meshes": lambda content: tables.meshes_table(content["results"]),
    "kernels_gpu": lambda content: tables.gpu_kernels_table(content["results"]),
    "kernels": lambda content: tables.kernels_table(content["results"]),
    "input_pipeline": lambda content: tables.input_pipeline_table(
        content["results"], content["memory"]
    ),
    "preparation": lambda content: tables.preparation_table(content["results"]),
    "prediction_memory": lambda content: tables.prediction_memory_table(content["results"]),
    "gpu_program": lambda content: tables.gpu_program_table(content["results"]),
    "gpu_predictions": lambda content: tables.gpu_predictions_table(content["results"]),
    "correctness": lambda content: tables.correctness_table(content["results"]),
    "variants": lambda content: tables.variants_table(content["results"]),
    "real_epoch": lambda content: tables.real_epoch_table(content["results"]),
    "study": lambda content: tables.study_table(content["results"]),
    "layouts": lambda content: tables.layouts_table(content["results"]),
}
"""By how names of result files begin; of several the first."""


def results(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Stem and content of every result file whose name begins with `name`."""
    return [
        (path.stem, json.loads(path.read_text())) for path in sorted(RESULTS.glob(f"{name}*.json"))
    ]


def section(name: str, figures: str) -> str:
    """The results `name` as Markdown; `figures` is the folder of the pictures, from the page."""
    kind = next(kind for kind in TABLES if name.startswith(kind))
    parts = []
    for stem, content in results(name):
        versions = content["versions"]
        packages = ", ".join(f"{p} {versions[p]}" for p in ("jax", "torch") if p in versions)
        machine = f"{content['device']}, {content['processor']}, {content['cores']} cores"
        parts.append(f"`{content['command']}`  \n{machine}; {packages}\n")
        parts.append(f"```\n{TABLES[kind](content)}\n```\n")
        if kind in FIGURES:
            parts.append(f"![{kind}]({figures}{stem}.svg)\n")
    return "\n".join(parts)


def rendered(page: Path) -> str:
    """The text of `page` with every marked part replaced."""
    text, figures = page.read_text(), "" if page.parent.name == "docs" else "docs/"
    for name in marked(text):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = before + start + section(name, figures) + end + rest.partition(end)[2]
    return text


def marked(text: str) -> list[str]:
    """The names between markers of a page."""
    return re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)


def draw_freezing(lines: Sequence[Line]) -> Figure:
    """The step's seconds as a share of full training, and peak memory, for each frozen part."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
    parts = list(dict.fromkeys(line["part"] for line in lines))
    names = {"optax recipe, clipped inside": "--", "optax recipe, clipped in front": ":"}
    for variant in dict.fromkeys(line["variant"] for line in lines):
        along = [line for line in lines if line["variant"] == variant]
        is_peer = along[0]["framework"] == "torch"
        label = f"PyTorch, {variant}" if is_peer else variant if variant in names else "covid_jax"
        style = {"color": "#e07b39" if is_peer else "#31688e", "linestyle": names.get(variant, "-")}
        left.plot(parts, [line["share_of_full"] for line in along], "o", label=label, **style)
        if along[0]["peak_bytes"]:
            memory = [line["peak_bytes"] / 1e6 for line in along]
            right.plot(parts, memory, "o", label=label, **style)
    full = lines[0]["tflop_per_step"]
    own = [line for line in lines if line["variant"] == lines[0]["variant"]]
    work = [line["tflop_per_step"] / full for line in own]
    left.plot(parts, work, color="0.6", label="operations (XLA's count)")
    left.set(ylabel="of full training", ylim=(0, None))
    right.set(ylabel="peak MB of the step", ylim=(0, None))
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.tick_params(axis="x", labelrotation=45, labelsize=8)
        plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    figure.suptitle("A training step with more and more of the network frozen", fontsize=10)
    figure.tight_layout()
    return figure


def draw_scaling(lines: Sequence[Line]) -> Figure:
    """Seconds along each axis, both logarithmic, with the fitted exponent; of meshes, bars."""
    if lines[0]["axis"] == tables.MESH:
        return draw_meshes(lines)
    names = list(dict.fromkeys(line["axis"] for line in lines))
    figure, all_axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.2), squeeze=False, layout="constrained"
    )
    for axes, name in zip(all_axes[0], names, strict=True):
        along = [line for line in lines if line["axis"] == name]
        value, seconds = ([line[field] for line in along] for field in ("value", "seconds"))
        axes.plot(value, seconds, "o-")
        axes.set(xscale="log", yscale="log", xlabel=name.replace(", ", ",\n"), ylabel="seconds")
        axes.set(ylim=(min(seconds) / 2, max(seconds) * 2))
        for axis, at in ((axes.xaxis, value), (axes.yaxis, seconds)):
            thousands = min(at) >= 1e4
            names = [f"{p / 1e3:.0f}k" if thousands else f"{p:.3g}" for p in at]
            axis.set_ticks(at, names, fontsize=8)
            axis.set_minor_locator(NullLocator())
        axes.set_title(f"exponent {tables.exponent(along):.2f}", fontsize=10)
    return figure


def draw_meshes(lines: Sequence[Line]) -> Figure:
    """Seconds a step and memory a device, of each mesh."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
    names = [
        f"{line['mesh']['data']} x {line['mesh']['space']} ({line['variant']})" for line in lines
    ]
    for axes, label, values in (
        (left, "seconds a step", [line["seconds"] for line in lines]),
        (right, "peak MB a device", [line["peak_bytes"] / 1e6 for line in lines]),
    ):
        axes.bar_label(axes.barh(names, values, color="#31688e"), fmt="%.3g", padding=2, fontsize=8)
        axes.set(xlabel=label, xlim=(0, 1.15 * max(values)))
    left.invert_yaxis()
    left.set_ylabel("data x space")
    return figure


def draw_memory(lines: Sequence[Line]) -> Figure:
    """Memory that a device needs for the step, of each strategy on each mesh."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    found = [x for x in lines if x["dtype"] == "float32" and "rounded" not in x["mesh"]]
    meshes = list(dict.fromkeys(line["mesh"] for line in found))
    for strategy in dict.fromkeys(line["strategy"] for line in found):
        of_mesh = {line["mesh"]: line for line in found if line["strategy"] == strategy}
        megabytes = [of_mesh[mesh]["peak_bytes"] / 1e6 for mesh in meshes]
        axes.plot(meshes, megabytes, "o-", label=strategy, alpha=0.8)
    axes.set(xlabel="mesh, data x space", ylabel="MB a device", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure


def draw_prediction_memory(lines: Sequence[Line]) -> Figure:
    """Peak memory of a mask by the slices of its scan."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for coarser in dict.fromkeys(line["coarser"] for line in lines):
        found = [line for line in lines if line["coarser"] == coarser]
        label = "plan on the scan's grid" if coarser == 1 else f"plan {coarser:g} x coarser"
        slices, peaks = zip(*((x["slices"], x["peak_bytes"] / 1e9) for x in found), strict=True)
        axes.plot(slices, peaks, "o-", label=label)
    slices, whole = zip(*((x["slices"], x["all_at_once_bytes"] / 1e9) for x in found), strict=True)
    axes.plot(slices, whole, ":", color="0.5", label="all probabilities at once (computed)")
    axes.axhline(8, color="0.8", linewidth=0.8)
    axes.set(xlabel=f"slices of {found[0]['plane']} x {found[0]['plane']}", ylabel="GB")
    axes.set(ylim=(0, None), title=f"{found[0]['classes']} classes")
    axes.legend(fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Sequence[Line]], Figure]] = {
    "freezing": draw_freezing,
    "scaling": draw_scaling,
    "meshes": draw_memory,
    "prediction_memory": draw_prediction_memory,
}


def work() -> None:
    """Renders every page and figure."""
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "covid_jax"  # the same file each time
    for name, draw in FIGURES.items():
        for stem, content in results(name):
            figure = draw(content["results"])
            figure.savefig(ROOT / "docs" / f"{stem}.svg", metadata={"Date": None})
            plt.close(figure)
    for page in PAGES:
        page.write_text(rendered(page))
        print(page.relative_to(ROOT))


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, flags.FlagValues(), __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
