"""The values that `auto` stands for where they follow from the recipe alone."""

from __future__ import annotations

from zoft.recipe.schema import OptimizerSection, Recipe

# (tune.method, optimizer.name) -> lr. MeZO's and R-AdaZO's published grids; full r-adazo is ours.
LEARNING_RATES = {
    ("lora", "r-adazo"): 5e-5,
    ("lora", "mezo"): 1e-4,
    ("full", "r-adazo"): 1e-4,
    ("full", "mezo"): 1e-6,
}
LORA_PERTURBATION = 1e-2
# Past steps whose moments agree with the untruncated ones to a cosine of .996 and .995.
WINDOW, SCALAR_WINDOW = 44, 22


def with_defaults(recipe: Recipe) -> Recipe:
    """Fill in every `auto` that needs neither the model nor the machine. Idempotent.

    `device`, `model.compute_dtype`, `tune.target_modules` and, for full tuning,
    `optimizer.perturbation` stay `auto`.
    """
    model, objective, train = recipe.model, recipe.objective, recipe.train
    if model.dtype == "auto":
        model = model.model_copy(update={"dtype": "float32"})
    if objective.name == "auto":
        name = "choice" if recipe.data.format == "classification" else "lm"
        objective = objective.model_copy(update={"name": name})
    if train.micro_batch_size == "auto":
        train = train.model_copy(update={"micro_batch_size": train.batch_size})
    return recipe.model_copy(
        update={
            "model": model,
            "objective": objective,
            "optimizer": _optimizer(recipe),
            "train": train,
        }
    )


def _optimizer(recipe: Recipe) -> OptimizerSection:
    method, optimizer = recipe.tune.method, recipe.optimizer
    moments = optimizer.moments
    if moments == "auto":
        moments = "full" if method == "lora" else "scalar"
    filled: dict[str, object] = {"moments": moments}
    if optimizer.lr == "auto":
        filled["lr"] = LEARNING_RATES[method, optimizer.name]
    if optimizer.window == "auto":
        filled["window"] = WINDOW if moments == "window" else SCALAR_WINDOW
    if optimizer.perturbation == "auto" and method == "lora":
        filled["perturbation"] = LORA_PERTURBATION
    return optimizer.model_copy(update=filled)
