"""Runs the command line for ``python -m stability.cli``."""

from stability.cli import main

if __name__ == "__main__":
    main()
