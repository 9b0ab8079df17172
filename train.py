"""Trains or evaluates.

    python train.py --config=configs/supershapes_tiny.py --workdir=runs/tiny [--config.train.steps=2000 ...]
    python train.py --workdir=runs/tiny                       # goes on where it stopped, with the config it had
    python train.py --mode=eval --workdir=runs/tiny [--checkpoint=best|latest|STEP] [--config.data.val_annotations=...]
    python train.py --mode=export --workdir=runs/tiny [--out=model.safetensors]   # the parameters alone

A workdir gets config.json, versions.json, checkpoints/, metrics.jsonl, tensorboard/, evaluation/ and pictures/.
Exit status: 0 done, or stopped by Ctrl-C or SIGTERM with the state saved; 2 something to be put right by the user
(config, data, checkpoint, disk); 1 a loss that is not finite, or a fault of the programme; 130 a second Ctrl-C.
Of several processes (--distributed): 75 stopped with the state saved, or another process is gone; start all again.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from configs import base
from configs.classification import base as classification_base
from eql_jax.classification import run as classification
from eql_jax.data.eval_batches import make_eval_batches
from eql_jax.data.files import as_path
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.evaluation.run import run_evaluation
from eql_jax.models import build_model, init_model, trainable_mask
from eql_jax.training import config as config_lib
from eql_jax.training import hosts
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes, check_architecture
from eql_jax.training.compile_cache import enable_compile_cache
from eql_jax.training.disk import check_writable
from eql_jax.training.errors import ConfigError
from eql_jax.training.eval_step import make_detector
from eql_jax.training.inference_model import export_parameters, load_for_inference
from eql_jax.training.inputs import load_data, load_validation
from eql_jax.training.loop import train
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.optimizer import make_optimizer, summarize
from eql_jax.training.parameter_file import SUFFIX
from eql_jax.training.run_dir import begin, finish
from eql_jax.training.sharding import tree_shardings
from eql_jax.training.state import create_state
from eql_jax.training.tail import class_frequencies, make_tail
from eql_jax.training.train_step import make_train_step
from eql_jax.training.tta import make_test_detector
from eql_jax.training.xla_flags import set_xla_flags

LOG = logging.getLogger("eql_jax.train")


def run_training(options: argparse.Namespace, overrides: Sequence[str]) -> bool:
    """Returns whether a signal stopped it early."""
    # ------------------------------------------------------------------------------------------------ config, devices
    workdir, source = options.workdir, config_source(options)
    if config_lib.task_of(source) == "classification":
        return classification.run_training(source, workdir, overrides, base=classification_base.get_config())
    config = config_lib.load_config(source, overrides, base=base.get_config())
    mesh = mesh_lib.make_mesh(config)
    mesh_lib.check_batch_sizes(config, mesh)
    check_writable(workdir)
    host, num_hosts = jax.process_index(), jax.process_count()
    LOG.info("%s on %d x %s", config.name, jax.device_count(), jax.devices()[0].device_kind)

    # ------------------------------------------------------------------------------------------------ data
    data = load_data(config)
    classes = Classes.of(data.statistics)
    tail = make_tail(config, letters=classes.letters, image_counts=classes.image_counts, num_images=classes.num_images)
    LOG.info(tail.summary)

    # ------------------------------------------------------------------------------------------------ model, optimizer
    model = build_model(config, len(classes), class_frequencies(classes, tail))
    key = jax.random.key(config.seed)
    params = jax.eval_shape(lambda: init_model(model, key))["params"]
    trainable = trainable_mask(params, config)
    optimizer = make_optimizer(config, params, trainable=trainable)
    LOG.info(summarize(params, config, trainable=trainable))

    def initialise(key):  # an argument, so that runs of other seeds find this programme in the compile cache
        return create_state(init_model(model, key), optimizer.transform, ema=config.optimizer.ema_decay > 0)

    # It runs once: on a CPU optimising it takes many times as long as running it as it is.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = tree_shardings(jax.eval_shape(initialise, key), mesh, fsdp=config.mesh.fsdp)
    state = jax.jit(initialise, out_shardings=shardings, compiler_options=options)(key)
    step_function = make_train_step(model, optimizer.transform, config, mesh, shardings)

    with Checkpoints(workdir, config, classes) as checkpoints:
        # -------------------------------------------------------------------------------------------- where to start
        state = begin(state, config, workdir, checkpoints)

        # -------------------------------------------------------------------------------------------- evaluation
        detector = make_detector(model, config, mesh_lib.local_mesh())

        def evaluate(state):
            return run_evaluation(
                detector,
                mesh_lib.to_local_devices({"params": state.eval_params, "batch_stats": state.batch_stats}),
                make_eval_batches(data.val, config, host=host, num_hosts=num_hosts),
                data.val,
                config,
                workdir / "evaluation",
                statistics=data.statistics,
                class_ids=classes.ids,
                step=int(state.step),
                host=host,
                num_hosts=num_hosts,
                pictures=None if state.step == config.train.steps else 0,
                pictures_dir=workdir / "pictures",
                log=writer.message,
            )

        # -------------------------------------------------------------------------------------------- training
        iterators = []

        def make_batches(start_step):
            iterators.append(
                make_train_iterator(data.train, config, start_step=start_step, host=host, num_hosts=num_hosts)
            )
            LOG.info("sampling (%s): %s", config.data.sampler, iterators[-1].sampler.describe())
            return iterators[-1]

        with MetricWriter(workdir, config, start_step=int(state.step), enabled=host == 0) as writer:
            result = train(
                state=state,
                step_function=step_function,
                several_steps=step_function.several,
                make_batches=make_batches,
                config=config,
                mesh=mesh,
                checkpoints=checkpoints,
                writer=writer,
                schedule=optimizer.schedule,
                evaluate=None if data.val is None else evaluate,
            )
    return finish(result, workdir, iterators)


def run_evaluation_mode(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    # ------------------------------------------------------------------------------------------------ checkpoint
    found = load_for_inference(options.workdir, checkpoint=options.checkpoint or "best")
    if config_lib.task_of(found.config) == "classification":
        where = options.config, options.workdir, options.out
        return classification.run_evaluation(found, *where, overrides, base=classification_base.get_config())
    config = config_lib.load_config(options.config or found.config, overrides, base=base.get_config())
    check_architecture(found.config, config, where=f"checkpoint of step {found.step} in {options.workdir}")
    mesh_lib.check_batch_sizes(config)

    # ------------------------------------------------------------------------------------------------ data
    val = load_validation(config, found.classes)

    # ------------------------------------------------------------------------------------------------ evaluation
    model = build_model(config, len(found.classes), class_frequencies(found.classes))
    suffix = "_tta" if config.eval.tta.shorter_sides else ""
    folder = options.workdir.parent if options.workdir.suffix == SUFFIX else options.workdir
    out = options.out or folder / f"evaluation_{val.raw.stem}{suffix}"
    check_writable(out)
    LOG.info("step %d of %s on %s", found.step, options.workdir, val.raw)
    host, num_hosts = jax.process_index(), jax.process_count()
    batches = make_eval_batches(val, config, host=host, num_hosts=num_hosts, augmented=True)
    if batches.description:
        LOG.info("%s", batches.description)
    run_evaluation(
        make_test_detector(model, config, mesh_lib.local_mesh()),
        mesh_lib.to_local_devices(found.variables),
        batches,
        val,
        config,
        out,
        statistics=found.classes.statistics,
        class_ids=found.classes.ids,
        step=found.step,
        host=host,
        num_hosts=num_hosts,
    )
    LOG.info("results are in %s", out)


def run_export(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if overrides:
        raise ConfigError(f"--mode=export reads the checkpoint alone; it has no use for {' '.join(overrides)}")
    found = load_for_inference(options.workdir, checkpoint=options.checkpoint or "best")
    out = options.out or options.workdir / "model.safetensors"
    if jax.process_index() == 0:
        count = export_parameters(found, out)
        LOG.info("step %d of %s: %d arrays in %s", found.step, options.workdir, count, out)


# ---------------------------------------------------------------------------------------------------- command line
def config_source(options: argparse.Namespace) -> str | Path:
    stored = options.workdir / "config.json"
    if options.config is None and not stored.is_file():
        raise ConfigError(f"--config is missing, and {options.workdir} has no config.json of an earlier run")
    return options.config or stored


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", help="Python file with get_config(); default: the config of the workdir's run")
    parser.add_argument("--workdir", required=True, type=as_path, help="a folder, or gs://BUCKET/..")
    parser.add_argument("--mode", choices=("train", "eval", "export"), default="train")
    parser.add_argument("--checkpoint", help="for --mode=eval and export: best (default), latest or a step")
    parser.add_argument(
        "--out",
        type=as_path,
        help="for --mode=eval; default: WORKDIR/evaluation_NAME of the annotations, _tta behind it with eval.tta. For "
        "--mode=export: the file; default: WORKDIR/model.safetensors",
    )
    hosts.add_arguments(parser)
    options, overrides = parser.parse_known_args()
    if options.mode == "train" and (options.checkpoint or options.out):
        parser.error(
            "--checkpoint and --out are for --mode=eval and --mode=export. Training goes on from the newest checkpoint "
            "of --workdir, or starts from another run's with --config.train.init_from=DIR"
        )
    try:
        set_xla_flags()  # before JAX looks at them
        hosts.join(options)
        logging.basicConfig(format="%(message)s", force=True)  # some import has set one up already
        logging.getLogger("eql_jax").setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
        enable_compile_cache()
        if options.mode != "train":
            hosts.end_on_sigterm()
        modes = {"train": run_training, "eval": run_evaluation_mode, "export": run_export}
        stopped = modes[options.mode](options, overrides)
    except KeyboardInterrupt:
        status = 130
    except Exception as e:
        status = hosts.tell(e)
    else:
        hosts.leave(hosts.RESTART if stopped and hosts.joined() else 0, together=True)
    hosts.leave(status, together=False)


if __name__ == "__main__":
    main()
