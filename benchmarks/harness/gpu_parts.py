"""What benchmarks/gpu.py measures: its parts, in the order of their value, and their files."""

import dataclasses
import functools
import gzip
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import environment, tables
from benchmarks.harness.golden import CASES, STEPS, random_batch, stored_weights
from benchmarks.harness.measure import (
    Candidate,
    epoch_times,
    freezing,
    paper_seconds,
    predictions,
    with_work,
)
from benchmarks.harness.steps import Trainer, dummy_batch, ours, sampler_of, theirs, trainer
from benchmarks.harness.tables import Line
from benchmarks.harness.timing import in_turns
from benchmarks.harness.trace import operations, summed
from benchmarks.peers.stand_ins import missing, stand_in_for_missing
from covid_jax.config import Config, DataConfig, UNetConfig
from covid_jax.data.augment import augment, input_size
from covid_jax.data.planner import residual_blocks
from covid_jax.errors import UserError
from covid_jax.model.nnunet_weights import to_params
from covid_jax.training.parallel import make_mesh, put_batch, replicate
from covid_jax.training.platform import Platform, platform_of
from covid_jax.training.program import make_program
from covid_jax.training.state import initial_state, new_params
from covid_jax.transfer.strategies import network_of

if TYPE_CHECKING:  # a bare machine lacks the libraries behind these
    from covid_jax.data.sampling import Batch
    from covid_jax.data.store import StoredCase

Triple = tuple[int, int, int]

TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
"""Of losses, relative. A GPU's float32 products are rounded to TF32; 2.6e-4 and 1.5e-3 were met."""

PLANAR = UNetConfig(
    features_per_stage=(32, 64),
    kernel_sizes=((1, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2)),
    n_conv_per_stage=(2, 1),
    n_conv_per_stage_decoder=(2,),
)
"""A network of which four convolutions are packed."""

PEER = ("torch", "dynamic_network_architectures", "nnunetv2")
GRAIN = ("grain", "array_record")
PEER_OF_DATA = (*PEER, "batchgenerators", "batchgeneratorsv2", "acvl_utils", "blosc2")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large all of it is.

    Attributes:
      config: of a run in bfloat16, from scratch.
      rounds: turns that each candidate has.
      seconds: length of a turn, of one step at least.
      scan: the shape of a whole scan.
      cases: how many of that shape are trained on.
      loading_seconds: for which batches are made and counted.
      backend: of torch.compile; a dry run asks for no compiler of C++.
    """

    config: Config
    rounds: int
    seconds: float
    scan: Triple
    cases: int
    loading_seconds: float
    backend: str
    dry_run: bool

    def here(self, config: Config) -> tuple[Config, Platform]:
        """The run on this machine; a dry run has a GPU's choices wherever it is."""
        config, platform = environment.here(config)
        if self.dry_run:
            platform = dataclasses.replace(platform_of("gpu"), name=platform.name)
        return config, platform

    def strategy(self, name: str, **changes: Any) -> Config:
        """The config of a strategy, with other changes."""
        return dataclasses.replace(self.config, strategy=name, **changes)


