"""Settings of the C library's memory allocator. Only for our own process: a host program's is not ours to change."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def reuse_freed_memory() -> None:
    """Keep up to 64 MB of freed memory, in blocks below 8 MB, instead of returning each block at once.

    With glibc's default, a run that merges in small pieces spends a third of its time on the kernel's clearing of the
    same pages, over and over. Other C libraries are left alone.
    """
    if os.name != "posix":
        return  # Windows can't open "this program" as a library
    # None opens this process itself, with the C library that it has loaded.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # Setting either one also stops glibc from adjusting both as it runs.
        mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
