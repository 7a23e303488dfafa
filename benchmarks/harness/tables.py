"""The tables of the benchmarks, from what stands in their result files."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Line = dict[str, Any]
NOISY = "  noisy: turns spread over 10 %"
MESH = "mesh, data x space"
"""The axis of scaling.json along which devices grow."""
_EXCHANGES = ("collective-permute", "all-gather")
_CUDNN = {
    "__cudnn$convForward": "forward",
    "__cudnn$convBiasActivationForward": "forward",
    "__cudnn$convBackwardInput": "to input",
    "__cudnn$convBackwardFilter": "to kernel",
}


def epoch_time_table(lines: Sequence[Line], paper: dict[str, float]) -> str:
    """One row a strategy: ours, the best of torch, and the paper's V100; then what is real.

    A table for each dtype, patch and network, with a heading where there are several.
    """
    return _tables(lines, lambda group: _epoch_time_table(group, paper))


def _tables(lines: Sequence[Line], table: Callable[[Sequence[Line]], str]) -> str:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        patch = " x ".join(map(str, line["patch_size"]))
        # Results of before say no network: theirs is the benchmark's.
        told = (line["dtype"], patch, line.get("network"))
        groups.setdefault(", ".join(filter(None, told)), []).append(line)
    if len(groups) == 1:
        return table(lines)
    return "\n\n".join(f"{name}\n{table(group)}" for name, group in groups.items())


def _epoch_time_table(lines: Sequence[Line], paper: dict[str, float]) -> str:
    def best(framework: str, strategy: str, field: str) -> float:
        found = [
            line.get(field, float("nan"))  # a benchmark that was cut short has no validation steps
            for line in lines
            if (line["framework"], line["strategy"]) == (framework, strategy)
            and not line["variant"].endswith("augmented")
        ]
        return min(found, default=float("nan"))

    strategies = list(dict.fromkeys(line["strategy"] for line in lines))
    head = f"{'strategy':<16}{'s/step':>9}{'torch':>9}{'ratio':>7}{'forward':>9}{'s/epoch':>10}"
    rows = [head + f"{'to scratch':>12}{'paper s/epoch':>15}{'to scratch':>12}"]
    for strategy in strategies:
        step, peer = (best(f, strategy, "seconds_per_step") for f in ("jax", "torch"))
        forward = [best(f, strategy, "seconds_per_validation_step") for f in ("jax", "torch")]
        epoch = best("jax", strategy, "seconds_per_epoch")
        noisy = any(line["noisy"] for line in lines if line["strategy"] == strategy)
        row = (
            f"{strategy:<16}{step:>9.3g}{peer:>9.3g}{step / peer:>7.2f}"
            f"{forward[0] / forward[1]:>9.2f}{epoch:>10.1f}"
            f"{step / best('jax', 'scratch', 'seconds_per_step'):>12.2f}"
            f"{paper[strategy]:>15.0f}{paper[strategy] / paper['scratch']:>12.2f}"
        )
        rows.append(row.replace("nan", "  -") + (NOISY if noisy else ""))
    rows.append("ratio, forward: our training and validation step over the best of torch")
    busy = {
        strategy: [best(f, strategy, "processor_seconds") for f in ("jax", "torch")]
        for strategy in strategies
    }
    rows += [
        f"{strategy}: {step:.3g} processor seconds a step, torch {peer:.3g}: {step / peer:.2f}"
        for strategy, (step, peer) in busy.items()
        if step / peer > 0
    ]
    told = dict.fromkeys(line["network"] for line in lines if "network" in line)
    rows += [f"network: {name}" for name in told]
    fastest = min(
        (line for line in lines if line["framework"] == "jax"), key=lambda x: x["seconds_per_step"]
    )
    rows.append(
        f"{fastest['strategy']}, {fastest['dtype']}: {fastest['tflop_per_second']:.3g} TFLOP/s, "
        f"{fastest['matrix_share']:.0%} of a large matrix product's; "
        f"{fastest['bandwidth_share']:.0%} of the memory's bandwidth"
    )
    augmented = [line for line in lines if line["variant"].endswith("augmented")]
    for dummy, real in zip(augmented[::2], augmented[1::2], strict=True):
        share = real["seconds_per_step"] / dummy["seconds_per_step"]
        rows.append(f"{real['strategy']}: with the input pipeline {share:.3f} of dummy batches")
    return "\n".join(rows)


def gpu_epoch_table(lines: Sequence[Line], paper: dict[str, float]) -> str:
    """epoch_time of a GPU: ours, PyTorch's faster eager layout, and where it is there compiled.

    The seconds of an epoch are those of gpu_times.with_epochs. Tables as epoch_time_table's.
    """
    return _tables(lines, lambda group: _gpu_epoch_table(group, paper))


def _gpu_epoch_table(lines: Sequence[Line], paper: dict[str, float]) -> str:
    def peer_of(strategy: str, compiled: bool) -> Line | None:
        found = [
            line
            for line in lines
            if (line["framework"], line["strategy"]) == ("torch", strategy)
            and ("compiled" in line["variant"]) == compiled
        ]
        return min(found, key=lambda line: line["seconds_per_step"], default=None)

    own = {line["strategy"]: line for line in lines if line["framework"] == "jax"}
    peers = {"torch": False}
    if any("compiled" in line["variant"] for line in lines):
        peers["compiled"] = True
    rows = [
        f"{'strategy':<16}{'ms/step':>8}"
        + "".join(f"{name:>10}{'ratio':>7}" for name in peers)
        + f"{'s/epoch':>10}{'to scratch':>12}{'paper s/epoch':>15}{'to scratch':>12}"
    ]
    notes = []
    for strategy, line in own.items():
        step = line["seconds_per_step"]
        row = f"{strategy:<16}{1e3 * step:>8.1f}"
        for compiled in peers.values():
            peer = peer_of(strategy, compiled)
            spent = peer["seconds_per_step"] if peer else float("nan")
            row += f"{1e3 * spent:>10.1f}{step / spent:>7.2f}".replace("nan", "  -")
        taken = "seconds_per_validation_step" not in line
        row += f"{line['seconds_per_epoch']:>9.2f}{'*' if taken else ' '}"
        row += f"{step / own['scratch']['seconds_per_step']:>12.2f}"
        row += f"{paper[strategy]:>15.0f}{paper[strategy] / paper['scratch']:>12.2f}"
        noisy = any(one["noisy"] for one in lines if one["strategy"] == strategy)
        rows.append(row + (NOISY if noisy else ""))
        if (peer := peer_of(strategy, False)) is None:
            continue
        # With every tap of every convolution, as the older files count, and not XLA's way.
        rate = line["tflop_per_step_counted"] / step
        note = (
            f"{strategy}, {line['dtype']}: {rate:.0f} TFLOP/s, "
            f"{rate / line['matrix_tflop_per_second']:.0%} of a large matrix product's; "
            f"{line['peak_bytes'] / 1e9:.1f} GB at most "
            f"({peer['peak_bytes'] / 1e9:.1f}), {line['joules']:.1f} J a step "
            f"({peer['joules']:.1f})"
        )
        if not taken:
            both = [1e3 * one["seconds_per_validation_step"] for one in (line, peer)]
            note += ", a validation step {:.1f} ms ({:.1f})".format(*both)
        notes.append(note)
    rows.append("torch: eager, the faster of contiguous and channels-last; ratio: ours over it")
    if any("seconds_per_validation_step" not in line for line in own.values()):
        rows.append("*: training steps measured; validation steps taken to be as in float32")
    return "\n".join([*rows, *notes, "in brackets: torch's"])


def convolution_table(lines: Sequence[Line]) -> str:
    """GFLOP/s of the three passes of each shape in each form; and the seconds of all together."""
    forms = list(dict.fromkeys(line["form"] for line in lines))
    rows = [f"{'GFLOP/s: forward / to input / to kernel':<48}" + "".join(f"{f:>22}" for f in forms)]
    cells: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        what = (
            f"{line['count']} x {line['channels']}->{line['features']} "
            f"{'x'.join(map(str, line['kernel_size']))} / {'x'.join(map(str, line['strides']))} "
            f"on {'x'.join(map(str, line['size']))}"
        )
        of_form = cells.setdefault(what, {}).setdefault(line["form"], [])
        of_form.append(f"{line['gflop_per_second']:.0f}")
    for what, by_form in cells.items():
        rows.append(
            f"{what:<48}" + "".join(f"{' / '.join(by_form.get(form, ['-'])):>22}" for form in forms)
        )
    for name in (*dict.fromkeys(line["pass"] for line in lines), "all"):
        seconds = [
            sum(
                line["count"] * line["seconds"]
                for line in lines
                if line["form"] == form and name in (line["pass"], "all")
            )
            for form in forms
        ]
        rows.append(f"{'seconds, ' + name:<48}" + "".join(f"{s:>22.3f}" for s in seconds))
    return "\n".join(rows)


def freezing_table(lines: Sequence[Line]) -> str:
    """One row a frozen part: seconds (of full training) and MB of each candidate."""
    candidates = ("ours", "recipe, inside", "recipe, in front", "torch")
    rows = [f"{'frozen':<24}{'TFLOP':>8}" + "".join(f"{name:>24}" for name in candidates)]
    for name in dict.fromkeys(line["part"] for line in lines):
        here = [line for line in lines if line["part"] == name]
        row = f"{name:<24}{here[0]['tflop_per_step']:>8.3g}"
        for line in here:
            peak = f"{line['peak_bytes'] / 1e6:.0f} MB" if line["peak_bytes"] else ""
            cell = f"{line['seconds_per_step']:.3g} s ({line['share_of_full']:.2f}) {peak}"
            row += f"{cell:>24}"
        noisy = any(line["noisy"] for line in here)
        rows.append(row + (NOISY if noisy else ""))
    return "\n".join([*rows, "in brackets: of full training, in the same turns"])


def inference_table(lines: Sequence[Line]) -> str:
    """One row a scan and way of predicting."""
    rows = [
        f"{'scan':<28}{'voxels':>14}{'mirrored':>10}{'s':>9}{'torch':>9}{'ratio':>7}{'unlike':>9}"
    ]
    for line in lines:
        if line["framework"] != "jax":
            continue
        key = (line["scan"], line["mirror"])
        peers = [p for p in lines if p["framework"] == "torch" and (p["scan"], p["mirror"]) == key]
        row = f"{line['scan']:<28}{'x'.join(map(str, line['shape'])):>14}{line['mirror']!s:>10}"
        row += f"{line['seconds']:>9.3g}"
        for peer in peers:
            ratio = line["seconds"] / peer["seconds"]
            row += f"{peer['seconds']:>9.3g}{ratio:>7.2f}{peer['voxels_unlike_ours']:>9.1e}"
        noisy = any(one["noisy"] for one in (line, *peers))
        rows.append(row + (NOISY if noisy else ""))
    return "\n".join(rows)


def exponent(lines: Sequence[Line]) -> float:
    """P of seconds ~ value^p, by least squares over the logarithms."""
    value, seconds = (np.log([line[name] for line in lines]) for name in ("value", "seconds"))
    return float(np.polyfit(value, seconds, 1)[0])


def scaling_table(lines: Sequence[Line]) -> str:
    """The seconds along each axis, and the exponent."""
    rows = []
    for axis in dict.fromkeys(line["axis"] for line in lines):
        along = [line for line in lines if line["axis"] == axis]
        if axis == MESH:
            points = [
                f"{line['mesh']['data']} x {line['mesh']['space']} ({line['variant']}) "
                f"{line['seconds']:.3g} s {line['peak_bytes'] / 1e6:.0f} MB a device"
                for line in along
            ]
        else:
            points = [f"{line['value']:g}: {line['seconds']:.3g} s" for line in along]
            points.append(f"seconds ~ value^{exponent(along):.2f}")
        rows.append(f"{axis}: {', '.join(points)}")
    return "\n".join(rows)


def kernels_table(lines: Sequence[Line], first: int = 20) -> str:
    """The first operations of a step, and the sums by kind."""
    rows = [f"{'ms':>8}{'share':>8}{'MB':>8}{'GB/s':>8}  operation, from"]
    for line in lines[:first]:
        rate = line["bytes"] / line["seconds"] / 1e9 if line["seconds"] else 0.0
        rows.append(
            f"{1e3 * line['seconds']:>8.2f}{line['share']:>8.1%}{line['bytes'] / 1e6:>8.1f}"
            f"{rate:>8.1f}  {line['opcode'].removeprefix('covid_jax_')} {_origin(line['jax'])}"
        )
    kinds: dict[str, float] = {}
    for line in lines:
        kind = line["opcode"].removeprefix("covid_jax_")
        kinds[kind] = kinds.get(kind, 0.0) + line["seconds"]
    sums = sorted(kinds.items(), key=lambda item: -item[1])[:8]
    rows.append("by kind: " + ", ".join(f"{kind} {1e3 * spent:.0f} ms" for kind, spent in sums))
    return "\n".join(rows)


def gpu_kernels_table(lines: Sequence[Line]) -> str:
    """Milliseconds by stage and pass of cuDNN's convolutions, and of what else the trace names."""
    passes = tuple(dict.fromkeys(_CUDNN.values()))
    spent: dict[str, dict[str, float]] = {}
    moved: dict[str, float] = {}
    for line in lines:
        stage = re.search(r"stage_\d", line["jax"])
        if kind := _CUDNN.get(line["opcode"]):
            name = f"convolutions, {stage.group().replace('_', ' ') if stage else 'other'}"
        else:
            kind, name = "sum", "products" if "cublas" in line["opcode"] else "fusions"
        of = spent.setdefault(name, dict.fromkeys((*passes, "sum"), 0.0))
        for column in {kind, "sum"}:
            of[column] += 1e3 * line["seconds"]
        moved[name] = moved.get(name, 0.0) + line["bytes"] / 1e9
    convolutions = sorted(name for name in spent if name.startswith("conv"))
    others = [name for name in ("products", "fusions") if name in spent]
    rows = [f"{'ms':<24}" + "".join(f"{name:>11}" for name in (*passes, "sum")) + f"{'GB':>8}"]
    for name in (*convolutions, *others):
        cells = [spent[name][column] for column in (*passes, "sum")]
        rows.append(
            f"{name:<24}"
            + "".join(f"{cell:>11.2f}" if cell else f"{'':>11}" for cell in cells)
            + f"{moved[name]:>8.2f}"
        )
    totals = [sum(of[column] for of in spent.values()) for column in (*passes, "sum")]
    rows.append(
        f"{'all that is named':<24}"
        + "".join(f"{total:>11.2f}" for total in totals)
        + f"{sum(moved.values()):>8.2f}"
    )
    rows.append("named: by XLA's profiler; kernels that run inside CUDA graphs have no name there")
    return "\n".join(rows)


