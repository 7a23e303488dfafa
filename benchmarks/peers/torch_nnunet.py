"""PyTorch's nnU-Net: its network, loss, optimiser and schedule, for a UNetConfig of ours.

Everything here comes from dynamic-network-architectures and nnunetv2; only the arguments are ours.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from covid_jax.config import Config, OptimizerConfig, UNetConfig
from covid_jax.errors import UserError
from covid_jax.model.nnunet_weights import to_state_dict
from covid_jax.training.cost import abstract_params
from covid_jax.training.state import learning_rate
from covid_jax.transfer.freezing import mask
from covid_jax.transfer.strategies import frozen_patterns

if TYPE_CHECKING:  # it brings grain along, which the step does not need
    from covid_jax.data.sampling import Batch

Loss = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


def network(config: UNetConfig) -> PlainConvUNet | ResidualEncoderUNet:
    """The network of `config` with nnU-Net's initialisation (nnUNetTrainer's)."""
    if not config.head_bias or config.kernel_sizes_decoder:
        raise UserError(
            "the peer is nnU-Net v2, which has biases everywhere and no kernels for the decoder "
            "alone; leave out --peer"
        )
    arguments = {
        "input_channels": config.in_channels,
        "n_stages": len(config.features_per_stage),
        "features_per_stage": config.features_per_stage,
        "conv_op": nn.Conv3d,
        "kernel_sizes": config.kernel_sizes,
        "strides": config.strides,
        "num_classes": config.num_classes,
        "n_conv_per_stage_decoder": config.n_conv_per_stage_decoder,
        "conv_bias": config.conv_bias,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": config.deep_supervision,
    }
    made = (
        ResidualEncoderUNet(n_blocks_per_stage=config.n_blocks_per_stage, **arguments)
        if config.n_blocks_per_stage
        else PlainConvUNet(n_conv_per_stage=config.n_conv_per_stage, **arguments)
    )
    made.apply(made.initialize)
    return made


class MultiEncoder(nn.Module):
    """The paper's multi-encoder U-Net from the layers of dynamic-network-architectures."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.self_encoder = network(config).encoder
        self.adapted_encoder = network(config).encoder
        self.adapted_encoder.requires_grad_(False)
        features, strides = config.features_per_stage, config.strides
        self.transpconvs, self.stages, self.seg_layers = (nn.ModuleList() for _ in range(3))
        below = 2 * features[-1]
        for step, stage in enumerate(reversed(range(len(features) - 1))):
            stride = strides[stage + 1]
            self.transpconvs.append(nn.ConvTranspose3d(below, features[stage], stride, stride))
            self.stages.append(
                StackedConvBlocks(
                    config.n_conv_per_stage_decoder[step],
                    nn.Conv3d,
                    3 * features[stage],
                    features[stage],
                    config.kernel_sizes[stage],
                    1,
                    conv_bias=True,
                    norm_op=nn.InstanceNorm3d,
                    norm_op_kwargs={"eps": 1e-5, "affine": True},
                    nonlin=nn.LeakyReLU,
                    nonlin_kwargs={"inplace": True},
                )
            )
            self.seg_layers.append(nn.Conv3d(features[stage], config.num_classes, 1))
            below = features[stage]
        self.apply(InitWeights_He(1e-2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The logits of every head, full resolution first."""
        own = self.self_encoder(x)
        with torch.no_grad():
            adapted = self.adapted_encoder(x)
        skips = [torch.cat(pair, 1) for pair in zip(own, adapted, strict=True)]
        below, logits = skips[-1], []
        for up, blocks, head, skip in zip(
            self.transpconvs, self.stages, self.seg_layers, skips[-2::-1], strict=True
        ):
            below = blocks(torch.cat((up(below), skip), 1))
            logits.append(head(below))
        return logits[::-1]


def strategy_network(config: Config) -> nn.Module:
    """The network that a run trains, with what it freezes set to need no gradient.

    Raises:
      ValueError: config.frozen with the two encoders, which have no names in nnU-Net.
    """
    if config.strategy == "multi_encoder":
        if config.frozen:
            raise ValueError("config.frozen is not known here for multi_encoder")
        return MultiEncoder(config.model)
    net = network(config.model)
    params = abstract_params(config)
    held = mask(params, frozen_patterns(config)[0])
    # nnU-Net's name of each leaf, by way of arrays that hold whether it is frozen.
    marks = jax.tree.map(lambda leaf, frozen: np.full(leaf.shape, frozen), params, held)
    frozen = to_state_dict(marks, config.model)
    for name, weight in net.named_parameters():
        weight.requires_grad_(not frozen[name].any())
    return net


def forward_cropped(net: PlainConvUNet, x: torch.Tensor) -> list[torch.Tensor]:
    """`net` on a patch that its strides do not divide: upsampled features cropped to the skips.

    The layers are `net`'s own; PlainConvUNet itself fails on such a patch.
    """
    skips = net.encoder(x)
    below, logits = skips[-1], []
    decoder = net.decoder
    for up, blocks, head, skip in zip(
        decoder.transpconvs, decoder.stages, decoder.seg_layers, skips[-2::-1], strict=True
    ):
        depth, height, width = skip.shape[2:]
        upsampled = up(below)[:, :, :depth, :height, :width]
        below = blocks(torch.cat((upsampled, skip), 1))
        logits.append(head(below))
    return logits[::-1]


def loss(
    heads: int, batch_dice: bool = False, ignore_label: int | None = None, regions: bool = False
) -> Loss:
    """NnUNetTrainer's loss of the logits of every head, for labels (N, D, H, W).

    Of `regions` for which of them a voxel lies in, (N, R, D, H, W), with none ignored.
    """
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    one_head = (
        DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
        if regions
        else DC_and_CE_loss(
            dice,
            {},
            weight_ce=1,
            weight_dice=1,
            ignore_label=ignore_label,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    )
    weights = np.array([1 / 2**i for i in range(heads)])
    if heads > 1:
        weights[-1] = 0
    wrapped = DeepSupervisionWrapper(one_head, weights / weights.sum())

    def of(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        full = (labels if regions else labels[:, None]).float()
        targets = [
            nn.functional.interpolate(full, size=head.shape[2:], mode="nearest-exact")
            for head in logits
        ]
        return wrapped(list(logits), targets)

    return of


def optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """NnUNetTrainer's SGD over the weights that are not frozen."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    return torch.optim.SGD(
        weights,
        config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=True,
    )


def train_step(
    net: nn.Module,
    sgd: torch.optim.SGD,
    loss_of: Loss,
    image: torch.Tensor,
    labels: torch.Tensor,
    clip_norm: float,
    autocast: bool = False,
) -> float:
    """NnUNetTrainer's train_step, with autocast to bfloat16 where asked; returns the loss."""
    sgd.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=autocast):
        value = loss_of(net(image), labels)
    value.backward()
    nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
    sgd.step()
    return value.item()


