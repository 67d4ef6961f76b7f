"""`python -m hf_tsv`."""

from hf_tsv.cli import main

main()
