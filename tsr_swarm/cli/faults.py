"""Sentences for what is wrong with the machine or with what was given, and not with the program. Pure."""

import errno

from tsr_swarm.process.machine_limits import is_about_memory

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or use a smaller model",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or close other programs",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "correct the links that lead there",
    errno.EIO: "check the disk",
}


def sentence_of(error: BaseException) -> str | None:
    """What happened and what to do about it; None for an error that only the program can be to blame for."""
    if isinstance(error, OSError) and error.errno is not None:
        what = "Writing or reading failed" if error.filename is None else f"{error.filename} cannot be used"
        remedy = _REMEDIES.get(error.errno, "check that place")
        return f"{what} ({error.strerror}); {remedy}, then try again."
    if is_about_memory(error):
        return "This machine has too little memory for that; close other programs, or use a smaller model or batch."
    if isinstance(error, ImportError) and not str(error.name).startswith("tsr_swarm"):
        reason = str(error).strip().splitlines()[-1]
        return f"A library cannot be loaded ({reason}); install tsr-swarm anew."
    if isinstance(error, UnicodeError):
        return f"A name or text that was given is not UTF-8 ({error}); rename or convert it."
    return None