def correctness_table(lines: Sequence[Line]) -> str:
    """The losses of training steps beside PyTorch's stored ones."""
    lines = [line for line in lines if "PyTorch" in line.get("what", "PyTorch")]
    rows = [f"{'loss of step':<12}" + "".join(f"{k:>10}" for k in range(len(lines[0]["stored"])))]
    found = {"PyTorch": lines[0]["stored"], **{line["dtype"]: line["losses"] for line in lines}}
    worst = {line["dtype"]: f"{line['worst']:>12.1e}" for line in lines}
    rows[0] += f"{'furthest':>12}"
    for name, losses in found.items():
        cells = "".join(f"{loss:>10.5f}" for loss in losses)
        rows.append(f"{name:<12}{cells}{worst.get(name, '')}")
    return "\n".join([*rows, "furthest: relative difference to PyTorch's, of the worst step"])


def layouts_table(lines: Sequence[Line]) -> str:
    """The step in each layout of its convolutions, in the same turns."""
    first = lines[0]["seconds_per_step"]
    rows = [f"{'layout':<24}{'ms/step':>9}{'ratio':>7}{'J a step':>10}"]
    for line in lines:
        name = "XLA's own" if "XLA" in line["variant"] else "channels last"
        spent = line["seconds_per_step"]
        rows.append(f"{name:<24}{1e3 * spent:>9.1f}{spent / first:>7.2f}{line['joules']:>10.1f}")
    return "\n".join(rows)


