"""`python -m minedge.cli`, where the script of that name is not on the path."""

from __future__ import annotations

import sys

from minedge.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