FULL = Scale(
    config=Config(dtype="bfloat16"),
    rounds=4,
    seconds=0.4,
    scan=(120, 360, 360),
    cases=4,
    loading_seconds=10.0,
    backend="inductor",
    dry_run=False,
)
DRY = Scale(
    config=Config(
        dtype="bfloat16",
        steps_per_epoch=4,
        validation_steps=2,
        model=UNetConfig(
            features_per_stage=(4, 8),
            kernel_sizes=FULL.config.model.kernel_sizes[:2],
            strides=FULL.config.model.strides[:2],
            n_conv_per_stage=(1, 1),
            n_conv_per_stage_decoder=(1,),
        ),
        data=DataConfig(patch_size=(8, 32, 32)),
    ),
    rounds=2,
    seconds=0.0,
    scan=(8, 32, 48),
    cases=2,
    loading_seconds=0.5,
    backend="aot_eager",
    dry_run=True,
)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Where a part writes: its lines stand beside those of other parts of the same file.

    Attributes:
      config: the flags that name another network than the benchmark's.
    """

    path: Path
    part: str
    dry_run: bool
    config: tuple[str, ...] = ()

    def is_complete(self) -> bool:
        """Whether the part was measured to its end. Raises as `save`."""
        return self.part in self._read()["complete"]

    def save(self, lines: Sequence[Line], complete: bool = False, **more: Any) -> None:
        """Puts `lines` in place of the part's, and `more` at the head of the file; whole or not.

        Raises:
          UserError: the file is of a dry run and this is none, or the other way round; of another
            device, or of other flags.
        """
        before = self._read()
        device = environment.describe()["device"]
        if before.get("device", device) != device:
            raise UserError(
                f"{self.path}: measured on {before['device']}, and here is {device}; "
                "give another --output"
            )
        head = {
            **{name: value for name, value in before.items() if name != "results"},
            "command": self._command,
            "dry_run": self.dry_run,
            "complete": [name for name in before["complete"] if name != self.part]
            + [self.part] * complete,
            **more,
        }
        others = [line for line in before["results"] if line["part"] != self.part]
        partial = self.path.with_suffix(".partial")
        environment.save(partial, [*others, *({"part": self.part, **x} for x in lines)], **head)
        os.replace(partial, self.path)

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {"complete": [], "results": []}
        content = json.loads(self.path.read_text())
        if content["dry_run"] != self.dry_run:
            raise UserError(
                f"{self.path}: of {'a' if content['dry_run'] else 'no'} dry run; "
                "give another --output"
            )
        if content["command"] != self._command:
            raise UserError(
                f"{self.path}: of other flags ({content['command']}); give another --output"
            )
        return content

    @property
    def _command(self) -> str:
        flags = (*self.config, *("--dry_run",) * self.dry_run)
        return " ".join(("bash launch/gpu_benchmark.sh --output=DIR", *flags))


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
      seconds: after which it is killed.
      file: in which its lines stand.
      measure: writes them, and prints what they say.
      of_any: whether it can be of another network than the benchmark's.
    """

    name: str
    seconds: float
    file: str
    measure: Callable[[Sheet, Scale], None]
    of_any: bool = True

    def run(self, sheet: Sheet, config: Config | None = None) -> None:
        """Measures the part in this process, of the benchmark's network where no config is given.

        Raises:
          UserError: no GPU is here, and it is no dry run.
        """
        if not sheet.dry_run and environment.here(Config())[1].name != "gpu":
            raise UserError("JAX sees no GPU here; --dry_run tries all parts on a CPU")
        stand_in_for_missing()  # our readers of scans import libraries that a bare machine lacks
        scale = DRY if sheet.dry_run else FULL
        if config:
            tell(environment.network(config))
            scale = dataclasses.replace(scale, config=config)
        self.measure(sheet, scale)


def tell(text: str) -> None:
    """Prints it at once: the process may be killed before its next line."""
    print(text, flush=True)


def are_here(modules: Sequence[str], what: str) -> bool:
    """Whether all are installed; prints that `what` is left out where they are not."""
    if absent := missing(*modules):
        tell(f"{what} left out: not installed here: {', '.join(absent)}")
    return not absent


def losses(config: Config, platform: Platform, steps: int) -> list[float]:
    """The losses of the first of the training steps of which STEPS holds PyTorch's."""
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    program = make_program(config, mesh, platform)
    params = to_params(stored_weights("isotropic"), config.model)
    state, nothing = initial_state(params, program.transform), jax.tree.map(lambda _: None, params)
    state = replicate(state, mesh)  # as the step returns it: it is compiled once
    batch = put_batch(random_batch("isotropic"), mesh, config.data.batch_size)
    rate, key = jnp.float32(config.optimizer.learning_rate), jax.random.key(0)
    found = []
    for _ in range(steps):
        state, metrics = program.train_step(state, nothing, batch, rate, key)
        found.append(float(metrics["loss"]))
    return found