def gpu_predictions_table(lines: Sequence[Line]) -> str:
    """One column a strategy, ms: the measured step, what each change is to gain, what comes out."""
    width = 26
    rows = [f"{'PREDICTED, ms a step':<40}" + "".join(f"{x['strategy']:>{width}}" for x in lines)]

    def row(name: str, cells: Sequence[str]) -> None:
        rows.append(f"{name:<40}" + "".join(f"{cell:>{width}}" for cell in cells))

    def milliseconds(field: str, sign: str = "") -> list[str]:
        return [f"{1e3 * line[field]:{sign}.2f}" for line in lines]

    row("measured, channels last", milliseconds("seconds_measured"))
    keys = dict.fromkeys((p["channels"], p["pass"]) for line in lines for p in line["passes"])
    for channels, name in sorted(keys, key=lambda key: -key[0]):
        cells = []
        for line in lines:
            found = [p for p in line["passes"] if (p["channels"], p["pass"]) == (channels, name)]
            gains = [1e3 * (p["seconds_packed"] - p["seconds"]) for p in found]
            cells += [
                f"{p['times']} x {gain:.3f} = {p['times'] * gain:.2f}"
                for p, gain in zip(found, gains, strict=True)
            ] or ["-"]
        row(f"packed {channels} -> 32, {name}", cells)
    sizes = [f"{x['bytes_then'] / 1e9:.2f} -> {x['bytes_now'] / 1e9:.2f} GB" for x in lines]
    moved = milliseconds("seconds_of_bytes", "+")
    row("outside of convolutions", [f"{a}: {b}" for a, b in zip(sizes, moved, strict=True)])
    row("PREDICTED", milliseconds("seconds_predicted"))
    first = lines[0]["seconds_predicted"]
    row("of scratch", [f"{line['seconds_predicted'] / first:.3f}" for line in lines])
    more = f"augmentation, {lines[0]['augmentation_bytes'] / 1e9:.2f} GB"
    row(more, milliseconds("augmentation_seconds", "+"))
    both = [line["seconds_predicted"] + line["augmentation_seconds"] for line in lines]
    row("PREDICTED, augmented", [f"{1e3 * seconds:.2f}" for seconds in both])
    row("config.deterministic", ["not predictable"] * len(lines))
    return "\n".join(rows)


