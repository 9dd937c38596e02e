from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoft.errors import RecipeError
from zoft.recipe import packaged
from zoft.recipe.load import dump_recipe, load_recipe, recipe_text
from zoft.recipe.resolved import with_defaults
from zoft.recipe.schema import Recipe
from zoft.recipe.sections.data import DataSource

GOOD = """\
model: {name: some/model}
data:
  train: {path: t.jsonl}
  template: "{text} It was"
  labels: {1: great, 0: terrible}
optimizer:
  lr: 1e-6
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "r.yaml") -> Path:
        path = Path(name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(source: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_yaml_1_2(write: Any) -> None:
    recipe = load_recipe(write(GOOD.replace("terrible", "no")))
    assert recipe.optimizer.lr == 1e-6
    assert recipe.data.labels == {"1": "great", "0": "no"}
    assert list(recipe.data.labels) == ["1", "0"]


def test_the_output_folder_is_called_after_the_recipe(write: Any) -> None:
    assert load_recipe(write(GOOD, "my-run.yaml")).output_dir == "runs/my-run"
    assert load_recipe("my-run.yaml", ["output_dir=x"]).output_dir == "x"
    assert load_recipe("my-run.yaml", ["output_dir=null"]).output_dir == "runs/my-run"


def test_overrides_apply_in_order(write: Any) -> None:
    overrides = ["train.steps=1", "data.test.path=x.csv", "~optimizer.lr", "train.steps=2"]
    recipe = load_recipe(write(GOOD), overrides)
    assert recipe.train.steps == 2
    assert recipe.data.test == DataSource(path="x.csv")
    assert recipe.optimizer.lr == "auto"


def test_all_problems_at_once_each_in_its_place(write: Any) -> None:
    path = write("""\
model:
  nmae: x
optimizer:
  lr: -1
  lr: 3
  betas: [0.9, a]
  steps: 3
train:
data:
  train: t.jsonl
  template: "{text}"
  labels: {0: a, 1: true}
