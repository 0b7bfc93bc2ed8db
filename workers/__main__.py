"""`python -m workers` is `goldline`."""

from workers.cli import main

main()
