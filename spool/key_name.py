"""Which key opens something, and what is said when it is not here.

A file that is encrypted carries the *name* of its key: 8 bytes of a MAC of the key, and its id in ASCII. Nothing here
needs the libraries of `spool.cipher`, so a collector without them can still say what it would need.
"""

from typing import Final

CHECK_BYTES: Final = 8


class KeyMissing(Exception):
    """Something is encrypted with a key that is not here; nothing else is wrong with it.

    ``id`` is the key's; empty: not even that can be read. ``another``: a key of that id is here, and it is another.
    """

    def __init__(self, name: bytes, *, another: bool = False) -> None:
        self.id = key_id(name)
        wanted = f"the key {self.id}" if self.id else "a key whose id is lost"
        why = "which spool.key_file does not give"
        if another:
            why = "and what spool.key_file has under that id is another key"
        super().__init__(f"encrypted with {wanted}, {why}")


def key_id(name: bytes) -> str:
    """The id in a key's name."""
    return name[CHECK_BYTES:].decode("ascii", "replace")
