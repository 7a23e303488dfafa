"""The training and validation steps that benchmarks time: ours, the masking recipe, PyTorch's."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from covid_jax.config import Config
from covid_jax.data.augment import input_size
from covid_jax.label_space import IGNORED, lies_in
from covid_jax.model.conv import form_in
from covid_jax.model.loss import deep_supervision_loss
from covid_jax.training.cost import planned_bytes
from covid_jax.training.parallel import make_mesh, put_batch, replicate
from covid_jax.training.platform import Platform
from covid_jax.training.program import Program, make_program
from covid_jax.training.state import TrainState, initial_state, new_params
from covid_jax.training.step import make_eval_step
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import frozen_patterns, network_of

if TYPE_CHECKING:  # machines that only time the step have none of the libraries behind these
    from covid_jax.data.sampling import Sampler, Stream
    from covid_jax.data.store import StoredCase

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Something that trains: `train` and `validate` do one step and wait for its end.

    Attributes:
      variant: what tells it from others of the framework and strategy.
      data: "dummy" for one batch that lies on the device, "real" for new batches each step.
      peak_bytes: of device memory that the training step takes; None where nobody tells.
      bytes_accessed: that the training step reads and writes, by XLA's count.
      program: the optimised HLO of the training step.
    """

    framework: str
    strategy: str
    variant: str
    train: Callable[[], Any]
    validate: Callable[[], Any]
    data: str = "dummy"
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    bytes_accessed: float | None = None
    program: str = ""


def ours(
    config: Config,
    platform: Platform,
    *,
    variant: str = "",
    batches: Iterator[Batch] | None = None,
    augmented: bool = False,
) -> Steps:
    """The step of a run, compiled ahead; on one dummy batch where no `batches` are given."""
    one = trainer(config, platform, augmented=augmented)

    def next_batch() -> dict[str, jax.Array]:
        return one.batch if batches is None else one.put(next(batches))

    return Steps(
        framework="jax",
        strategy=config.strategy,
        variant=", ".join(
            filter(
                None,
                (form_in(config.dtype, platform.form), variant, "augmented" if augmented else ""),
            )
        ),
        train=lambda: jax.block_until_ready(one.train(next_batch())),
        validate=lambda: jax.block_until_ready(one.validate(one.plain)),
        data="dummy" if batches is None else "real",
        compile_seconds=one.compile_seconds,
        peak_bytes=planned_bytes(one.compiled),
        bytes_accessed=one.compiled.cost_analysis()["bytes accessed"],
        program=one.compiled.as_text(),
    )


@dataclasses.dataclass
class Trainer:
    """A run's compiled step and what it changes; `train` and `validate` begin a step, and return.

    Attributes:
      put: a batch of the host onto the devices.
      batch: a dummy one there, of the size that `train` takes.
      plain: a dummy one there, of the size that `validate` takes.
    """

    program: Program
    compiled: Any
    state: TrainState
    frozen: Any
    rate: jax.Array
    key: jax.Array
    put: Callable[[Batch], dict[str, jax.Array]]
    batch: dict[str, jax.Array]
    plain: dict[str, jax.Array]
    compile_seconds: float

    def train(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Its loss and gradient norm, which are there when the device has ended the step."""
        self.state, metrics = self.compiled(self.state, self.frozen, batch, self.rate, self.key)
        return metrics

    def validate(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Its loss and overlaps, likewise."""
        return self.program.eval_step(self.state.trainable, self.frozen, batch)


def trainer(config: Config, platform: Platform, *, augmented: bool) -> Trainer:
    """The step of a run, compiled ahead."""
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=augmented))
    program = make_program(config, mesh, platform)
    put = functools.partial(put_batch, mesh=mesh, batch_size=config.data.batch_size)
    plain = put(dummy_batch(config))
    batch = put(dummy_batch(config, input_size(config.data.patch_size))) if augmented else plain
    params = new_params(program.network, config.seed, plain["image"].shape)
    trainable, frozen = split(params, mask(params, frozen_patterns(config)[0]))
    state, frozen = replicate((initial_state(trainable, program.transform), frozen), mesh)
    rate, key = jnp.float32(config.optimizer.learning_rate), jax.random.key(0)
    begin = time.perf_counter()
    lowered = program.train_step.lower(state, frozen, batch, rate, key)  # type: ignore[attr-defined]
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    return Trainer(program, compiled, state, frozen, rate, key, put, batch, plain, seconds)


def optax_recipe(config: Config, platform: Platform, *, clip_in_front: bool) -> Steps:
    """The same step with optax's recipe for freezing: optax.partition with set_to_zero.

    The whole tree is differentiated, and the updates of frozen leaves are zero. Where nothing else
    looks at their gradients, XLA finds that they are not needed. Where something does, they are
    computed: with `clip_in_front` the clipping stands before the partition, as in most chains, and
    its norm is that of all gradients (which is not nnU-Net's where something is frozen).
    """
    network = network_of(config, platform.form)
    apply = lambda params, image: network.apply({"params": params}, image)  # noqa: E731
    batch = jax.tree.map(jnp.asarray, dummy_batch(config))
    params = new_params(network, config.seed, batch["image"].shape)
    settings = config.optimizer
    clip = optax.clip_by_global_norm(settings.clip_norm)
    sgd = optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(settings.learning_rate, settings.momentum, nesterov=True),
    )
    labels = jax.tree.map(
        lambda h: "frozen" if h else "trained", mask(params, frozen_patterns(config)[0])
    )
    trained = sgd if clip_in_front else optax.chain(clip, sgd)
    transform = optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)
    if clip_in_front:
        transform = optax.chain(clip, transform)

    options = platform.compiler_options
    settings_of_loss: dict[str, Any] = {
        "batch_dice": bool(config.loss.batch_dice),
        "label_space": config.label_space,
    }

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=options)
    def step(
        params: Any, opt_state: Any, batch: dict[str, jax.Array]
    ) -> tuple[Any, Any, jax.Array]:
        def loss_of(params: Any) -> jax.Array:
            logits = apply(params, batch["image"])
            return deep_supervision_loss(logits, batch["label"], **settings_of_loss)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, opt_state = transform.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = transform.init(params)
    evaluate = make_eval_step(apply, compiler_options=options, **settings_of_loss)
    nothing = jax.tree.map(lambda _: None, params)
    compiled = step.lower(params, opt_state, batch).compile()

    def train() -> None:
        nonlocal params, opt_state
        params, opt_state, loss = compiled(params, opt_state, batch)
        loss.block_until_ready()

    return Steps(
        framework="jax",
        strategy=config.strategy,
        variant=f"optax recipe, clipped {'in front' if clip_in_front else 'inside'}",
        train=train,
        validate=lambda: jax.block_until_ready(evaluate(params, nothing, batch)),
        peak_bytes=planned_bytes(compiled),
    )


