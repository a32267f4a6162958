"""Train a network (LightningCLI over one YAML per run)."""

from __future__ import annotations

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> None:
    """Train a network: LightningCLI has its own options and its own ``--help``."""
    from hsidenoise.training.run import main

    main(list(arguments))
