"""A recorded training step: detectron2's samples, the losses on them and the gradients of the parameters.

The network is frozen up to res2 (FREEZE_AT 2), so res2 determines everything that is trained, and a recorded res2 may
stand for images that are not recorded. Used by test_detectron2_variants_training.py on the steps in tests/testdata and
by check_golden.py on any recorded step.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eql_jax.class_losses import ClassFrequencies
from eql_jax.convert.table import detectron2_table, find_rule
from eql_jax.data.polygons import crop_mask
from eql_jax.losses import tail_mask_from_threshold
from eql_jax.models.mask_rcnn import MaskRCNN
from eql_jax.models.structures import ClassRules
from eql_jax.models.targets import GroundTruth, RoITargets, RPNTargets
from eql_jax.ops import encode_boxes
from eql_jax.training.compatibility import flatten
from tests.models.golden import Golden, parse_polygons, relative_difference

TERMS = {"rpn_cls": "loss_rpn_cls", "rpn_box": "loss_rpn_loc", "cls": "loss_cls", "box": "loss_box_reg"}
TERMS |= {"mask": "loss_mask"}

# In both recorded cascades one hidden unit of one RoI has a sum before the ReLU that is 0 to the last digits of float32
# (softmax: 5e-7, the next is 7e-5), so that the order of additions, which is a processor's, turns it on or off: alone
# it moves gradients by 1e-3 to 1e-2 of their largest entry. These nudges of their biases put them on detectron2's side:
# loss -> (path, unit, nudge).
TIES = {
    "softmax": ("params/box_head_2/fc2/bias", 12, -2e-6),
    "eql": ("params/box_head_1/fc1/bias", 11, 2e-6),
}


def load_expected(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, float], np.ndarray | None]:
    """Gradients by detectron2's names, the L2 norm of every parameter's, and the frequency of each class."""
    with np.load(folder / "train_grads.npz") as data:
        gradients = dict(data)
    norms = {k: v[0] for k, v in json.loads((folder / "train_grad_norms.json").read_text()).items()}
    freq = json.loads((folder / "meta.json").read_text()).get("freq")
    return gradients, norms, None if freq is None else np.array(freq)


def images(golden: Golden) -> tuple[np.ndarray, np.ndarray]:
    """Both images as RGB on one canvas, a multiple of 32: uint8 [2,H,W,3] and int32 [2,2]; zeros where they are not
    recorded, and their sizes those of the canvas if these are not either."""
    a = golden.arrays
    stored = "image0" in a
    if stored:
        sizes = np.array([a[f"image{i}"].shape[:2] for i in range(2)])
    else:
        sizes = a.get("image_size", np.array([a["res2"].shape[2:]] * 2) * 4)
    canvas = np.zeros((2, *(-(-sizes.max(0) // 32) * 32), 3), np.uint8)
    for i in range(2 if stored else 0):
        height, width = sizes[i]
        canvas[i, :height, :width] = a[f"image{i}"][..., ::-1]
    return canvas, sizes.astype(np.int32)


def samples(golden: Golden, truth: GroundTruth) -> tuple[RPNTargets, RoITargets]:
    """detectron2's samples as this model's targets; of a cascade those of the first stage."""
    a, prefix = golden.arrays, "stage0_" if golden.num_stages else ""
    canvas, _ = images(golden)
    strides = golden.model.strides
    pyramid = [np.zeros((2, -(-canvas.shape[1] // s), -(-canvas.shape[2] // s), 1)) for s in strides]
    anchors = np.concatenate(golden.model.bind(golden.variables).anchors(pyramid))
    labels = np.stack([a[f"rpn_labels{i}"] for i in range(2)]).astype(np.int32)
    deltas = np.zeros((2, len(anchors), 4), np.float32)
    rois = np.stack([a[f"{prefix}roi_boxes{i}"] for i in range(2)])
    classes = np.stack([a[f"{prefix}roi_gt_classes{i}"] for i in range(2)]).astype(np.int32)
    matched = np.zeros(classes.shape, np.int32)
    for i in range(2):
        positive = labels[i] == 1
        key = f"rpn_matched_gt_pos{i}"  # or of every anchor
        boxes = a[key] if key in a else a[f"rpn_matched_gt{i}"][positive]
        deltas[i, positive] = encode_boxes(boxes, anchors[positive], weights=(1, 1, 1, 1))
        foreground = classes[i] < golden.model.num_classes
        assert foreground.sum() == a["num_fg"][i] and foreground[: a["num_fg"][i]].all()
        # The object of a foreground RoI is recorded by its box.
        same = (a[f"{prefix}roi_gt_boxes{i}"][: a["num_fg"][i], None] == np.asarray(truth.boxes)[i][None]).all(-1)
        assert (same.sum(1) == 1).all()
        matched[i, foreground] = same.argmax(1)
    gt_boxes = np.take_along_axis(np.asarray(truth.boxes), matched[..., None], 1)
    roi_deltas = encode_boxes(gt_boxes, rois, weights=golden.model.sample_weights)
    rpn = RPNTargets(jnp.asarray(labels), jnp.asarray(deltas))
    return rpn, RoITargets(jnp.asarray(rois), jnp.asarray(classes), jnp.asarray(matched), roi_deltas)


def ground_truth(golden: Golden) -> GroundTruth:
    """The objects of both images, without masks: targets are rasterised from the polygons."""
    boxes, classes = (np.stack([golden.arrays[f"gt_{k}{i}"] for i in range(2)]) for k in ("boxes", "classes"))
    masks = jnp.zeros((*classes.shape, 0, 0), bool)
    return GroundTruth(jnp.asarray(boxes), jnp.asarray(classes, jnp.int32), jnp.zeros(classes.shape, bool), masks)


def rasterised(golden: Golden, rois: RoITargets, size: int = 28) -> np.ndarray:
    """Mask targets of the foreground slots as detectron2 makes them: the polygons rasterised in each RoI."""
    a = golden.arrays
    slots = int(rois.classes.shape[1] * golden.config.model.roi.positive_fraction)
    targets = np.zeros((2, slots, size, size), bool)
    for i in range(2):
        parts = parse_polygons(a[f"polys{i}"])
        for slot in range(a["num_fg"][i]):
            targets[i, slot] = crop_mask(parts[rois.matched[i, slot]], rois.boxes[i, slot], mask_size=size)
    own = np.concatenate([targets[i, : a["num_fg"][i]] for i in range(2)])
    np.testing.assert_array_equal(own, np.unpackbits(a["mask_targets_packed"], axis=-1)[..., :size].astype(bool))
    return targets


def with_tail(model: MaskRCNN, tail: np.ndarray) -> MaskRCNN:
    """The model with bool [K] as the tail of its classification loss."""
    return model.clone(frequencies=ClassFrequencies(model.num_classes, tail=tail))


def run_step(golden: Golden, freq: np.ndarray | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Losses of the recorded samples (of a cascade, in every stage) and the gradient of their sum, {path: array}."""
    truth = ground_truth(golden)
    rpn_targets, rois = samples(golden, truth)
    targets = rasterised(golden, rois)
    threshold = golden.config.model.eql.threshold
    tail = np.zeros(golden.model.num_classes, bool) if freq is None else tail_mask_from_threshold(freq, threshold)
    assert freq is None or 0 < tail.sum() < len(tail)
    canvas, sizes = images(golden)

    def replace(next_fun, args, kwargs, context):
        if context.method_name == "refine":
            a, stage = golden.arrays, args[0] + 1
            boxes = np.stack([a[f"stage{stage}_roi_boxes{i}"] for i in range(2)])
            # A box that moves by 1e-5 pixels can turn a unit of the next head on or off: losses hardly change, and
            # single entries of the gradient by 1e-3.
            return jnp.asarray(boxes)
        return next_fun(*args, **kwargs)

    def losses(model):
        pyramid = model.features(canvas, sizes, train=True)
        terms = model.rpn_losses(model.rpn(pyramid), rpn_targets)
        return terms | model.roi_losses(pyramid, jnp.asarray(sizes), rois, truth, ClassRules(), targets)

    @jax.jit
    def step(params):
        def total(params):
            variables = {**golden.variables, "params": params}
            stored = golden.from_res2() if "res2" in golden.arrays else contextlib.nullcontext()
            with stored, nn.intercept_methods(replace):
                terms = with_tail(golden.model, tail).apply(variables, method=losses)
            return sum(terms[k] for k in TERMS), terms

        return jax.grad(total, has_aux=True)(params)

    gradients, terms = step(_without_tie(golden))
    return jax.tree.map(np.asarray, terms), {k: np.asarray(v) for k, v in flatten({"params": gradients}).items()}


