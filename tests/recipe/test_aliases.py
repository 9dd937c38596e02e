from __future__ import annotations

from zoft.recipe.aliases import ALSO_KNOWN_AS, WITHOUT_EQUIVALENT
from zoft.recipe.fields import fields


def test_foreign_names_lead_to_keys_that_exist() -> None:
    keys = {".".join(key) for key in fields()}
    assert set(ALSO_KNOWN_AS.values()) <= keys


def test_no_name_of_ours_is_called_foreign() -> None:
    ours = {key[-1] for key in fields()}
    foreign = {*ALSO_KNOWN_AS, *WITHOUT_EQUIVALENT}
    # axolotl's name for model.name, and its way to say tune.method: likelier than our keys elsewhere.
    assert ours & foreign == {"adapter", "base_model"}
    assert len(foreign) == len(ALSO_KNOWN_AS) + len(WITHOUT_EQUIVALENT)
