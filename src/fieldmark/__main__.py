"""`python -m fieldmark` is the command `fieldmark`."""

from fieldmark.cli import main

main()
