"""`python -m raymlops`."""

from raymlops.cli import main

main()
