"""The automatic choices that need the machine: device, compute type, perturbation. Made once."""

from __future__ import annotations

from zoft.models.quantization import library_of
from zoft.recipe.schema import Recipe
from zoft.system.device import choose_device, fast_dtype

# A probe must stand out of the forward pass's rounding: docs/methods.md#noise-of-the-forward-pass
PERTURBATION = {"float32": 1e-3, "float16": 1e-3, "bfloat16": 3e-3}


def resolve(recipe: Recipe) -> Recipe:
    """Fill in the `auto`s of `device`, `model.compute_dtype` and `optimizer.perturbation`.

    Raises EnvironmentProblem for a device or a library (model.quantization) that is not there.
    """
    library_of(recipe.model.quantization)
    device = choose_device(recipe.device)
    model, optimizer = recipe.model, recipe.optimizer
    if model.compute_dtype == "auto":
        model = model.model_copy(update={"compute_dtype": fast_dtype(device)})
    if optimizer.perturbation == "auto":
        perturbation = PERTURBATION[model.compute_dtype]
        optimizer = optimizer.model_copy(update={"perturbation": perturbation})
    return recipe.model_copy(update={"device": device, "model": model, "optimizer": optimizer})
