"""Open the spool of the settings, with its keys."""

from collector.settings import SpoolSettings
from spool.directory import SpoolDirectory, SpoolError
from spool.key_file import KeyFileError


def open_spool(settings: SpoolSettings, *, create: bool = True) -> SpoolDirectory:
    """The spool; made when it is missing, unless ``create`` is False or it must exist. Errors: SpoolError."""
    keyring = None
    if settings.key_file is not None:
        from spool.cipher import Keyring  # its libraries are an extra

        try:
            keyring = Keyring.read(settings.key_file)
        except KeyFileError as exc:
            raise SpoolError(str(exc)) from exc
    return SpoolDirectory.open(settings.path, create=create and not settings.must_exist, keyring=keyring)
