"""The collector process: HTTP in, settings, commands."""

from importlib.util import find_spec

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether the modules that setup.py names are compiled here."""
    found = find_spec("collector.hub")
    return found is not None and str(found.origin).endswith(".so")