def input_pipeline_table(lines: Sequence[Line], memory: Sequence[int] = ()) -> str:
    """One row a candidate: seconds a sample on one core, samples a second, and times nnU-Net's."""
    peer = [
        line["seconds_per_sample"] for line in lines if line["name"].startswith("nnU-Net: both")
    ]
    rows = [f"{'on one core':<36}{'ms a sample':>12}{'samples a s':>13}{'of nnU-Net':>12}"]
    for line in lines:
        spent = line["seconds_per_sample"]
        times = f"{peer[0] / spent:.1f} x" if peer else "-"
        rows.append(
            f"{line['name']:<36}{1e3 * spent:>12.2f}{1 / spent:>13.1f}{times:>12}"
            + (NOISY if line["noisy"] else "")
        )
    if memory:
        held = ", ".join(f"{size / 1e6:.0f}" for size in memory)
        rows.append(f"MB of the process at every tenth of the batches: {held}")
    return "\n".join(rows)


def preparation_table(lines: Sequence[Line]) -> str:
    """One row for each sort of work: seconds a case of ours and of nnU-Net, and the ratio."""
    rows = [f"{'one case on one core':<36}{'s':>8}{'nnU-Net':>9}{'ratio':>7}"]
    for work in dict.fromkeys(line["work"] for line in lines):
        seconds = {line["framework"]: line["seconds"] for line in lines if line["work"] == work}
        noisy = any(line["noisy"] for line in lines if line["work"] == work)
        spent, peer = seconds["covid_jax"], seconds.get("nnU-Net", float("nan"))
        row = f"{work:<36}{spent:>8.2f}{peer:>9.2f}{spent / peer:>7.2f}"
        rows.append(row.replace("nan", "  -") + (NOISY if noisy else ""))
    return "\n".join(rows)


