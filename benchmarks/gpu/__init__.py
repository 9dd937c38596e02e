"""The campaign on a GPU (scripts/gpu.sh): what it runs, measures and reports."""
