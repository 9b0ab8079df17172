"""ResNets for image classification: ResNet-32 and its like for CIFAR, ResNet-10 and its like for ImageNet-LT.

Shapes: B images, H W their size, F features of an image, C columns of logits (what the loss asks for), K classes.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from eql_jax.class_losses import ClassLoss, LossInputs
from eql_jax.models.box_head import BoxHead
from eql_jax.models.layers import Conv
from eql_jax.models.resnet import BasicBlock
from eql_jax.ops.conv import max_pool

IMAGENET_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # depth -> blocks of the four stages
KINDS = ("cifar_resnet", "resnet")


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions, and the shortcut without parameters (option A of He et al. 2016, section 4.2).

    Where the shape changes the shortcut takes every `strides`-th pixel and has zeros for the new channels, which are
    the last ones. [B,H,W,C] -> [B,H/strides,W/strides,features].
    """

    features: int
    strides: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x[:, :: self.strides, :: self.strides]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        conv1 = Conv(self.features, 3, self.strides, "batch_norm", dtype=self.dtype, name="conv1")
        conv2 = Conv(self.features, 3, 1, "batch_norm", dtype=self.dtype, name="conv2")
        return nn.relu(conv2(nn.relu(conv1(x, train=train)), train=train) + shortcut)


class CifarResNet(nn.Module):
    """ResNet of He et al. 2016, section 4.2: a 3x3, three stages of (depth - 2) / 6 blocks, the mean over the map.

    Stages have `width`, 2 `width` and 4 `width` channels. Depth 32, width 16 and 10 classes are 464,154 parameters, the
    paper's .46 million. [B,H,W,3] -> [B,4 width].
    """

    depth: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(Conv(self.width, 3, 1, "batch_norm", dtype=self.dtype, name="stem")(x, train=train))
        for stage in range(3):
            for block in range((self.depth - 2) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_{block}"
                x = PaddedBlock(self.width * 2**stage, strides, self.dtype, name=name)(x, train=train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class ImageNetResNet(nn.Module):
    """ResNet of basic blocks with torchvision's layers: 7x7 and pooling, four stages, the mean over the map.

    Depth 10 has one block a stage. Shortcuts where the shape changes are 1x1 convolutions (option B). Depth 10, width
    64 and 1000 classes are 5,418,792 parameters. [B,H,W,3] -> [B,8 width].
    """

    depth: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(Conv(self.width, 7, 2, "batch_norm", dtype=self.dtype, name="stem")(x, train=train))
        x = max_pool(x, window=3, strides=2, padding=1)
        for stage, blocks in enumerate(IMAGENET_BLOCKS[self.depth]):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_{block}"
                x = BasicBlock(self.width * 2**stage, strides, "batch_norm", self.dtype, name=name)(x, train=train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class Classifier(nn.Module):
    """A ResNet and the linear layer of a box head, whose columns mean what the loss says.

    BatchNorm is live in training and takes its statistics over the global batch: under jit over a sharded batch the
    means are global by construction. The head keeps the memory of losses that have one.

    Attributes:
      backbone: images [B,H,W,3] -> features [B,F].
      class_loss: made with background False.
      prior: score that classes start with, where the loss has a use for it.
      pixel_mean, pixel_std: RGB, 0..255.
      dtype: compute type; logits come out as float32.
    """

    backbone: nn.Module
    class_loss: ClassLoss
    prior: float
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        # Of a box head, the layer that predicts boxes is never called here, and so has no parameters.
        self.head = BoxHead(self.class_loss, num_fc=0, prior=self.prior, dtype=self.dtype)

    def features(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """uint8 RGB [B,H,W,3] -> float32 [B,F], what the linear layer sees."""
        x = (image.astype(jnp.float32) - jnp.array(self.pixel_mean)) / jnp.array(self.pixel_std)
        return self.backbone(x.astype(self.dtype), train=train)

    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """uint8 RGB [B,H,W,3] -> logits [B,C], float32."""
        return self.head.logits(self.features(image, train=train))

    def scores(self, image: jax.Array) -> jax.Array:
        """uint8 RGB [B,H,W,3] -> class probabilities [B,K], float32."""
        return self.head.scores(self(image))

    def losses(self, batch: Mapping[str, jax.Array], keys: jax.Array, loss_key: jax.Array) -> dict[str, jax.Array]:
        """The terms that `training.train_step` asks a model for: 'cls', and 'top1', the share of hits in the batch.

        Args:
          batch: image uint8 [B,H,W,3], label int32 [B].
          keys: one PRNG key per image; nothing here is drawn per image.
          loss_key: of the step, for losses that draw.
        """
        del keys
        logits = self(batch["image"], train=True)
        value = self.head.classification_loss(logits, batch["label"], LossInputs(key=loss_key))
        hit = jnp.argmax(self.head.scores(logits), axis=-1) == batch["label"]
        return {"cls": value, "top1": jnp.mean(hit.astype(jnp.float32))}


def build_classifier(config: ConfigDict, class_loss: ClassLoss) -> Classifier:
    """The model of `config` (a whole config, of which `config.model` is read)."""
    m = config.model
    dtype = jnp.dtype(m.dtype)
    kind = {"cifar_resnet": CifarResNet, "resnet": ImageNetResNet}[m.kind]
    return Classifier(
        backbone=kind(m.depth, m.width, dtype),
        class_loss=class_loss,
        prior=m.prior,
        pixel_mean=tuple(m.pixel_mean),
        pixel_std=tuple(m.pixel_std),
        dtype=dtype,
    )


def init_classifier(model: Classifier, key: jax.Array, *, image_size: int) -> Mapping:
    """Fresh variables {'params': .., 'batch_stats': .., 'loss_state': ..}. Traceable by jit."""
    variables = jax.jit(model.init)(key, jnp.zeros((1, image_size, image_size, 3), jnp.uint8))
    return {name: variables.get(name, {}) for name in ("params", "batch_stats", "loss_state")}