def real_batches(config: Config, workdir: Path) -> Iterator[Batch]:
    """The training batches of the run, as train.py has them."""
    # Here, not above: machines that only time the step have none of the image libraries.
    from covid_jax.training.run import make_phantom_data, open_data, samplers

    make_phantom_data(config, workdir)
    _, datasets = open_data(config, workdir)
    training, _ = samplers(config, datasets)
    return (vars(batch) for batch in training.batches(0, 10**6))


def sampler_of(config: Config, cases: tuple["StoredCase", ...], stream: "Stream") -> "Sampler":
    """The sampler of a run on cases of one label; training patches with what is around them."""
    from covid_jax.data.sampling import Sampler, Source  # brings grain along

    patch_size = config.data.patch_size
    return Sampler(
        sources=(Source(cases, () if config.label_space.regions else (1,)),),
        num_classes=config.model.num_classes,
        patch_size=patch_size,
        cut_size=input_size(patch_size) if stream == "training" else patch_size,
        batch_size=config.data.batch_size,
        foreground_fraction=config.data.foreground_fraction,
        seed=config.seed,
        stream=stream,
    )


LAYOUTS = ("contiguous", "channels-last")


def theirs(
    config: Config,
    platform: Platform,
    *,
    layouts: Sequence[str] = LAYOUTS,
    backends: Sequence[str | None] = (None,),
) -> Iterator[Steps]:
    """PyTorch's nnU-Net in each of its `layouts`, with autocast where we train in bfloat16.

    On a GPU where ours is on one. Each through torch.compile by these of its `backends`, such as
    "inductor"; None: as it is.
    """
    import torch

    from benchmarks.peers import torch_nnunet as peer

    device = "cuda" if platform.name == "gpu" else "cpu"
    torch.backends.cudnn.benchmark = True
    batch, space = dummy_batch(config), config.label_space
    # Of which regions a voxel is, nnU-Net finds out in its transforms, ahead of the step.
    target = (
        np.stack([lies_in(batch["label"], region) for region in space.regions], 1)
        if space.regions
        else batch["label"]
    )
    loss_of = peer.loss(
        len(config.model.features_per_stage) - 1,
        bool(config.loss.batch_dice),
        None if space.ignored is None else IGNORED,
        bool(space.regions),
    )
    formats = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}
    for layout in layouts:
        memory_format = formats[layout]
        for backend in backends:
            others = 0 if device == "cpu" else torch.cuda.memory_allocated()  # that live on
            net = peer.strategy_network(config).to(device, memory_format=memory_format)
            sgd = peer.optimizer(net, config.optimizer)
            x = peer.channels_first(batch["image"]).to(device, memory_format=memory_format)
            y = torch.from_numpy(target).to(device)
            fast = torch.compile(net, backend=backend) if backend else net
            autocast = config.dtype == "bfloat16"

            def train(net: Any = fast, sgd: Any = sgd, x: Any = x, autocast: Any = autocast) -> Any:
                clip = config.optimizer.clip_norm
                return peer.train_step(net, sgd, loss_of, x, y, clip, autocast)  # noqa: B023

            def validate(net: Any = fast, x: Any = x, autocast: Any = autocast) -> Any:
                return peer.validation_step(net, loss_of, x, y, autocast)  # noqa: B023

            begin = time.perf_counter()
            train()
            yield Steps(
                framework="torch",
                strategy=config.strategy,
                variant=", ".join(
                    [layout, *["compiled"] * bool(backend), *["autocast to bfloat16"] * autocast]
                ),
                train=train,
                validate=validate,
                compile_seconds=time.perf_counter() - begin if backend else None,
                peak_bytes=_torch_peak_bytes(device, train, others),
            )


def dummy_batch(config: Config, size: tuple[int, int, int] | None = None) -> Batch:
    """A batch of noise, half of it foreground: image (N, D, H, W, C), label (N, D, H, W), labelled.

    `size` is (D, H, W); that of the patch where it is not given.
    """
    shape = (config.data.batch_size, *(size or config.data.patch_size))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*shape, config.model.in_channels)).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    values = config.label_space.values or range(1, config.model.num_classes)
    label[:, :, : shape[2] // 2] = rng.choice(values, (shape[0], 1, 1, 1))
    return {
        "image": image,
        "label": label,
        "labelled": np.ones((shape[0], config.model.num_classes), bool),
    }


def _torch_peak_bytes(device: str, train: Callable[[], Any], others: int) -> int | None:
    """Of a step, without the bytes of `others` that are on the device too."""
    if device == "cpu":
        return None
    import torch

    torch.cuda.reset_peak_memory_stats()
    train()
    return torch.cuda.max_memory_allocated() - others