learning_rate: 3
tune: {target_modules: [a, 3]}
device: cuda:a
3: x
""")
    found = problems(
        path, "train.lr=3", "foo", "~seed", "data.test.name=x", "tune.r=x", "~data.template"
    )
    assert found == [
        "r.yaml:1:1: model.name: missing. The base model: a Hub id, a folder, or a .gguf file "
        "(converted once).",
        "r.yaml:2:3: model.nmae: no such key; did you mean model.name?",
        "r.yaml:4:3: optimizer.lr: found -1; expected more than 0 or auto",
        "r.yaml:5:3: optimizer.lr: written twice, first in line 4",
        "r.yaml:6:16: optimizer.betas.1: found 'a'; expected a finite number",
        "r.yaml:7:3: optimizer.steps: no such key here; it belongs at train.steps",
        "r.yaml:10:3: data.train: found 't.jsonl'; expected a section with the keys path, name, "
        "split, limit, weight, streaming or a list of such sections",
        "r.yaml:12:18: data.labels.1: found true; expected text; put it in quotes",
        "r.yaml:13:1: learning_rate: no such key; zoft calls it optimizer.lr",
        "r.yaml:14:28: tune.target_modules.1: found 3; expected text; put it in quotes",
        "r.yaml:15:1: device: found 'cuda:a'; expected auto, cpu, cuda, cuda:N, or what else torch "
        "has streams for (xpu). auto: the first GPU, else the CPU.",
        f"r.yaml:16:1: 3: no such key; expected one of {', '.join(Recipe.model_fields)}",
        "override 'train.lr=3': train.lr: no such key here; it belongs at optimizer.lr",
        "override 'foo': expected section.key=value, or ~section.key to delete",
        "override '~seed': the recipe does not set seed",
        "override 'data.test.name=x': data.test.path: missing. A .jsonl, .json, .csv or .parquet "
        "file, a folder of those, or a Hub set.",
        "override 'tune.r=x': tune.r: found 'x'; expected a whole number",
        "override '~data.template': data.template: data.format classification needs one, e.g. "
        '"{text} It was"',
    ]


def test_problems_of_one_of_several_sources_are_named(write: Any) -> None:
    path = write(
        GOOD.replace(
            "{path: t.jsonl}",
            "\n  - {path: a.jsonl, weigth: 2}\n  - {split: train}\n  - b.jsonl\n  - {path: 3}",
        )
    )
    assert problems(path, "data.train.0.limit=x", "data.eval={pth: a}") == [
        "r.yaml:4:21: data.train.0.weigth: no such key; did you mean data.train.0.weight?",
        "r.yaml:5:5: data.train.1.path: missing. A .jsonl, .json, .csv or .parquet file, a folder "
        "of those, or a Hub set.",
        "r.yaml:6:5: data.train.2: found 'b.jsonl'; expected a section with the keys path, name, "
        "split, limit, weight, streaming",
        "r.yaml:7:6: data.train.3.path: found 3; expected text; put it in quotes",
        "override 'data.train.0.limit=x': data.train.0.limit: found 'x'; expected a whole number",
        "override 'data.eval={pth: a}': data.eval.path: missing. A .jsonl, .json, .csv or .parquet "
        "file, a folder of those, or a Hub set.",
        "override 'data.eval={pth: a}': data.eval.pth: no such key; did you mean data.eval.path?",
    ]


def test_problems_between_sections_have_a_place(write: Any) -> None:
    found = problems(write(GOOD), "optimizer.directions=129")
    assert found == [
        "r.yaml:1:1: train: batch_size 16 times 129 directions is 2064 in one sum, at most 2048 are "
        "exact; lower one of them, or set optimizer.scope: batch"
    ]
    found = problems("r.yaml", "train.batch_size=3000", "optimizer.paired=yes")
    assert found == [
        "override 'optimizer.paired=yes': optimizer.paired: found 'yes'; expected "
        "true or false or auto"
    ]
    (one,) = problems("r.yaml", "train.batch_size=3000")
    assert one.startswith("override 'train.batch_size=3000': train: batch_size 3000 times 1")


def test_a_later_override_takes_the_blame(write: Any) -> None:
    (found,) = problems(write(GOOD), "train.steps=x", "train={steps: y}")
    assert found.startswith("override 'train={steps: y}': train.steps: found 'y'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: empty; a recipe has at least model.name and data.train.path"),
        ("# only a comment\n", "r.yaml: empty; a recipe has at least"),
        ("- a\n", "r.yaml:1:1: expected sections such as `model:`, not a list"),
        ("a", "r.yaml:1:1: expected sections such as `model:`, not a single value"),
        ("model:\n  name: [a\n", "r.yaml:3:1: not YAML: "),
        ("model:\n\tname: a\n", "r.yaml:2:1: not YAML: found character '\\t'"),
        ("a: 1\n---\nb: 2\n", "not YAML: but found another document"),
        ("a: !!python/name:os.system x\n", "r.yaml:1:4: not YAML: could not determine"),
        ("a: \x00\n", "r.yaml: not YAML: unacceptable character"),
        ("a: " + "[" * 5000, "r.yaml:1:35: nested more than 32 deep"),
        (b"model:\n  name: \xff\n", "r.yaml:2: not UTF-8 text"),
    ],
)
def test_no_recipe_at_all(write: Any, text: str | bytes, message: str) -> None:
    (found,) = problems(write(text))
    assert message in found


def test_a_byte_order_mark_is_no_problem(write: Any) -> None:
    assert load_recipe(write(b"\xef\xbb\xbf" + GOOD.encode())) == load_recipe(write(GOOD))


def test_anchors(write: Any) -> None:
    text = GOOD.replace("train: {path", "train: &rows {path") + "eval: &e\n  every: 3\n"
    recipe = load_recipe(write(text.replace("  labels", "  eval: *rows\n  labels")))
    assert recipe.data.eval == recipe.data.train
    endless = write(GOOD.split("optimizer")[0] + "optimizer: &a [*a]\n")
    assert problems(endless) == ["r.yaml:6:12: an anchor that holds itself"]


def test_missing_file(write: Any) -> None:
    write(GOOD, "sentiment.yaml")
    (found,) = problems("sentimant.yaml")
    assert found.startswith("sentimant.yaml: no such file; did you mean sentiment.yaml? (packaged")
    assert ", quickstart, " in found
    assert "did you mean quickstart?" in problems("quikstart")[0]
    assert problems(".")[0].startswith(". is a folder")
    assert "no such file" in problems("nowhere/at/all.yaml")[0]


def test_unreadable_file(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(GOOD)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert problems(path) == ["r.yaml: cannot be read: Permission denied"]


def test_the_text_is_the_authors_own(write: Any) -> None:
    text = "# why\n" + GOOD
    assert recipe_text(write(text)) == text


@pytest.mark.parametrize("name", packaged.names())
def test_packaged_recipes_are_valid_and_come_back_equal(name: str, write: Any) -> None:
    recipe = load_recipe(name)
    assert recipe.output_dir == f"runs/{name}"
    for one in (recipe, with_defaults(recipe)):
        assert load_recipe(write(dump_recipe(one))) == one


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ODD = st.sampled_from(
    [
        "no",
        "1e-6",
        "1e3",
        "null",
        "~",
        "0x1f",
        "2024-01-01",
        "a: b",
        " x ",
        "\n",
        "a\x85 b",
        "\u2028",
        "à " * 99,
    ]
)


@settings(deadline=None, max_examples=60)
@given(
    name=TEXT | ODD,
    labels=st.dictionaries(TEXT | ODD, TEXT | ODD, min_size=2, max_size=4).filter(
        lambda labels: (
            len(set(labels.values())) == len(labels) and all(map(str.strip, labels.values()))
        )
    ),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    include=st.lists(TEXT | ODD, max_size=3),
)
def test_a_dumped_recipe_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    labels: dict[str, str],
    lr: float,
    include: list[str],
) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"name": name},
            "data": {"train": {"path": name}, "template": "{x}", "labels": labels},
            "optimizer": {"lr": lr},
            "tune": {"include": include},
            "output_dir": name,
        }
    )
    path = tmp_path_factory.mktemp("dump") / "r.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    assert list(again.data.labels) == list(labels)


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(string.printable, max_size=40) | st.text(max_size=20),
    override=st.text(":[]{}&*!|>'\"%@`#,=-~.ab1e \n", max_size=12),
)
def test_whatever_is_written_the_answer_is_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, override: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "r.yaml"
    path.write_text(GOOD + text, encoding="utf-8", errors="replace", newline="")
    for overrides in ([], [f"train.{override}"], [f"data.train={override}"]):
        with suppress(RecipeError):
            assert isinstance(load_recipe(path, overrides), Recipe)
