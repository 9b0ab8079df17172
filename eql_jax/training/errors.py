"""Errors that are told to the user without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake in what the user gave, or a condition he can mend; the message says what was found and what to do."""


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Within it the programme reads what the user gave: OSError and ValueError become UserError, the text stays."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as e:
        raise UserError(str(e)) from e


class ConfigError(UserError):
    """A config that does not exist, does not load, or has unknown keys or impossible values."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model, or a workdir that cannot be written."""


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; the message names step, image ids and loss terms."""
