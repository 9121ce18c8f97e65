"""`python -m minedge` is `minedge`: also the script's entry, since Ctrl-C may come while the rest is imported."""

import sys


def main() -> int:
    """`minedge.cli.main`, of which even the import may be interrupted."""
    try:
        from minedge.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("minedge: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
