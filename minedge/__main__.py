"""`python -m minedge` is `minedge`."""

import sys

from minedge.cli import main

sys.exit(main())
