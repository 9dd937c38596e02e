"""What asking a model takes beside the model: settings, and questions as tokens."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from zoft.data.files import one_line
from zoft.data.formats.forms import FAILURES
from zoft.data.tokens import Ids, Tokens
from zoft.errors import DataError, RecipeError
from zoft.inference.locate import recipe_of
from zoft.planning.resolve import resolve
from zoft.recipe.resolved import Resolved
from zoft.recipe.schema import EvalSection, ModelSection, ObjectiveSection, Recipe, TrainSection
from zoft.recipe.sections.data import DataSection, DataSource

Turn = dict[str, str]  # {"role": "user", "content": "..."}
CHATS = ("messages", "sharegpt")  # formats whose rows the chat template spells


def recipe_for(target: str, *, rows: int, longest: int, max_new_tokens: int) -> Resolved:
    """Settings to ask `target` with, as an evaluation that writes: the model section of the run that
    it belongs to, else the defaults, on the fastest device that is here.

    `rows` at a time of up to `longest` tokens are what room is made for. Raises RecipeError,
    EnvironmentProblem.
    """
    source = DataSource(path="what is asked")
    own = {
        "data": DataSection(
            train=source, eval=source, format="prompt-completion", max_length=longest
        ),
        "objective": ObjectiveSection(name="lm"),
        "train": TrainSection(batch_size=1, micro_batch_size=1),
        "eval": EvalSection(metric="f1", batch_size=rows, max_new_tokens=max_new_tokens),
    }
    run = recipe_of(target)
    if run is None:
        recipe = resolve(Recipe(model=ModelSection(name=target), **own))  # type: ignore[arg-type]
        # Stored as it is computed with: no score has to be repeated.
        stored = recipe.model.model_copy(update={"dtype": recipe.model.compute_dtype})
        return recipe.model_copy(update={"model": stored})
    # A run that had room on its device may be asked where there is less.
    place = "auto" if run.model.residency == "device" else run.model.residency
    model = run.model.model_copy(update={"residency": place})
    return resolve(run.model_copy(update={**own, "model": model, "device": "auto"}))


def is_chat(target: str) -> bool:
    """Whether `target` belongs to a run that learnt from chats."""
    run = recipe_of(target)
    return run is not None and run.data.format in CHATS


def spelled(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    """The conversation as the chat template writes it, up to where the reply begins."""
    try:
        return str(
            tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        )
    except FAILURES as error:
        raise DataError(f"the chat template fails ({one_line(error)})") from error


def as_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Token ids, with what the tokenizer puts in front of a text exactly once."""
    found = Tokens.of(tokenizer).encode(list(texts))
    if not all(found):
        raise RecipeError("an empty prompt: this tokenizer puts nothing in front of a text")
    return found
