"""Runs the program named by its first argument, and on SIGUSR2 prints pymalloc's own figures as one line.

For comparing the profiler with them; a measured run goes without.
"""

import json
import os
import re
import runpy
import signal
import sys

# sys._debugmallocstats() writes to standard error, whatever that is.
stderr = os.dup(2)
text = os.memfd_create("debugmallocstats")


def figures(text):
    yield "allocated", re.search(r"# bytes in allocated blocks +=\s+([\d,]+)", text)[1]
    yield "available", re.search(r"# bytes in available blocks +=\s+([\d,]+)", text)[1]
    yield "arenas", re.search(r"# arenas allocated current +=\s+([\d,]+)", text)[1]
    # class, size, pools, blocks in use, blocks available
    for size, in_use in re.findall(r"^ +\d+ +(\d+) +\d+ +(\d+) +\d+$", text, re.MULTILINE):
        yield f"blocks_of_{size}", in_use


def books(*_):
    os.ftruncate(text, 0)
    os.lseek(text, 0, os.SEEK_SET)
    os.dup2(text, 2)
    sys._debugmallocstats()
    os.dup2(stderr, 2)
    written = os.pread(text, 1 << 20, 0).decode()
    named = {name: int(digits.replace(",", "")) for name, digits in figures(written)}
    print(f"books={json.dumps(named)}", flush=True)


signal.signal(signal.SIGUSR2, books)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