def train(
    config: Config,
    seed: int,
    batches: "Iterable[Batch]",
    after_epoch: Callable[[nn.Module], None] = lambda net: None,
) -> PlainConvUNet | ResidualEncoderUNet:
    """The network of `config` from weights of its own, trained as nnUNetTrainer trains it.

    Args:
      config: of the run; its epochs, schedule, network and optimiser are taken.
      seed: of the first weights.
      batches: of all steps, in their order.
      after_epoch: is given the network after each epoch.
    """
    torch.manual_seed(seed)
    net = network(config.model)
    loss_of = loss(len(config.model.features_per_stage) - 1, bool(config.loss.batch_dice))
    sgd = optimizer(net, config.optimizer)
    for step, batch in enumerate(batches):
        epoch, place = divmod(step, config.steps_per_epoch)
        for group in sgd.param_groups:
            group["lr"] = learning_rate(config, epoch)
        image, label = channels_first(batch.image), torch.from_numpy(batch.label)
        train_step(net, sgd, loss_of, image, label, config.optimizer.clip_norm)
        if place + 1 == config.steps_per_epoch:
            after_epoch(net)
    return net


def validation_step(
    net: nn.Module, loss_of: Loss, image: torch.Tensor, labels: torch.Tensor, autocast: bool = False
) -> float:
    """NnUNetTrainer's validation_step without its bookkeeping; returns the loss."""
    with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=autocast):
        logits = net(image)
        value = loss_of(logits, labels)
        logits[0].argmax(1)
    return value.item()


def channels_first(image: np.ndarray) -> torch.Tensor:
    """(N, D, H, W, C) -> a tensor (N, C, D, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1)))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """A tensor (N, C, D, H, W) -> (N, D, H, W, C)."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)