def prediction_memory_table(lines: Sequence[Line]) -> str:
    """One row a scan: peak of the process, and the bytes of all its probabilities at once."""
    rows = [f"{'scan':<20}{'classes':>8}{'plan':>14}{'peak GB':>9}{'all at once':>13}{'s':>7}"]
    for line in lines:
        size = f"{line['plane']} x {line['plane']} x {line['slices']}"
        plan = "same grid" if line["coarser"] == 1 else f"{line['coarser']:g} x coarser"
        peak, whole = line["peak_bytes"] / 1e9, line["all_at_once_bytes"] / 1e9
        rows.append(
            f"{size:<20}{line['classes']:>8}{plan:>14}{peak:>9.2f}{whole:>13.2f}"
            f"{line['seconds']:>7.0f}"
        )
    return "\n".join([*rows, "all at once: computed, float32 on the scan's grid"])


def gpu_program_table(lines: Sequence[Line]) -> str:
    """One row a program: the gigabytes of its kernels by kind, and the least time they take."""
    kinds = ("convolutions", "products", "transposes", "fusions")
    head = f"{'strategy':<16}{'dtype':<10}{'variant':<19}" + "".join(f"{k:>14}" for k in kinds)
    rows = [head + f"{'GB in all':>11}{'ms':>7}{'TFLOP':>7}{'temporary GB':>14}"]
    for line in lines:
        sizes = "".join(
            f"{line['bytes'][kind] / 1e9:>8.2f}{'(' + str(line['kernels'][kind]) + ')':>6}"
            for kind in kinds
        )
        rows.append(
            f"{line['strategy']:<16}{line['dtype']:<10}{line['variant']:<19}{sizes}"
            f"{sum(line['bytes'].values()) / 1e9:>11.1f}{1e3 * line['seconds_of_memory']:>7.1f}"
            f"{line['tflop_per_step_counted']:>7.2f}{line['temporary_bytes'] / 1e9:>14.2f}"
        )
    rows.append("GB read and written (kernels); ms: these bytes over an H100's bandwidth")
    return "\n".join(rows)


