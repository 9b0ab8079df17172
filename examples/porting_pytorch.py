"""EQL as the loss of a PyTorch model: arrays go there and back by DLPack, without a copy. Needs PyTorch.

    python examples/porting_pytorch.py

Trains for some steps and compares the gradient with one that PyTorch computes by itself.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import torch

from eql_jax.class_losses import sigmoid_bias
from eql_jax.losses import equalization_loss, tail_mask_from_threshold
from examples.made_up_data import COUNTS, EMPTY, NUM_CLASSES, draw_proposals

TAIL = tail_mask_from_threshold(COUNTS / (COUNTS.sum() + EMPTY), 0.05)
LOSS_AND_GRAD = jax.jit(jax.value_and_grad(lambda logits, labels: equalization_loss(logits, labels, TAIL)))


class EqualizationLoss(torch.autograd.Function):
    """logits [R, K], labels int32 [R] -> scalar. The gradient is computed with the loss and kept for backward."""

    @staticmethod
    def forward(ctx, logits, labels):
        arrays = (jnp.from_dlpack(x.detach().contiguous()) for x in (logits, labels))
        loss, gradient = jax.block_until_ready(LOSS_AND_GRAD(*arrays))
        ctx.save_for_backward(torch.from_dlpack(gradient))
        return torch.from_dlpack(loss).clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, NUM_CLASSES))
    torch.nn.init.normal_(model[-1].weight, std=0.01)
    torch.nn.init.constant_(model[-1].bias, sigmoid_bias(0.001))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(100):
        features, labels = map(torch.from_numpy, draw_proposals((256,), seed=step))
        optimizer.zero_grad()
        loss = EqualizationLoss.apply(model(features), labels)
        loss.backward()
        optimizer.step()
    print(f"EQL: loss {loss:.3f}")

    # The gradient against PyTorch's own: sigmoid cross-entropy with the weights of the paper's equation.
    logits = model(features).detach().requires_grad_()
    target = torch.nn.functional.one_hot(torch.where(labels < 0, NUM_CLASSES, labels).long(), NUM_CLASSES + 1)[:, :-1]
    foreground, valid = (labels >= 0) & (labels < NUM_CLASSES), labels >= 0
    weight = 1 - foreground[:, None] * torch.from_numpy(TAIL) * (1 - target)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    (expected,) = torch.autograd.grad((valid[:, None] * weight * bce).sum() / valid.sum(), logits)
    (found,) = torch.autograd.grad(EqualizationLoss.apply(logits, labels), logits)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-8)

    features, labels = draw_proposals((256,), seed=1000)
    scores = torch.sigmoid(model(torch.from_numpy(features))).detach().numpy()
    right = (scores.argmax(-1) == labels)[(labels >= 0) & (labels < NUM_CLASSES)]
    print(f"{right.sum()} of {right.size} objects right")
    assert right.mean() > 0.8


if __name__ == "__main__":
    main()
