"""What `zoft range` measures: rates and perturbations, or where learning pays."""
