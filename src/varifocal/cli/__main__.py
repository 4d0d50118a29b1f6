"""`python -m varifocal.cli`: what a launcher starts on every process."""

from varifocal.cli import main

main()
