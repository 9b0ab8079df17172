"""Compiling the training step and the detector ahead of time, for devices that need not be here.

Shapes alone go in: no array is made and nothing is run. A TPU programme is compiled by libtpu (`pip install
"jax[tpu]"`), which needs no TPU for that; the programme is then the one that a TPU of that kind would run. The
devices are those of slices.py.
"""

import argparse
import dataclasses
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks import slices
from eql_jax.training.errors import UserError

MODES = ("train", "inference")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One programme: mode 'train' or 'inference', image (height, width), classes, compute dtype, images per device."""

    mode: str
    size: tuple[int, int]
    classes: int
    dtype: str
    batch_per_device: int

    def row(self) -> dict[str, object]:
        """The setting as fields of a result."""
        return dataclasses.asdict(self) | {"size": list(self.size)}


class OutOfMemory(Exception):
    """The compiler found no way to fit the programme. `needs_gib`: what it says it needs, None if it does not say."""

    def __init__(self, message: str):
        super().__init__(message)
        found = re.search(r"Used ([\d.]+)([KMGT]) of", message)
        scale = {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}
        self.needs_gib = float(found[1]) * scale[found[2]] if found else None


# ---------------------------------------------------------------------------------------------------- command line
def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """What these scripts ask of the programme to compile. Lists make one programme for each combination."""
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("H", "W"))
    parser.add_argument("--classes", type=int, nargs="+", default=[1203], metavar="K")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=DTYPES)
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch", type=int, nargs="+", help="images over all devices")
    batch.add_argument("--batch-per-device", type=int, nargs="+", help="images on each device of 'data' (default: 8)")
    parser.add_argument("--mesh", default="data=-1,model=1", help="devices along each axis, -1: all that are left")
    parser.add_argument(
        "--config", default="", help="config file, by default configs/base.py; --config.key=value overrides follow"
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments, checked; `overrides` are the words --config.key=value.

    Raises:
        UserError: a number that makes no sense.
    """
    args, rest = parser.parse_known_args(argv)
    for word in rest:
        if not re.fullmatch(r"--config\.[^=]+=.*", word):
            parser.error(f"unrecognized argument: {word} (fields of the config are set with --config.key=value)")
    args.overrides = rest
    args.mesh = parse_mesh(args.mesh)
    height, width = args.size
    if height < 64 or width < 64 or height % 32 or width % 32:
        raise UserError(f"--size is {height} {width}; expected multiples of 32, at least 64 (padded sizes)")
    for name in ("classes", "batch", "batch_per_device"):
        for value in getattr(args, name) or ():
            if value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    return args


def parse_mesh(text: str) -> dict[str, int]:
    """'data=8,model=1' -> {'data': 8, 'model': 1}; an axis that is missing is 1, -1 takes what is left.

    Raises:
        UserError: another axis, or no such number.
    """
    sizes = {"data": 1, "model": 1}
    for word in text.split(","):
        found = re.fullmatch(r"\s*(data|model)\s*=\s*(-1|[1-9]\d*)\s*", word)
        if not found:
            raise UserError(f"--mesh is {text!r}; expected data=N,model=M with numbers of devices, or -1 for the rest")
        sizes[found[1]] = int(found[2])
    if sizes["data"] == sizes["model"] == -1:
        raise UserError(f"--mesh is {text!r}; expected -1 for one axis only")
    return sizes


def settings(args: argparse.Namespace, modes: Sequence[str], data_devices: int) -> Iterator[Setting]:
    """The programmes asked for on a mesh with `data_devices` on 'data'.

    Raises:
        UserError: a batch over all devices that does not divide by them.
    """
    for batch in args.batch or ():
        if batch % data_devices:
            raise UserError(f"--batch is {batch}; expected a multiple of the {data_devices} devices on the axis 'data'")
    batches = [b // data_devices for b in args.batch] if args.batch else args.batch_per_device or [8]
    for mode in modes:
        for classes in args.classes:
            for dtype in args.dtype:
                for batch in batches:
                    yield Setting(mode, tuple(args.size), classes, dtype, batch)


def load_config(path: str, overrides: Sequence[str]):
    """The ConfigDict of a config file ('' for configs/base.py) with overrides; needs ml_collections alone.

    Raises:
        UserError: no such file, or an override that does not fit.
    """
    from absl import flags
    from ml_collections import config_flags

    from configs import base

    if path and not os.path.isfile(path):
        raise UserError(f"--config: {path} does not exist; expected a Python file with get_config(), as in configs/")
    config = runpy.run_path(path)["get_config"]() if path else base.get_config()
    holder, argv = flags.FlagValues(), ["aot", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=argv)
        holder(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{' '.join(overrides)} does not fit the config: {e}") from e
    return holder["config"].value


# ---------------------------------------------------------------------------------------------------- compilation
def compile_setting(setting: Setting, mesh, *, config_file: str = "", overrides: Sequence[str] = ()):
    """The compiled programme (jax.stages.Compiled) of `setting` over `mesh`.

    Raises:
        OutOfMemory: it does not fit the device, as the compiler has it.
        UserError: the config does not fit, or the model or batch does not divide.
    """
    import jax

    config = _config(setting, mesh.shape["data"], config_file, overrides)
    platform = mesh.devices.flat[0].platform
    with _conv_of(platform), jax.set_mesh(mesh):
        traced = _TRACE[setting.mode](setting, config, mesh)
        lowered = traced.lower(lowering_platforms=(platform,))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" in str(e) or "Ran out of memory" in str(e):
                raise OutOfMemory(str(e)) from e
            raise


def kept_bytes(setting: Setting, mesh, *, config_file: str = "", overrides: Sequence[str] = ()) -> int:
    """Bytes that the forward pass of a training step leaves for the gradient on one device, its images on one device.

    As traced, before any compiler: what is computed anew (train.remat) is not among them, parameters and parts of the
    batch that the gradient reads again are. A compiler may keep less; XLA's for CPUs undoes remat.

    Raises:
        UserError: as of `compile_setting`.
    """
    import jax

    from eql_jax.training.train_step import LOSS_TERMS, image_keys, step_key

    config = _config(setting, 1, config_file, overrides)
    model, variables = _model(setting, config)
    memory = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, memory, batch):
        keys = image_keys(0, 0, batch["image_id"])
        variables = {"params": params, **memory}
        terms, _ = model.apply(variables, batch, keys, step_key(0, 0), method="losses", mutable=list(memory))
        return sum(terms[name] for name in LOSS_TERMS if name in terms)

    def backward(params, memory, batch):
        return jax.vjp(lambda params: loss(params, memory, batch), params)[1]

    one = slices.mesh_over(list(mesh.devices.flat[:1]), {"data": 1, "model": 1})
    with _conv_of(mesh.devices.flat[0].platform), jax.set_mesh(one):
        kept = jax.eval_shape(backward, variables["params"], memory, batch_shapes(setting, config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def _conv_of(platform: str):
    """All that asks on which platform it runs is eql_jax.ops.conv; it would see the CPU that compiles."""
    from eql_jax.ops.conv import conv_implementation

    return conv_implementation("cpu" if platform == "cpu" else "xla")


def _config(setting, data_devices, config_file, overrides):
    config = load_config(config_file, overrides)
    config.unlock()
    config.model.dtype = setting.dtype
    config.train.batch_size = setting.batch_per_device * data_devices
    if config.train.steps_per_call > 1:
        raise UserError(
            f"config.train.steps_per_call is {config.train.steps_per_call}; expected 1, as figures are of one step"
        )
    parts = config.train.gradient_accumulation
    if setting.mode == "train" and setting.batch_per_device % parts:
        raise UserError(
            f"{setting.batch_per_device} images on each device; expected a multiple of "
            f"config.train.gradient_accumulation, {parts}"
        )
    return config


def _model(setting, config):
    import jax
    import numpy as np

    from eql_jax.class_losses import ClassFrequencies
    from eql_jax.models import build_model, init_model

    count = np.arange(setting.classes)  # any long tail: the programme is as large whatever the counts
    counts = (1 + 10_000 // (1 + count)).astype(np.int64)
    frequencies = ClassFrequencies(
        setting.classes,
        letters=tuple("rcf"[i % 3] for i in count),
        image_counts=counts,
        instance_counts=2 * counts,
        num_images=int(counts.sum()),
        tail=count % 3 < 2,
    )
    model = build_model(config, setting.classes, frequencies)
    return model, jax.eval_shape(lambda: init_model(model, jax.random.key(0)))


def _trace_train(setting, config, mesh):
    import jax

    from eql_jax.models import trainable_mask
    from eql_jax.training.optimizer import make_optimizer
    from eql_jax.training.sharding import tree_shardings
    from eql_jax.training.state import create_state
    from eql_jax.training.train_step import make_train_step

    model, variables = _model(setting, config)
    params = variables["params"]
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    ema = config.optimizer.ema_decay > 0
    state = jax.eval_shape(lambda v: create_state(v, optimizer, ema=ema), variables)
    shardings = tree_shardings(state, mesh, fsdp=config.mesh.fsdp)
    step = make_train_step(model, optimizer, config, mesh, shardings)
    return step.jitted.trace(state, batch_shapes(setting, config))


def _trace_inference(setting, config, mesh):
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    model, variables = _model(setting, config)
    variables = {k: v for k, v in variables.items() if k != "loss_state"}
    test = config.model.test
    candidates = min(test.candidates, setting.classes * config.model.rpn.post_nms_test)

    def detect(variables, image, image_size):
        return model.apply(variables, image, image_size, candidates=candidates, method="detect")

    whole, by_image = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    jitted = jax.jit(detect, in_shardings=(whole, by_image, by_image), out_shardings=by_image)
    batch = batch_shapes(setting, config)
    return jitted.trace(variables, batch["image"], batch["image_size"])


_TRACE = {"train": _trace_train, "inference": _trace_inference}


def batch_shapes(setting: Setting, config) -> dict:
    """The shapes of a batch, as `eql_jax.data.pipeline` makes it."""
    import jax
    import numpy as np

    rows, objects = config.train.batch_size, config.data.max_objects
    mask = config.data.mask_size if config.model.with_mask else 0
    shapes = {
        "image": ((*setting.size, 3), np.uint8),
        "image_size": ((2,), np.int32),
        "image_id": ((), np.uint32),
        "gt_boxes": ((objects, 4), np.float32),
        "gt_classes": ((objects,), np.int32),
        "gt_ignore": ((objects,), bool),
        "gt_masks": ((objects, mask, mask), np.uint8),
        "verified_classes": ((setting.classes,), bool),
    }
    return {k: jax.ShapeDtypeStruct((rows, *shape), dtype) for k, (shape, dtype) in shapes.items()}


# ---------------------------------------------------------------------------------------------------- memory
def memory_row(compiled) -> dict[str, float]:
    """Bytes per device of a compiled programme, and their sum in GiB.

    Outputs that take the place of arguments (a donated training state) are counted once: total = arguments + outputs
    - aliased + temporaries + code.
    """
    m = compiled.memory_analysis()
    row = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    total = row["arguments"] + row["outputs"] - row["aliased"] + row["temporaries"] + row["code"]
    return row | {"total": total, "total_gib": total / 2**30}


# ---------------------------------------------------------------------------------------------------- main
def main(
    run: Callable[[argparse.Namespace], None],
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    argv: Sequence[str] | None = None,
    **defaults: object,
) -> None:
    """The command line of these scripts: run(arguments), and status 2 when the user has to put something right.

    defaults: of the arguments that `add_setting_arguments` adds, where a script has its own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    add_setting_arguments(parser)
    parser.set_defaults(**defaults)
    try:
        run(parse(parser, argv))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
