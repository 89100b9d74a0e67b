"""``python -m pipelines`` is the maskray command."""

from pipelines.cli import main

main()
