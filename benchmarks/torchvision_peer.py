"""torchvision's Mask R-CNN R50-FPN at the setting of train_step.py or inference.py, as one row of JSON.

    python benchmarks/torchvision_peer.py --mode train --batch 8 --dtype bfloat16 --size 800 1344
    python benchmarks/torchvision_peer.py --mode inference --batch 1 --dtype bfloat16 --size 800 1344

needs PyTorch, torchvision and NumPy, not JAX; `train_step.py --torchvision` and the lists of rows.py start it in a
process of its own.

The same work as here: K + 1 classes, images at their size (torchvision's transform normalises and batches them, but
does not resize them), masks of detections as 28 x 28 probabilities (it does not paste them either), lvis_like.py's
objects with full masks on the device, frozen BatchNorm, stem and first stage frozen (freeze_at 2), 1000 proposals out
of 2000 per level in training and 1000 per level in inference, 512 RoIs of which a quarter may be foreground, 300
detections. bfloat16 is AMP (autocast), memory channels_last, float32 goes through TF32 as it does under JAX; SGD with
momentum .9 and weight decay 1e-4. On a GPU cuDNN picks its algorithms by trial or by rule, whichever is faster here
(`cudnn_benchmark`): trials are made again for every new number of foreground RoIs.

What differs: torchvision's classifier is a softmax with background; its mask head runs on the foreground RoIs that
there are, 128 slots an image here. In inference its scores come from untrained weights too, and
its own threshold of .05 would keep nothing, while this package's of 1e-4 would make it suppress 1.2 million boxes. So
the threshold here is set to let --candidates pairs an image through (10,000, as many as enter NMS here), found in a
first pass that is not timed.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys
import time

START = time.perf_counter()
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

MISSING = (
    "torchvision's row needs PyTorch and torchvision, which {python} does not have ({error}). Install both, or name a "
    "Python that has them: --torch_python PATH"
)


def import_torch():
    """(torch, torchvision).

    Raises:
      SystemExit: status 2, one of them is not installed.
    """
    try:
        import torch
        import torchvision
    except ImportError as e:
        print(MISSING.format(python=sys.executable, error=e), file=sys.stderr)
        raise SystemExit(2) from e
    return torch, torchvision


def build(torch, args: argparse.Namespace, device: str):
    """torchvision's model with the settings of configs/base.py."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Transform(GeneralizedRCNNTransform):
        """Without resizing images and pasting masks, and with batches in channels_last."""

        def resize(self, image, target=None):
            return image, target

        def batch_images(self, images, size_divisible=32):
            batched = super().batch_images(images, size_divisible)
            return batched.contiguous(memory_format=torch.channels_last)

        def postprocess(self, result, image_shapes, original_image_sizes):
            return result

    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = MaskRCNN(
        backbone,
        num_classes=args.classes + 1,
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000,
        box_score_thresh=1e-4,
        box_detections_per_img=300,
    )
    for name, buffer in model.backbone.body.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.2)  # random weights without this grow twofold from block to block
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    model.transform = Transform(min(args.size), max(args.size), mean, std)
    return model.to(device).to(memory_format=torch.channels_last)


def make_data(torch, args: argparse.Namespace, device: str):
    """(images float32 [3,H,W] of 0..1, targets) on the device; a mask is the ellipse in its box, uint8 [G,H,W]."""
    from benchmarks import lvis_like

    height, width = args.size
    batch = lvis_like.make_batch(batch=args.batch, height=height, width=width, num_classes=args.classes, mask_size=1)
    y = torch.arange(height, device=device)[:, None] + 0.5
    x = torch.arange(width, device=device)[None] + 0.5
    images, targets = [], []
    for i in range(args.batch):
        image = torch.from_numpy(batch["image"][i]).to(device)
        images.append(image.permute(2, 0, 1).float().div(255))
        count = int((batch["gt_classes"][i] >= 0).sum())
        boxes = torch.from_numpy(batch["gt_boxes"][i, :count]).to(device)
        masks = torch.stack(
            [
                ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1
                for x0, y0, x1, y1 in boxes.tolist()
            ]
        )
        labels = torch.from_numpy(batch["gt_classes"][i, :count]).to(device).long() + 1  # 0 is background
        targets.append({"boxes": boxes, "labels": labels, "masks": masks.to(torch.uint8)})
    return images, targets


class _Seen(Exception):
    """Ends a pass when the scores are known."""


def limit_candidates(torch, model, detect, count: int) -> float:
    """Sets the score threshold so that about `count` (proposal, class) pairs an image pass, and returns it."""
    heads, seen = model.roi_heads, []
    original = heads.postprocess_detections

    def postprocess(class_logits, box_regression, proposals, image_shapes):
        seen.append((torch.softmax(class_logits.float(), -1)[:, 1:].flatten(), len(image_shapes)))
        raise _Seen

    heads.postprocess_detections = postprocess
    try:
        detect()
    except _Seen:
        pass
    heads.postprocess_detections = original
    scores, images = seen[0]
    heads.score_thresh = float(torch.topk(scores, min(count * images, len(scores))).values[-1])
    return heads.score_thresh


def run(args: argparse.Namespace) -> dict[str, object]:
    torch, torchvision = import_torch()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    repeats = args.repeats or (20 if device == "cuda" else 3)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = build(torch, args, device)
    images, targets = make_data(torch, args, device)
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16")  # noqa: E731
    facts = {}
    if args.mode == "train":
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=2e-5, momentum=0.9, weight_decay=1e-4)

        def one():
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = sum(model(images, targets).values())
            loss.backward()
            optimizer.step()
            return loss

    else:
        model.eval()

        @torch.inference_mode()
        def one():
            with autocast():
                return model(images)

        facts["score_threshold"] = limit_candidates(torch, model, one, args.candidates)
        facts["candidates"] = args.candidates

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            one()
            wait()
            times.append(time.perf_counter() - start)
        return times

    if device == "cuda":
        medians = {}
        for by_trial in (False, True):
            torch.backends.cudnn.benchmark = by_trial
            medians[by_trial] = statistics.median(timed(8)[3:])
        facts["cudnn_benchmark"] = torch.backends.cudnn.benchmark = medians[True] < medians[False]
    timed(3 if device == "cuda" else 1)
    times = timed(repeats)
    start = time.perf_counter()
    for _ in range(repeats):
        out = one()
    wait()
    pipelined = (time.perf_counter() - start) / repeats
    if args.mode == "train":
        facts["loss"] = float(out.detach())
        facts["objects_mean"] = sum(len(t["labels"]) for t in targets) / len(targets)
    else:
        facts["detections"] = sum(len(r["labels"]) for r in out)
    seconds = statistics.median(times)
    return {
        "benchmark": f"torchvision_{args.mode}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "classes": args.classes,
        "size": list(args.size),
        "batch": args.batch,
        "dtype": args.dtype,
        **facts,
        "repeats": repeats,
        "seconds": seconds,
        "images_per_second": args.batch / seconds,
        "pipelined_seconds": pipelined,
        "pipelined_images_per_second": args.batch / pipelined,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "process_seconds": time.perf_counter() - START,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", required=True, choices=("train", "inference"))
    parser.add_argument("--classes", type=int, default=1203, help="foreground classes")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("H", "W"), help="multiples of 32")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=0, help="timed calls; 0: 3 on a CPU, 20 on a GPU")
    parser.add_argument("--candidates", type=int, default=10_000, help="inference: pairs an image that enter NMS")
    print(json.dumps(run(parser.parse_args(argv))), flush=True)


if __name__ == "__main__":
    main()
