"""nnU-Net's state dicts <-> our parameter trees.

nnU-Net counts the stages of its decoder in the order of computation, from below, where ours are
named after their resolution; torch has a kernel's features first, where ours are last. Nothing
else differs, so both ways are exact to the bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from covid_jax.config import UNetConfig
from covid_jax.errors import UserError, listed
from covid_jax.model.unet import UNet

Tree = Any
StateDict = dict[str, np.ndarray]

_TORCH_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def to_params(state_dict: Mapping[str, Any], config: UNetConfig) -> Tree:
    """The parameter tree of UNet(config) with the weights of a `state_dict` of nnU-Net v1 or v2.

    Args:
      state_dict: of Generic_UNet (v1), PlainConvUNet or ResidualEncoderUNet (v2); arrays, or
        tensors on the CPU.
      config: the topology; v1 has head_bias False and its kernel_sizes_decoder.

    Raises:
      UserError: names that are missing or too many, or shapes that differ.
    """
    given = {_plain(name): np.asarray(value) for name, value in state_dict.items()}
    names_of = _v1_names if _is_v1(given) else _v2_names
    shapes = _shapes(config)
    names = {path: names_of(path, config) for path in shapes}
    missing = [alternatives[0] for alternatives in names.values() if alternatives[0] not in given]
    extra = sorted(given.keys() - {name for several in names.values() for name in several})
    if missing or extra:
        raise UserError(
            "these weights are not of this network; "
            f"missing: {listed(missing) or 'none'}; not known: {listed(extra) or 'none'}"
        )
    params = {}
    for path, shape in shapes.items():
        first, *others = names[path]
        if any(other in given and not _same(given[first], given[other]) for other in others):
            raise UserError(f"{first} and its other names in the file have different values")
        leaf = _from_torch(path, given[first])
        if leaf.shape != shape:
            if path.startswith("heads/"):
                raise UserError(
                    f"these weights are of {leaf.shape[-1]} classes (background included) or "
                    f"regions, and the labels of {shape[-1]} ({first})"
                )
            raise UserError(f"{path} ({first}) is {shape} in the config and {leaf.shape} there")
        params[path] = leaf
    return unflatten_dict(params, sep="/")


def to_state_dict(params: Tree, config: UNetConfig) -> StateDict:
    """The state dict with which nnU-Net v2's network is that of `params`.

    PlainConvUNet, or ResidualEncoderUNet where the encoder is a residual one. It holds every name
    under which that reaches a weight, with one array for each weight. Transposed convolutions and
    heads without a bias (v1's form) get one of zeros.

    Raises:
      UserError: no network of nnU-Net v2 is that one.
    """
    if not config.conv_bias or not config.deep_supervision:
        raise UserError("nnU-Net v2 has networks with conv_bias and deep_supervision only")
    if config.kernel_sizes_decoder not in ((), tuple(reversed(config.kernel_sizes[:-1]))):
        raise UserError(
            "nnU-Net v2 has no network whose decoder has other kernels than its encoder: "
            f"config.model.kernel_sizes_decoder={config.kernel_sizes_decoder!r}"
        )
    leaves = flatten_dict(params, sep="/")
    unknown = sorted(set(leaves) ^ set(_shapes(config)))
    if unknown:
        raise UserError(
            f"nnU-Net v2 has no network with these parameters; they differ in {', '.join(unknown)}"
        )
    for path, leaf in list(leaves.items()):
        node, _, name = path.rpartition("/")
        if name == "kernel" and (node.startswith("heads/") or node.endswith("/up")):
            leaves.setdefault(f"{node}/bias", np.zeros(leaf.shape[-1], leaf.dtype))
    state_dict: StateDict = {}
    for path, leaf in leaves.items():
        state_dict.update(dict.fromkeys(_v2_names(path, config), _to_torch(path, leaf)))
    return state_dict


def _shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of UNet(config), by path."""
    # Large enough for any depth of network: the shapes of parameters do not depend on it.
    image = jax.ShapeDtypeStruct((1, 8, 8, 8, config.in_channels), jnp.float32)
    tree = jax.eval_shape(UNet(config, form="lax").init, jax.random.key(0), image)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def _v2_names(path: str, config: UNetConfig) -> tuple[str, ...]:
    """The names of a leaf in nnU-Net v2: its own, and those that reach it by another way."""
    *node, leaf = path.split("/")
    weight = _TORCH_LEAF[leaf]
    if node[0] == "heads":
        return (f"decoder.seg_layers.{_step(node[1], config)}.{weight}",)
    if node[-1] == "up":
        return (f"decoder.transpconvs.{_step(node[1], config)}.{weight}",)
    *block, layer = node
    place = _v2_block(block, config)
    # The decoder holds the encoder.
    places = [place, f"decoder.{place}"] if block[0] == "encoder" else [place]
    index = ("conv", "norm").index(layer)
    return tuple(
        f"{place}.{name}.{weight}" for place in places for name in (layer, f"all_modules.{index}")
    )


def _v2_block(node: Sequence[str], config: UNetConfig) -> str:
    """The name of a convolution with its norm (ConvDropoutNormReLU)."""
    match node:
        case ["decoder", stage, block]:
            return f"decoder.stages.{_step(stage, config)}.convs.{_number(block)}"
        case ["encoder", "stem"]:
            return "encoder.stem.convs.0"
        case ["encoder", stage, block]:
            return f"encoder.stages.{_number(stage)}.0.convs.{_number(block)}"
        case ["encoder", stage, block, "skip"]:
            # Behind the pooling, in a block that has a stride.
            index = int(config.strides[_number(stage)] != (1, 1, 1))
            return f"encoder.stages.{_number(stage)}.blocks.{_number(block)}.skip.{index}"
        case _:
            _, stage, block, name = node
            return f"encoder.stages.{_number(stage)}.blocks.{_number(block)}.{name}"


def _number(name: str) -> int:
    """Of a stage or a block, which ends in it."""
    return int(name.rpartition("_")[2])


def _step(stage: str, config: UNetConfig) -> int:
    """The place of a stage in the decoder, which nnU-Net counts from below."""
    return len(config.features_per_stage) - 2 - _number(stage)


def _v1_names(path: str, config: UNetConfig) -> tuple[str, ...]:
    """The name of a leaf in Generic_UNet, which keeps the last block of some stages apart."""
    part, stage, *inside, leaf = path.split("/")
    resolution, step = _number(stage), _step(stage, config)
    deepest = len(config.features_per_stage) - 1
    weight = _TORCH_LEAF[leaf]
    if part == "heads":
        return (f"seg_outputs.{step}.{weight}",)
    if inside == ["up"]:
        return (f"tu.{step}.{weight}",)
    block, layer = _number(inside[0]), inside[1]
    layer = {"conv": "conv", "norm": "instnorm"}[layer]
    if part == "encoder":
        place, blocks = f"conv_blocks_context.{resolution}", config.n_conv_per_stage[resolution]
    else:
        place = f"conv_blocks_localization.{step}"
        blocks = config.n_conv_per_stage_decoder[step]
    if part == "decoder" or resolution == deepest:
        last = block == blocks - 1
        place, block = f"{place}.{int(last)}", 0 if last else block
    return (f"{place}.blocks.{block}.{layer}.{weight}",)


def _is_v1(names: Mapping[str, Any]) -> bool:
    return any(name.startswith("conv_blocks_") for name in names)


def _plain(name: str) -> str:
    """The name without what torch.compile and DistributedDataParallel put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _from_torch(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel") or value.ndim != 5:
        return value
    # Convolution (out, in, D, H, W), transposed convolution (in, out, D, H, W).
    return value.transpose(2, 3, 4, 0, 1) if "/up/" in path else value.transpose(2, 3, 4, 1, 0)


def _to_torch(path: str, leaf: Any) -> np.ndarray:
    value = np.array(leaf)
    if not path.endswith("kernel"):
        return value
    order = (3, 4, 0, 1, 2) if "/up/" in path else (4, 3, 0, 1, 2)
    return np.ascontiguousarray(value.transpose(order))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()
