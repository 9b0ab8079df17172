"""Trains and evaluates image classifiers: what train.py does with a config of the task 'classification'."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from eql_jax.class_losses import ClassLoss, class_loss_type, make_class_loss
from eql_jax.classification.batches import TrainBatches, eval_batches
from eql_jax.classification.config_checks import find_faults
from eql_jax.classification.evaluation import (
    Predictor,
    accuracies,
    count_hits,
    format_accuracies,
    make_predictor,
    write_results,
)
from eql_jax.classification.image_set import ImageSet, classes_of, load_sets
from eql_jax.classification.long_tail import GroupBorders
from eql_jax.classification.models import build_classifier, init_classifier
from eql_jax.data.images import ImageError
from eql_jax.training import config as config_lib
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes, check_architecture
from eql_jax.training.disk import check_writable
from eql_jax.training.errors import CheckpointError, UserError
from eql_jax.training.inference_model import InferenceModel
from eql_jax.training.loop import train
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.optimizer import make_optimizer, summarize
from eql_jax.training.parameter_file import SUFFIX
from eql_jax.training.run_dir import begin, finish
from eql_jax.training.sharding import tree_shardings
from eql_jax.training.state import create_state
from eql_jax.training.tail import class_frequencies, threshold_tail
from eql_jax.training.train_step import make_train_step

LOG = logging.getLogger("eql_jax.train")


def run_training(source: str | Path, workdir: Path, overrides: Sequence[str], *, base: ConfigDict) -> bool:
    """Trains in `workdir`, or goes on there; returns whether a signal stopped it early.

    Arguments as of `training.config.load_config`, errors as of train.py.
    """
    # ------------------------------------------------------------------------------------------------ config, devices
    config = config_lib.load_config(source, overrides, base=base, find_faults=find_faults)
    mesh = mesh_lib.make_mesh(config)
    mesh_lib.check_batch_sizes(config, mesh)
    check_writable(workdir)
    host, num_hosts = jax.process_index(), jax.process_count()
    LOG.info("%s on %d x %s", config.name, jax.device_count(), jax.devices()[0].device_kind)

    # ------------------------------------------------------------------------------------------------ data
    sets = load_sets(config)
    borders = group_borders(config)
    classes = classes_of(sets.train, borders)
    LOG.info("%s: %d images, %d classes", sets.train.where, len(sets.train), len(classes))
    LOG.info("%s: %d images", sets.val.where, len(sets.val))

    # ------------------------------------------------------------------------------------------------ model, optimizer
    model = build_classifier(config, configured_loss(config, classes))
    key = jax.random.key(config.seed)

    # The key is an argument, so that runs of other seeds find this programme in the compilation cache.
    def initial_variables(key):
        return init_classifier(model, key, image_size=config.data.image_size)

    params = jax.eval_shape(initial_variables, key)["params"]
    optimizer = make_optimizer(config, params)
    LOG.info(summarize(params, config))

    def initialise(key):
        return create_state(initial_variables(key), optimizer.transform, ema=config.optimizer.ema_decay > 0)

    shardings = tree_shardings(jax.eval_shape(initialise, key), mesh, fsdp=config.mesh.fsdp)
    state = jax.jit(initialise, out_shardings=shardings)(key)
    step_function = make_train_step(model, optimizer.transform, config, mesh, shardings)

    with Checkpoints(workdir, config, classes) as checkpoints:
        # -------------------------------------------------------------------------------------------- where to start
        state = begin(state, config, workdir, checkpoints)

        # -------------------------------------------------------------------------------------------- training
        predictor = make_predictor(model, mesh_lib.local_mesh())

        def evaluate(state):
            variables = mesh_lib.to_local_devices({"params": state.eval_params, "batch_stats": state.batch_stats})
            return evaluate_classifier(
                predictor, variables, sets.val, classes, config, workdir / "evaluation", step=int(state.step)
            )

        iterators = []

        def make_batches(start_step):
            iterators.append(TrainBatches(sets.train, config, start_step=start_step, host=host, num_hosts=num_hosts))
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
                evaluate=evaluate,
            )
    if result.metrics:
        LOG.info("%s", format_accuracies(result.metrics, np.asarray(classes.image_counts), borders))
    return finish(result, workdir, iterators)


def run_evaluation(
    found: InferenceModel,
    source: str | Path | None,
    workdir: Path,
    out: Path | None,
    overrides: Sequence[str],
    *,
    base: ConfigDict,
) -> None:
    """Evaluates a checkpoint of `workdir`.

    Args:
      found: the checkpoint.
      source: of another config than the checkpoint's, or None.
      workdir: the run's.
      out: where results go; None: workdir/evaluation_NAME of the validation set.
      overrides, base: as of `training.config.load_config`.
    """
    config = config_lib.load_config(source or found.config, overrides, base=base, find_faults=find_faults)
    check_architecture(found.config, config, where=f"checkpoint of step {found.step} in {workdir}")
    mesh_lib.check_batch_sizes(config)
    val = load_sets(config, train=False).val
    check_class_names(val, found.classes)
    folder = workdir.parent if workdir.suffix == SUFFIX else workdir
    out = out or folder / f"evaluation_{Path(val.where).stem}"
    check_writable(out)
    LOG.info("step %d of %s on %s", found.step, workdir, val.where)
    model = build_classifier(config, configured_loss(config, found.classes))
    predictor, variables = make_predictor(model, mesh_lib.local_mesh()), mesh_lib.to_local_devices(found.variables)
    metrics = evaluate_classifier(predictor, variables, val, found.classes, config, out, step=found.step)
    LOG.info("%s", format_accuracies(metrics, np.asarray(found.classes.image_counts), group_borders(config)))
    LOG.info("results are in %s", out)


def check_class_names(val: ImageSet, classes: Classes) -> None:
    """Raises CheckpointError unless the labels of a validation set mean the classes of the checkpoint."""
    if len(val.class_names) > len(classes):
        raise CheckpointError(
            f"{val.where} has {len(val.class_names)} classes, the checkpoint {len(classes)}. Evaluate on images of the "
            "set it was trained on"
        )
    # A list of images may lack the last classes, and names them by number where its folders do not.
    for label, (own, known) in enumerate(zip(val.class_names, classes.names, strict=False)):
        if own != known and str(label) not in (own, known):
            raise CheckpointError(
                f"{val.where} has class {label} = {own!r}, the checkpoint {known!r}. Evaluate on images of the set it "
                "was trained on, with the same config.data"
            )


def evaluate_classifier(
    predictor: Predictor,
    variables: dict,
    val: ImageSet,
    classes: Classes,
    config: ConfigDict,
    out: Path,
    *,
    step: int,
) -> dict[str, float]:
    """Accuracies (see `evaluation.accuracies`) on all hosts; the first writes the files.

    Raises:
      UserError: an image cannot be read.
    """
    host, num_hosts = jax.process_index(), jax.process_count()
    batches = eval_batches(val, config, host=host, num_hosts=num_hosts)
    try:
        hits = count_hits(predictor, variables, batches, num_classes=len(classes), num_hosts=num_hosts)
    except ImageError as e:
        raise UserError(f"{e.file or val.where}: {e}; an accuracy without it would be another") from e
    borders = group_borders(config)
    metrics = accuracies(hits, np.asarray(classes.image_counts), borders)
    if host == 0:
        write_results(out, metrics, hits, classes, borders, step=step)
    return metrics


def configured_loss(config: ConfigDict, classes: Classes) -> ClassLoss:
    """The loss of config.loss, given the classes' training counts and, where it asks for one, the tail."""
    tail = None
    if class_loss_type(config.loss.name).takes_tail:
        tail = threshold_tail(
            config.loss.name,
            classes.image_counts,
            classes.num_images,
            threshold=config.loss.tail_threshold,
            function=config.loss.tail_function,
        )
        LOG.info(tail.summary)
    options = dict(config.loss.options)
    return make_class_loss(config.loss.name, class_frequencies(classes, tail), background=False, options=options)


def group_borders(config: ConfigDict) -> GroupBorders:
    """Of config.eval."""
    return GroupBorders(many=config.eval.many_above, few=config.eval.few_below)