def kernels_sums(content: dict[str, Any]) -> str:
    """The milliseconds of a step's kernels by kind and by stage."""
    rows = []
    for name in ("by_kind", "by_stage"):
        sums = ", ".join(f"{key} {1e3 * spent:.2f}" for key, spent in content[name].items())
        rows.append(f"{name.replace('_', ' ')}, ms: {sums}")
    return "\n".join(rows)


def variants_table(lines: Sequence[Line]) -> str:
    """One row a way to compile the training step: ms, and times the first row's."""
    rows = [f"{'compiled':<44}{'ms a step':>11}{'of first':>10}{'peak GB':>9}"]
    for line in lines:
        rows.append(
            f"{line['variant']:<44}{1e3 * line['seconds_per_step']:>11.3g}"
            f"{line['seconds_per_step'] / lines[0]['seconds_per_step']:>10.3f}"
            f"{line['peak_bytes'] / 1e9:>9.2f}" + (NOISY if line["noisy"] else "")
        )
    return "\n".join(rows)


def real_epoch_table(lines: Sequence[Line]) -> str:
    """Whole epochs by what feeds them; then samples a second; then augmentation alone."""
    epochs = [line for line in lines if "seconds_per_epoch" in line]
    head = f"{'an epoch, of SYNTHETIC cases where real':<44}{'s':>9}{'waiting':>9}{'of dummy':>10}"
    rows = [head] if epochs else []
    dummy = [line["seconds_per_epoch"] for line in epochs if line["data"] == "dummy"]
    for line in epochs:
        rows.append(
            f"{line['data']:<44}{line['seconds_per_epoch']:>9.3g}{line['waiting_share']:>9.2%}"
            f"{line['seconds_per_epoch'] / dummy[0]:>10.3f}"
        )
    rows += [
        f"{line['name']:<44}{line['samples_per_second']:>9.3g} samples a second"
        for line in lines
        if "samples_per_second" in line
    ]
    rows += [
        f"{line['name']:<44}{1e3 * line['seconds_per_batch']:>9.3g} ms a batch, "
        f"{line['share_of_step']:.1%} of the step" + (NOISY if line["noisy"] else "")
        for line in lines
        if "seconds_per_batch" in line
    ]
    return "\n".join(rows)


def _origin(name: str) -> str:
    """The last parts of JAX's name of an operation."""
    return "/".join(name.split("/")[-5:])


def meshes_table(lines: Sequence[Line]) -> str:
    """How far each mesh's parameters lie from one device's, and what a device holds."""
    dtypes = list(dict.fromkeys(line["dtype"] for line in lines))
    found = {(line["strategy"], line["mesh"], line["dtype"]): line for line in lines}
    rows = [
        f"{'strategy':<16}{'mesh':<16}"
        + "".join(f"{dtype:>9}{'a leaf':>9}" for dtype in dtypes)
        + f"{'halos':>7}{'gathers':>9}{'MB a device':>13}"
    ]
    for strategy, mesh in dict.fromkeys((line["strategy"], line["mesh"]) for line in lines):
        row = f"{strategy:<16}{mesh:<16}"
        for dtype in dtypes:
            line = found.get((strategy, mesh, dtype))
            row += (
                f"{line['difference']:>9.0e}{line['difference_of_leaf']:>9.0e}"
                if line
                else " " * 18
            )
        *_, last = (found[key] for dtype in dtypes if (key := (strategy, mesh, dtype)) in found)
        halos, gathers = (last["collectives"].get(name, 0) for name in _EXCHANGES)
        # Of float32, which is trained in; the line that changes the last bit has float64 alone.
        size = f"{last['peak_bytes'] / 1e6:.1f}" if last["dtype"] == "float32" else ""
        rows.append(f"{row}{halos:>7}{gathers:>9}{size:>13}".rstrip())
    return "\n".join(rows)


