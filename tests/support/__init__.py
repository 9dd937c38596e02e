"""What several test files use: tiny models, recipes, runs, slow twins, servers."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout
