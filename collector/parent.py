"""No process of ours outlives the one that looks after it.

``PR_SET_PDEATHSIG`` (prctl(2)) has the kernel send a signal when the parent ends, in whatever way. The
setting is lost at fork, so every generation asks for itself.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # at import: a child between fork and exec should load nothing


def end_with(parent: int, number: signal.Signals) -> None:
    """Have this process sent a signal when its parent, the process ``parent``, ends.

    Errors: OSError where the kernel does not know how.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, number) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)
