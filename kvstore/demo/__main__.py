"""`python -m kvstore.demo` is `kvstore demo`."""

import sys

from kvstore.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
