"""Trains or evaluates.

    python train.py --config=configs/supershapes_tiny.py --workdir=runs/tiny [--config.train.steps=2000 ...]
    python train.py --workdir=runs/tiny                       # goes on where it stopped, with the config it had
    python train.py --mode=eval --workdir=runs/tiny [--checkpoint=best|latest|STEP] [--config.data.val_annotations=...]

A workdir gets config.json, versions.json, checkpoints/, metrics.jsonl, tensorboard/, evaluation/ and pictures/.
Exit status: 0 done, or stopped by Ctrl-C or SIGTERM with the state saved; 2 something to be put right by the user
(config, data, checkpoint, disk); 1 a loss that is not finite, or a fault of the programme.
"""

import argparse
import logging
import sys
from pathlib import Path

import jax
from configs import base

from eql_jax.data.annotations import Annotations, load_annotations
from eql_jax.data.categories import class_statistics
from eql_jax.data.pipeline import make_eval_batches, make_train_iterator
from eql_jax.data.supershapes import ensure_supershapes
from eql_jax.evaluation.run import run_evaluation
from eql_jax.models import build_model, init_model, trainable_mask
from eql_jax.training import config as config_lib
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoints import Checkpoints, find_checkpoint, load_for_inference
from eql_jax.training.compatibility import Classes, check_categories, is_architecture
from eql_jax.training.compile_cache import enable_compile_cache
from eql_jax.training.disk import check_writable, write_atomically
from eql_jax.training.errors import ConfigError, NonFiniteLossError, UserError
from eql_jax.training.eval_step import make_detector
from eql_jax.training.loop import train
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.optimizer import make_optimizer, summarize
from eql_jax.training.state import create_state
from eql_jax.training.tail import make_tail
from eql_jax.training.train_step import make_train_step
from eql_jax.training.warm_start import init_from

LOG = logging.getLogger("eql_jax.train")


# ---------------------------------------------------------------------------------------------------- command line
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", help="Python file with get_config(); default: the config.json of the workdir")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--mode", choices=("train", "eval"), default="train")
    parser.add_argument("--checkpoint", default="best", help="for --mode=eval: best, latest or a step")
    parser.add_argument("--out", type=Path, help="for --mode=eval: where results go; default: WORKDIR/evaluation")
    parser.add_argument("--distributed", action="store_true", help="several hosts: call jax.distributed.initialize()")
    options, overrides = parser.parse_known_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("eql_jax").setLevel(logging.INFO)
    try:
        if options.mode == "train":
            run_training(options, overrides)
        else:
            run_evaluation_mode(options, overrides)
    except NonFiniteLossError as e:
        sys.exit(f"error: {e}")  # status 1
    except (UserError, ConfigError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
