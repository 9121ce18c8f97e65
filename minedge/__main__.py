"""`python -m minedge` is `minedge`."""

import sys

from minedge.cli import main

if __name__ == "__main__":
    sys.exit(main())
