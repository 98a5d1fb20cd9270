"""`python -m mach_ext` is the command `mach-ext`."""

import sys

from mach_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