def checkpoints_table(lines: Sequence[Line]) -> str:
    """What a save takes in the path of a run, and in all."""
    return "\n".join(
        f"{line['strategy']}, {line['megabytes']:.0f} MB: {line['seconds_in_path']:.3f} s in the "
        f"path; {line['steps']} steps take {line['seconds']:.2f} s, with a save beside them "
        f"{line['seconds_with_save']:.2f} s: {line['share']:.4%} of {line['steps_between_saves']} "
        f"steps, {line['share_every_epoch']:.2%} if every epoch is saved"
        for line in lines
    )


def fine_tuning_table(lines: Sequence[Line]) -> str:
    """One row a strategy: the mean DSC, beside scratch's, and the cases in which it is ahead."""
    scratch = next(line for line in lines if line["strategy"] == "scratch")
    rows = [f"{'strategy':<16}{'DSC':>7}{'to scratch':>12}{'cases ahead':>13}"]
    for line in lines:
        row = f"{line['strategy']:<16}{line['dsc']:>7.3f}"
        if line is not scratch:
            ahead = sum(dsc > scratch["cases"][case] for case, dsc in line["cases"].items())
            row += f"{line['dsc'] - scratch['dsc']:>+12.3f}"
            share = f"{ahead} of {len(line['cases'])}"
            row += f"{share:>13}"
        rows.append(row)
    return "\n".join(rows)


def grid_hours_table(lines: Sequence[Line]) -> str:
    """The hours of the paper's grid; SIMULATED, but for the steps on one device."""
    rows = [
        f"{'SIMULATED':<28}{'devices':>8}{'mesh of a run':>15}{'ms a step':>11}{'links':>7}"
        f"{'hours':>8}"
    ]
    best = {
        key: min(line["hours"] for line in lines if (line["device"], line["devices"]) == key)
        for key in {(line["device"], line["devices"]) for line in lines}
    }
    for line in lines:
        step = "" if line["milliseconds"] is None else f"{line['milliseconds']:.1f}"
        mark = " *" if line["hours"] == best[line["device"], line["devices"]] else ""
        digits = 1 if line["hours"] < 10 else 0
        rows.append(
            f"{line['device']:<28}{line['devices']:>8}{line['mesh']:>15}{step:>11}"
            f"{line['communication']:>7.0%}{line['hours']:>8.{digits}f}{mark}"
        )
    rows.append("links: share of a step of scratch; *: the fastest way to use so many")
    return "\n".join(rows)


def study_table(lines: Sequence[Line]) -> str:
    """One row a kind of run: mean DSC and NSD, and how far each is from scratch's."""
    seeds = max(line["dsc"]["seeds"] for line in lines)
    width = max(len(_row_name(line)) for line in lines) + 2
    head = f"{'run':<{width}}{'DSC':>7}" + f"{'+- seeds':>10}" * (seeds > 1)
    compared = any("dsc_against_scratch" in line for line in lines)
    gap = f"{'to scratch, 95 %':>27}{'p (Holm)':>10}" * compared
    rows = [f"{head}{gap}{'NSD':>8}{gap}{'s/epoch':>9}"]
    for line in lines:
        row = f"{_row_name(line):<{width}}{line['dsc']['mean']:>7.3f}"
        if seeds > 1:
            spread = line["dsc"]["seed_std"]
            row += " " * 10 if spread is None else f"{spread:>10.3f}"
        gaps = [_gap(line, metric) * compared for metric in ("dsc", "nsd")]
        row += f"{gaps[0]}{line['nsd']['mean']:>8.3f}{gaps[1]}"
        rows.append(f"{row}{line['epoch_seconds']:>9.1f}")
    return "\n".join(rows)


def _row_name(line: Line) -> str:
    named = (line["strategy"], line["source"], line["variant"])
    return ", ".join(part for part in named if part not in ("", "none"))


def _gap(line: Line, metric: str) -> str:
    found = line.get(f"{metric}_against_scratch")
    if found is None:
        return " " * 37
    interval = f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
    return f"{interval:>27}{found['p_holm']:>10.2g}"
