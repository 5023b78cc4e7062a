"""Die with the parent: no process of ours outlives the one that looks after it.

``PR_SET_PDEATHSIG`` (prctl(2)) has the kernel send a signal when the parent ends, in whatever way. The
setting is lost at fork, so every generation asks for itself.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # at import: a child between fork and exec should load nothing


def die_with(parent: int) -> None:
    """Have this process killed when its parent, the process ``parent``, ends.

    SIGKILL, because nobody is left to insist: a process that was slow to stop would hold the port and the
    spool's lock against its successor. What was answered with 202 is in the spool all the same.
    Errors: OSError where the kernel does not know it.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
