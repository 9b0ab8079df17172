"""From mixed data sets to gradients: classes without negatives, objects without masks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from eql_jax.class_losses import ClassFrequencies
from eql_jax.data.annotations import load_annotations
from eql_jax.data.class_map import same_classes
from eql_jax.data.mixed import ID_STRIDE, ExtraSet, mix
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.models import build_model, init_model
from eql_jax.training.train_step import LOSS_TERMS, image_keys
from tests.models.test_mask_rcnn import tiny_config

K = 4
# Of the other set: class 2 is verified absent in its pictures, class 3 not looked for; class 1 is not exhaustive.
NEGATIVE, NOT_EXHAUSTIVE = [30], [20]


def write(folder, *, categories, masks, lists):
    """Noise pictures with two objects of class 0; main pictures have one of class 3 as well."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 5):
        Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "width": 96, "height": 64, "file_name": f"{i}.png"} | lists)
        for x, y, category in ((5, 8, 10), (50, 20, 10), (30, 30, categories[-1] if masks else 10)):
            box = {"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": [x, y, 30, 25]}
            mask = {"segmentation": [[x, y, x + 30, y, x + 30, y + 25, x, y + 25]]} if masks else {}
            annotations.append(box | {"area": 750} | mask)
    named = [{"id": i, "name": f"c{i}"} for i in categories]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": named}))
    return load_annotations(folder / "a.json", folder, masks=masks)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """share of the other set -> a batch of four pictures; and batch -> terms and gradient of narrow Mask R-CNN."""
    folder = tmp_path_factory.mktemp("mixed")
    main = write(folder / "main", categories=[10, 20, 30, 40], masks=True, lists={})
    lists = {"neg_category_ids": NEGATIVE, "not_exhaustive_category_ids": NOT_EXHAUSTIVE}
    other = write(folder / "other", categories=[10, 20, 30], masks=False, lists=lists)
    config = tiny_config(**{"model.box_head.prior": 0.1})
    config.data.update(shorter_side=(64,), longest_side=96, buckets=((64, 96),), max_objects=6, mask_size=14, workers=1)

    def batch(share):
        class_map = same_classes(other.categories, main.categories, origin="other")
        iterator = make_train_iterator(
            mix(main, [ExtraSet(other, class_map, share, "verified", has_masks=False)]), config
        )
        found = next(iterator)
        iterator.close()
        return found

    model = build_model(config, K, ClassFrequencies(K, tail=np.zeros(K, bool)))
    variables = init_model(model, jax.random.key(0))

    @jax.jit
    def gradients(batch):
        def total(params):
            keys = image_keys(0, jnp.int32(0), batch["image_id"].astype(jnp.uint32))
            everything = variables | {"params": params}
            terms = model.apply(everything, batch, keys, method="losses", mutable=["batch_stats"])
            return sum(terms[0][t] for t in LOSS_TERMS), terms[0]

        (_, terms), grads = jax.value_and_grad(total, has_aux=True)(variables["params"])
        return terms, grads

    def run(batch):
        arrays = {k: v for k, v in batch.items() if k != "original_size"}
        return jax.device_get(gradients(arrays | {"image_id": batch["image_id"].astype(np.uint32)}))

    return batch, run


def bias_gradient(grads):
    return np.asarray(grads["box_head"]["cls_score"]["bias"])


@pytest.mark.slow
def test_classes_without_negatives_get_no_gradient(run):
    """Pictures of the other set alone: class 0 has objects, 2 negatives, 1 and 3 nothing at all."""
    make, gradients = run
    batch = make(1.0)
    assert (batch["image_id"] >= ID_STRIDE).all() and set(batch["gt_classes"][batch["gt_classes"] >= 0]) == {0}
    np.testing.assert_array_equal(batch["annotated_classes"], [[True, False, True, False]] * 4)
    terms, grads = gradients(batch)
    kernel, bias = np.asarray(grads["box_head"]["cls_score"]["kernel"]), bias_gradient(grads)
    assert not kernel[:, [1, 3]].any() and not bias[[1, 3]].any()
    assert kernel[:, 0].any() and kernel[:, 2].any() and bias[2] > 0  # negatives push down
    # Boxes only: the box head learns, the mask head does not.
    assert terms["mask"] == 0 and terms["box"] > 0 and terms["num_foreground"] > 0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads["mask_head"]))
    assert np.asarray(grads["box_head"]["bbox_pred"]["kernel"]).any()
    # As soon as they are annotated, they are negatives.
    bias = bias_gradient(gradients(batch | {"annotated_classes": np.ones((4, K), bool)})[1])
    assert (bias[1:] > 0).all()


@pytest.mark.slow
def test_a_mixed_batch(run):
    """Two pictures of each set. What lies where no mask is known is not read; the main set's masks count alone."""
    make, gradients = run
    batch = make(0.5)
    is_main = batch["image_id"] < ID_STRIDE
    assert is_main.sum() == 2
    terms, grads = gradients(batch)
    assert terms["mask"] > 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert bias_gradient(grads)[1] > 0  # negatives of the main set's two pictures
    everywhere = gradients(batch | {"annotated_classes": np.ones((4, K), bool)})[1]
    assert bias_gradient(everywhere)[1] > bias_gradient(grads)[1]
    np.testing.assert_array_equal(bias_gradient(everywhere)[0], bias_gradient(grads)[0])

    noise = np.random.default_rng(1).integers(0, 2, batch["gt_masks"].shape, dtype=np.uint8)
    other = np.where(batch["gt_has_mask"][..., None, None], batch["gt_masks"], noise)
    assert (other != batch["gt_masks"]).any()
    jax.tree.map(np.testing.assert_array_equal, gradients(batch | {"gt_masks": other}), (terms, grads))
    # With masks said to be known, the empty ones would be learned.
    wrong = gradients(batch | {"gt_has_mask": batch["gt_classes"] >= 0})[0]
    assert wrong["mask"] != terms["mask"] and wrong["box"] == terms["box"]
