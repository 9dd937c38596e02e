"""Before any test: `import tiny` works from every folder, and no test can reach the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Read once, when huggingface_hub is imported: a test that asks for the Hub fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
