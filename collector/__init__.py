"""The collector process: HTTP in, settings, commands."""

__version__ = "0.1.0"