def losses_of_choices(scale: Scale, dtype: str) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of some steps as a GPU takes them, and as others compute the same.

    Of a network whose convolutions are packed, on augmented patches; these are left out of a dry
    run, where they are compiled for the tests already.
    """
    data = DataConfig(patch_size=(8, 48, 48))
    config, platform = scale.here(Config(model=PLANAR, data=data, dtype=dtype))
    plain = dataclasses.replace(platform, form="lax", at_once=False)
    found: list[list[float]] = []
    for choices in (platform, plain):
        one = trainer(config, choices, augmented=not scale.dry_run)
        metrics = [jax.device_get(one.train(one.batch)) for _ in range(3)]
        found.append([float(m[name]) for m in metrics for name in ("loss", "gradient_norm")])
    return found[0], found[1]


def correctness(sheet: Sheet, scale: Scale) -> None:
    """Losses beside PyTorch's, and a GPU's choices beside others'; an error beyond TOLERANCE."""
    stored = json.loads(STEPS.read_text())["losses"]
    stored = stored[:2] if scale.dry_run else stored
    model, patch = CASES["isotropic"]
    data = DataConfig(patch_size=patch, augment=False)
    lines: list[Line] = []

    def compare(dtype: str, what: str, found: list[float], expected: list[float]) -> None:
        worst = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
        lines.append(
            {"dtype": dtype, "what": what, "losses": found, "stored": expected, "worst": worst}
        )
        sheet.save(lines)
        tell(f"{what} in {dtype}: {worst:.1e} apart (at most {TOLERANCE[dtype]:.0e})")

    for dtype in TOLERANCE:
        config, platform = scale.here(Config(model=model, data=data, dtype=dtype))
        compare(dtype, "losses beside PyTorch's", losses(config, platform, len(stored)), stored)
        if dtype == scale.config.dtype or not scale.dry_run:
            compare(dtype, "a GPU's choices beside others'", *losses_of_choices(scale, dtype))
    for line in lines:
        if not line["worst"] < TOLERANCE[line["dtype"]]:
            raise UserError(
                f"the training step is wrong in {line['dtype']}: {line['what']}: {line['losses']}, "
                f"expected {line['stored']}"
            )
    sheet.save(lines, complete=True)


def timed(
    sheet: Sheet, scale: Scale, groups: Iterable[list[Candidate]], complete: bool = True
) -> None:
    """Times the candidates of the first group; then all again with those of the next, in turns."""
    known: list[Candidate] = []
    lines: list[Line] = []
    for group in groups:
        first, known = not known, [*known, *group]
        for lines in epoch_times(known, scale.rounds, scale.seconds):
            # What is there of the groups before is replaced by no less.
            if first or "seconds_per_validation_step" in lines[0]:
                sheet.save(lines, paper=paper_seconds())
    sheet.save(lines, complete=complete, paper=paper_seconds())
    tell(tables.epoch_time_table(lines, paper_seconds()))


def ours_alone(scale: Scale, config: Config) -> Candidate:
    """Our steps of a run."""
    config, platform = scale.here(config)
    (candidate,) = with_work(config, platform, [ours(config, platform)])
    return candidate


def strategies(sheet: Sheet, scale: Scale) -> None:
    """Training and validation step of every strategy, ours."""
    names = ("frozen_encoder", "multi_encoder", "body", "continual")

    def groups() -> Iterator[list[Candidate]]:
        yield [ours_alone(scale, scale.config)]
        yield [ours_alone(scale, scale.strategy(name)) for name in names]

    timed(sheet, scale, groups())


def beside_pytorch(sheet: Sheet, scale: Scale, config: Config, compiled: bool) -> None:
    """Ours beside PyTorch's in both layouts; then those through torch.compile too, if `compiled`.

    Ours alone where PyTorch's nnU-Net is not there; then it is not complete.
    """
    here = are_here(PEER, "PyTorch's nnU-Net is")

    def groups() -> Iterator[list[Candidate]]:
        own = ours_alone(scale, config)
        yield [own]
        for backend in (None, scale.backend) if compiled else (None,):
            if here:
                peers = theirs(own.config, own.platform, backends=(backend,))
                yield [dataclasses.replace(own, steps=steps) for steps in peers]

    timed(sheet, scale, groups(), complete=here)


def strategy_beside_pytorch(name: str) -> Callable[[Sheet, Scale], None]:
    """The part of one strategy in bfloat16."""
    return lambda sheet, scale: beside_pytorch(sheet, scale, scale.strategy(name), compiled=True)


def float32(sheet: Sheet, scale: Scale) -> None:
    """Scratch in float32, beside PyTorch."""
    beside_pytorch(sheet, scale, scale.strategy("scratch", dtype="float32"), compiled=False)


def residual_m(sheet: Sheet, scale: Scale) -> None:
    """Scratch with the encoder of nnU-Net's ResEncM preset, on the same patch, beside PyTorch."""
    model = scale.config.model
    stages = len(model.features_per_stage)
    model = dataclasses.replace(
        model,
        n_conv_per_stage=(),
        n_blocks_per_stage=residual_blocks(stages),
        n_conv_per_stage_decoder=(1,) * (stages - 1),
    )
    beside_pytorch(sheet, scale, scale.strategy("scratch", model=model), compiled=True)


