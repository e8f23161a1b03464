"""What a failed run tells its user: one sentence on what happened and, where that is known, what would work."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from immunelab.errors import UserError

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|CUDNN_STATUS_ALLOC_FAILED", re.IGNORECASE
)


def sentence(error: BaseException) -> str:
    """The sentence for an exception that ended a run. A UserError's own; nothing here imports torch."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"The disk is full{_where(error)}: free some space (delete runs or their checkpoints), then resume the run."
        )
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return (
            f"Not allowed to write{_where(error)} ({error.strerror}): mend the permissions or choose another folder "
            "with IMMUNELAB_HOME, then resume the run."
        )
    if out_of_memory(error):
        return (
            "Out of memory on the device: lower batch_size (and raise accumulation by as much), choose "
            "precision bf16-autocast or a smaller model, or end what else uses the memory; then start the run again."
        )
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else f"{type(error).__name__} (log.txt has the traceback)."


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What the system refuses inside (no room, no permission) is a UserError with its sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(sentence(error)) from None


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory: torch's own error by its name, others by what they say."""
    if isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def _where(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""