def _without_tie(golden: Golden) -> dict[str, Any]:
    """The parameters, those of a cascade with its nudge of `TIES`."""
    params = golden.variables["params"]
    if not golden.num_stages:
        return params
    path, unit, nudge = TIES[golden.config.model.box_head.loss]
    keys = tuple(jax.tree_util.DictKey(key) for key in path.split("/")[1:])
    return jax.tree_util.tree_map_with_path(lambda at, x: x.at[unit].add(nudge) if at == keys else x, params)


def compare_step(
    golden: Golden, expected: dict[str, np.ndarray], norms: dict[str, float], freq: np.ndarray | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Relative differences of every loss, and of every gradient: of its recorded array to the largest entry, and of its
    norm. Frozen parameters have none in both.

    Args:
      golden: the model and the arrays of train.npz.
      expected: {detectron2's name: gradient}.
      norms: {detectron2's name: L2 norm}, of every trained parameter.
      freq: of each class, None: not an EQL head.
    """
    terms, gradients = run_step(golden, freq)
    losses = {}
    for key, value in golden.arrays.items():
        if key.startswith("loss/"):
            losses[key] = abs(float(terms[_own_name(key.removeprefix("loss/"))]) / float(value) - 1)
    table = detectron2_table(golden.config, channels="bgr")
    worst: dict[str, float] = {}
    left = dict(norms)
    for path, gradient in gradients.items():
        rule, name = find_rule(path, table)
        if name not in left:
            assert path.startswith(("params/backbone/stem/", "params/backbone/res2_")) and not gradient.any(), path
            continue
        norm = left.pop(name)
        worst[name] = abs(float(np.linalg.norm(gradient.astype(np.float64))) / norm - 1)
        if name in expected:
            worst[name] = max(worst[name], relative_difference(gradient, rule.transform.forward(expected[name])))
    assert not left, left
    return losses, worst


def _own_name(theirs: str) -> str:
    """loss_cls_stage1 -> cls_stage1."""
    base, _, stage = theirs.partition("_stage")
    own: Any = {v: k for k, v in TERMS.items()}[base]
    return f"{own}_stage{stage}" if stage else own
