"""The error types that users meet. Each message names the object, the value, and the way out."""


class ZipItError(ValueError):
    """Base class of every error that the caller can fix; the command line prints its message without a traceback.

    >>> try:  # doctest: +SKIP
    ...     hf_zipit.merge(["user/pets", "user/birds"], "user/animals")
    ... except hf_zipit.SourceError as error:
    ...     print(error)
    """


class SpecError(ZipItError):
    """A spec file is malformed, or does not fit the model."""


class SourceError(ZipItError):
    """A model cannot be loaded, or two models cannot be merged with each other."""


class DataError(ZipItError):
    """A data set cannot be read, or its images or targets cannot be used."""


class OptionError(ZipItError):
    """Wrong usage: an argument is missing or unknown, has an invalid value, or contradicts another one.

    The command line exits with code 2 for it, and with 1 for every other error.
    """


class OutputError(ZipItError):
    """A result cannot be written or uploaded, or not in the requested format."""


class TraceError(ZipItError):
    """A model cannot be traced: it does not run on an image, or uses an operation without a tracing rule."""
