"""Before any test: none can reach the network, and workers share the cores."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Read once, when huggingface_hub is imported: a test that asks for the Hub fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# Workers share the cores: threads of several that wait for each other spin, and take 6 times as long.
# (Tests of threads ask for them.) Read when torch is imported, and by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure: hypothesis would time every example.
settings.register_profile(
    "zoft", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("zoft")
