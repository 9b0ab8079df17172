"""The error of this package."""

from eql_jax.training.errors import UserError


class ConversionError(UserError):
    """A weight file that cannot be read, is refused, or does not fit the model; nothing has been written."""
