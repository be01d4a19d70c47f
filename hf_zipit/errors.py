"""The errors users meet. Each names the object, the value, and the way out."""


class ZipItError(ValueError):
    """Base of every error that is the caller's to mend; the command line prints it in one line."""


class SpecError(ZipItError):
    """A spec file is malformed, or does not describe the model it is bound to."""


class SourceError(ZipItError):
    """A model cannot be loaded, or two models cannot be merged with each other."""


class DataError(ZipItError):
    """A data set cannot be read, or what it yields cannot be used."""


class OptionError(ZipItError):
    """Wrong usage: an argument is missing or unknown, has a wrong value, or does not go with another one.

    The command line exits with 2 for it, and with 1 for every other error.
    """


class OutputError(ZipItError):
    """A result cannot be written, not in this format, or not be uploaded."""


class TraceError(ZipItError):
    """A model cannot be traced: it does not run on an image, or an operation has no rule."""
