"""What users can put right: paths, files, options."""


class EnsembleError(ValueError):
    """A results file, a list of classes or an option cannot be used. The message names it and says what is expected."""
