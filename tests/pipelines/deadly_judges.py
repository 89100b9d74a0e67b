"""Judges that some pictures kill or hold up, as a decoder might; in a module of their own for other processes."""

import os
import signal
import time

from pipelines import check


def crashes(row, data, rules, *files):
    """Dies of the picture 2.jpg as a wild pointer would make it."""
    if row.file_name == "2.jpg":
        os.kill(os.getpid(), signal.SIGSEGV)
    return check.check(row, data, rules, *files)


def hangs(row, data, rules, *files):
    """Never returns from 2.jpg."""
    if row.file_name == "2.jpg":
        time.sleep(60)
    return check.check(row, data, rules, *files)
