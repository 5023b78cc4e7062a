"""What tests do to the small disks of conftest.py."""

import os
from pathlib import Path


def fill(place: Path) -> None:
    """Leave not one byte free."""
    descriptor = os.open(place / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 4096, 1):
            try:
                while os.write(descriptor, bytes(size)):
                    pass
            except OSError:
                continue
    finally:
        os.close(descriptor)
