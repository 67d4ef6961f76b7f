"""How this process's C library keeps memory. Only for a process of our own: a host's is not ours to change."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def reuse_freed_memory() -> None:
    """Keep up to 64 MB of freed memory, in blocks below 8 MB, instead of giving each block back at once.

    With glibc's own rule the kernel's clearing of the same pages, over and over, takes a third of a run that merges
    in small pieces. Other C libraries are left alone.
    """
    if os.name != "posix":
        return  # Windows can't open "this program" as a library
    # None names this process itself, with the C library that it has loaded.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # Setting one of them also stops glibc from adjusting both as it goes.
        mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
