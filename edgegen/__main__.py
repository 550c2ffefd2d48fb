"""`python -m edgegen`."""

from edgegen.cli import main

main()
