"""The command line as `python -m nissl`, so that `torchrun -m nissl` works."""

from nissl.cli import main

main()