def paper_patch(sheet: Sheet, scale: Scale) -> None:
    """Ours on the paper's own patch, 50 slices deep, which PyTorch's network cannot take."""
    depth, height, width = scale.config.data.patch_size
    data = dataclasses.replace(scale.config.data, patch_size=(depth - 6, height, width))

    def groups() -> Iterator[list[Candidate]]:
        for name in ("scratch", "frozen_encoder", "multi_encoder"):
            yield [ours_alone(scale, scale.strategy(name, data=data))]

    timed(sheet, scale, groups())


def synthetic_cases(folder: Path, scale: Scale) -> tuple["StoredCase", ...]:
    """Prepared cases of noise with one lesion each, memory-mapped from `folder`: SYNTHETIC."""
    from covid_jax.data.store import open_case

    rng = np.random.default_rng(0)
    shape, channels = scale.scan, scale.config.model.in_channels
    geometry = {
        "shape": shape,
        "box": [(0, n) for n in shape],
        "spacing_mm": (1.0, 1.0, 1.0),
        "affine": np.eye(4).tolist(),
        "file_affine": np.eye(4).tolist(),
    }
    for index in range(scale.cases):
        case = folder / f"synthetic_{index}"
        case.mkdir(parents=True)
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(n // 4, n // 2) for n in shape)] = 1
        voxels = np.argwhere(label)
        voxels = rng.permutation(voxels)[:10_000]
        np.save(case / "image.npy", rng.standard_normal((*shape, channels), np.float32))
        np.save(case / "label.npy", label)
        np.save(case / "foreground.npy", np.insert(voxels, 0, 1, axis=1))
        (case / "case.json").write_text(json.dumps({"geometry": geometry, "sha256": ""}))
    return tuple(open_case(case) for case in sorted(folder.iterdir()))


def run_epoch(
    one: Trainer,
    config: Config,
    training: "Iterator[Batch] | None",
    validation: "Iterator[Batch] | None",
) -> tuple[float, float]:
    """Seconds of an epoch as train.py runs it, and those in which the host waited for a batch.

    On the dummy batches that lie on the device where there are no others.
    """
    waited = 0.0

    def from_host(batches: "Iterator[Batch]") -> dict[str, jax.Array]:
        nonlocal waited
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        return one.put(vars(batch))

    begin = time.perf_counter()
    pending: dict[str, jax.Array] | None = None
    for _ in range(config.steps_per_epoch):
        metrics = one.train(from_host(training) if training else one.batch)
        if pending is not None:  # as the log does: the device never waits for the host
            float(pending["loss"])
        pending = metrics
    found = [
        one.validate(from_host(validation) if validation else one.plain)
        for _ in range(config.validation_steps)
    ]
    jax.block_until_ready((pending, found))
    return time.perf_counter() - begin, waited


def epoch(sheet: Sheet, scale: Scale) -> None:
    """Whole augmented epochs on batches from the input pipeline, and on dummy ones, A-B-B-A."""
    config, platform = scale.here(scale.config)
    piped = are_here(GRAIN, "the epoch with the input pipeline is")
    one = trainer(config, platform, augmented=True)
    jax.block_until_ready((one.train(one.batch), one.validate(one.plain)))
    order = ("dummy", "real", "real", "dummy") if piped else ("dummy",)
    found: dict[str, list[tuple[float, float]]] = {}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        training: Iterator[Batch] | None = None
        if piped:
            cases = synthetic_cases(Path(folder), scale)
            training = sampler_of(config, cases, "training").batches(0, 10**6)
            validating = sampler_of(config, cases, "validation")
        for data in order:
            if data == "dummy":
                spent = run_epoch(one, config, None, None)
            else:
                validation = validating.batches(0, config.validation_steps)
                spent = run_epoch(one, config, training, validation)
            found.setdefault(data, []).append(spent)
            lines = [
                {
                    "data": data,
                    "cases": "SYNTHETIC" if data == "real" else None,
                    "patch_size": list(config.data.patch_size),
                    "batch_size": config.data.batch_size,
                    "dtype": config.dtype,
                    "steps": config.steps_per_epoch,
                    "validation_steps": config.validation_steps,
                    "seconds_per_epoch": statistics.median(seconds for seconds, _ in epochs),
                    "waiting_share": sum(w for _, w in epochs) / sum(s for s, _ in epochs),
                    "epochs": [{"seconds": s, "waiting_seconds": w} for s, w in epochs],
                }
                for data, epochs in found.items()
            ]
            sheet.save(lines)
    sheet.save(lines, complete=piped)
    tell(tables.real_epoch_table(lines))


def loading(sheet: Sheet, scale: Scale) -> None:
    """Samples a second of nnU-Net's loader and transforms, and of our sampler, on all cores.

    Ours are cut and not augmented, since that is the device's work. Nothing here computes with JAX
    before nnU-Net has forked.
    """
    data, cores = scale.config.data, len(os.sched_getaffinity(0))
    lines: list[Line] = []

    def add(name: str, rate: float) -> None:
        lines.append(
            {
                "name": name,
                "cases": "SYNTHETIC",
                "patch_size": list(data.patch_size),
                "cores": cores,
                "samples_per_second": rate,
            }
        )
        sheet.save(lines)

    peer = are_here(PEER_OF_DATA, "nnU-Net's loader is")
    piped = are_here(GRAIN, "our sampler is")
    with tempfile.TemporaryDirectory() as folder:
        cases = synthetic_cases(Path(folder) / "ours", scale)
        if peer:
            from benchmarks.peers import torch_loader

            named = {case.folder.name: case for case in cases}
            torch_loader.save_cases(Path(folder) / "nnunet", named, data.patch_size)
            rate = torch_loader.samples_per_second(
                Path(folder) / "nnunet",
                data.patch_size,
                data.batch_size,
                data.foreground_fraction,
                cores,
                scale.loading_seconds,
            )
            add(f"nnU-Net: cut and augmented, {cores} processes", rate)
        if piped:
            batches = sampler_of(scale.config, cases, "training").batches(0, 10**6)
            ahead = [next(batches) for _ in range(8)]  # what was made ahead must not count
            begin, made = time.perf_counter(), 0
            while time.perf_counter() - begin < scale.loading_seconds:
                made += len(next(batches).image)
            del ahead
            add("covid_jax: cut, threads of one process", made / (time.perf_counter() - begin))
    if peer and piped:
        sheet.save(lines, complete=True)
    tell(tables.real_epoch_table(lines))


def variants(sheet: Sheet, scale: Scale) -> None:
    """The training step as it is chosen for a GPU, and without each of the choices, in turns."""
    config, platform = scale.here(scale.config)

    def without(*names: str) -> dict[str, Any]:
        left = platform.compiler_options.items()
        return {name: value for name, value in left if name not in names}

    layout, merger = "xla_gpu_force_conv_nhwc", "xla_gpu_dot_merger_threshold_mb"
    change = functools.partial(dataclasses.replace, platform)
    groups = (
        {"as chosen": platform, "not packed": change(form="lax")},
        {
            "XLA's layout": change(compiler_options=without(layout)),
            "products merged": change(compiler_options=without(merger)),
            "none of them": change(form="lax", compiler_options=without(layout, merger)),
        },
    )
    steps, lines = [], list[Line]()
    for group in groups:
        steps += [ours(config, platform, variant=name) for name, platform in group.items()]
        *_, timings = in_turns(
            [one.train for one in steps], scale.rounds, scale.seconds, platform.name
        )
        lines = [
            {
                "variant": one.variant,
                "patch_size": list(config.data.patch_size),
                "batch_size": config.data.batch_size,
                "dtype": config.dtype,
                "seconds_per_step": timing.median,
                "peak_bytes": one.peak_bytes,
                "bytes_per_step": one.bytes_accessed,
                **timing.described(),
            }
            for one, timing in zip(steps, timings, strict=True)
        ]
        sheet.save(lines)
    sheet.save(lines, complete=True)
    tell(tables.variants_table(lines))


def prediction(sheet: Sheet, scale: Scale) -> None:
    """A whole scan of noise, SYNTHETIC, beside nnU-Net's predictor with the same weights."""
    config, platform = scale.here(scale.config)
    peer = are_here((*PEER, "batchgenerators", "acvl_utils"), "nnU-Net's predictor is")
    shape = (1, *config.data.patch_size, config.model.in_channels)
    params = jax.device_get(new_params(network_of(config, "lax"), config.seed, shape))
    volume = np.random.default_rng(0).standard_normal((*scale.scan, shape[-1]), np.float32)
    lines: list[Line] = []
    for mirror in (False, True):
        found = predictions(config, platform, volume, params, mirror, peer, min(scale.rounds, 3))
        lines += [{"scan": "SYNTHETIC noise", "dtype": config.dtype, **line} for line in found]
        sheet.save(lines)
    sheet.save(lines, complete=peer)
    tell(tables.inference_table(lines))


def kernels(sheet: Sheet, scale: Scale) -> None:
    """The operations of a training step, with CUDA graphs off, within which they have no names."""
    config, platform = scale.here(scale.config)
    options = {**platform.compiler_options, "xla_gpu_enable_command_buffer": ""}
    named = ours(config, dataclasses.replace(platform, compiler_options=options))
    lines = operations(named.train, named.program)
    note = "off in what is traced, so that every kernel is named"
    sheet.save(lines, complete=False, command_buffers=note, **summed(lines))
    with gzip.open(sheet.path.with_name("program_gpu.txt.gz"), "wt") as file:
        file.write(named.program)
    as_chosen = ours(config, platform)
    runs = [named.train, as_chosen.train]
    *_, timings = in_turns(runs, scale.rounds, scale.seconds, platform.name)
    without, chosen = (timing.median for timing in timings)
    sheet.save(
        lines,
        complete=True,
        seconds_per_step_traced=without,
        seconds_per_step=chosen,
        seconds_of_operations=sum(line["seconds"] for line in lines),
    )
    tell(tables.kernels_table(lines))
    tell(tables.kernels_sums(summed(lines)))
    tell(f"a step takes {1e3 * chosen:.3g} ms, and {1e3 * without:.3g} without command buffers")


def augmentation(sheet: Sheet, scale: Scale) -> None:
    """Augmentation alone, of a batch that lies on the device, beside the steps with and without."""
    config, platform = scale.here(scale.config)
    patch_size = config.data.patch_size
    augmented = jax.jit(
        functools.partial(augment, patch_size=patch_size, at_once=platform.at_once),
        compiler_options=platform.compiler_options,
    )
    batch = jax.device_put(dummy_batch(config, input_size(patch_size)))
    steps = itertools.count()

    def alone() -> None:
        keys = jax.random.split(jax.random.key(next(steps)), config.data.batch_size)
        jax.block_until_ready(augmented(keys, batch["image"], batch["label"]))

    plain, whole = (ours(config, platform, augmented=choice) for choice in (False, True))
    *_, timings = in_turns(
        [alone, plain.train, whole.train], scale.rounds, scale.seconds, platform.name
    )
    names = ("augmentation alone", "the step without", "the step with augmentation")
    lines = [
        {
            "name": name,
            "at_once": platform.at_once,
            "patch_size": list(patch_size),
            "batch_size": config.data.batch_size,
            "dtype": config.dtype,
            "seconds_per_batch": timing.median,
            "share_of_step": timing.median / timings[2].median,
            **timing.described(),
        }
        for name, timing in zip(names, timings, strict=True)
    ]
    sheet.save(lines, complete=True)
    tell(tables.real_epoch_table(lines))


def frozen(sheet: Sheet, scale: Scale) -> None:
    """Freezing, of ours alone: every prefix of the encoder, then the decoder."""
    config, platform = scale.here(scale.config)
    lines: list[Line] = []
    for lines in freezing(config, platform, False, scale.rounds, scale.seconds, recipes=False):
        sheet.save(lines)
    sheet.save(lines, complete=True)
    tell(tables.freezing_table(lines))


PARTS = (
    Part("correctness", 80, "correctness_gpu.json", correctness),
    Part("strategies", 170, "epoch_time_gpu.json", strategies),
    *(
        Part(
            f"{name} beside PyTorch", seconds, "epoch_time_gpu.json", strategy_beside_pytorch(name)
        )
        for name, seconds in (("scratch", 150), ("frozen_encoder", 120), ("multi_encoder", 120))
    ),
    Part("epoch", 110, "real_epoch_gpu.json", epoch),
    Part("loading", 50, "real_epoch_gpu.json", loading),
    Part("variants", 120, "variants_gpu.json", variants),
    Part("float32", 90, "epoch_time_gpu.json", float32),
    Part("paper's patch", 100, "epoch_time_gpu.json", paper_patch, of_any=False),
    Part("prediction", 90, "inference_gpu.json", prediction),
    Part("kernels", 80, "kernels_gpu.json", kernels),
    Part("augmentation", 60, "real_epoch_gpu.json", augmentation),
    Part("freezing", 160, "freezing_gpu.json", frozen),
    Part("residual M beside PyTorch", 200, "epoch_time_gpu.json", residual_m, of_any=False),
)
