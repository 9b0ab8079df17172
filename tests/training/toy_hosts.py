"""The toy run as one of several processes, ended as train.py ends.

python -m tests.training.toy_hosts --workdir=DIR [--config.train.steps=20 ...] --coordinator=HOST:PORT ...
"""

import argparse
import ast
import logging
import time
from pathlib import Path

import jax

from eql_jax.training import hosts
from tests.training import toy

PAUSE = 0.1  # seconds before every step, so that there is time to stop between two


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path)
    hosts.add_arguments(parser)
    options, words = parser.parse_known_args()
    pairs = (word.removeprefix("--config.").split("=") for word in words)
    config = toy.make_config(**{key: ast.literal_eval(value) for key, value in pairs})
    try:
        hosts.join(options)
        logging.basicConfig(format="%(message)s", force=True)
        rows = config.train.batch_size // jax.process_count()
        mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

        def batches(start):
            for batch in toy.make_batches(start):
                time.sleep(PAUSE)
                yield {name: array[mine] for name, array in batch.items()}

        result = toy.run(options.workdir, config, batches=batches)
    except Exception as e:
        status = hosts.tell(e)
    else:
        hosts.leave(hosts.RESTART if result.stopped and hosts.joined() else 0, together=True)
    hosts.leave(status, together=False)


if __name__ == "__main__":
    main()
