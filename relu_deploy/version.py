"""The version of this package, where no import of the package is needed to read it."""

__version__ = "0.1.0"
