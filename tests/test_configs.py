"""What may be written on the command line, and the sentence that answers what may not."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import editkit
from editkit import configs
from editkit.errors import UsageError

CONF = Path(editkit.__file__).parent.parent / "conf"
GROUPS = {
    folder.name: choices
    for folder in sorted(CONF.iterdir())
    if (choices := sorted(path.stem for path in folder.glob("*.yaml"))) and folder.name != "descriptions"
}
WRITERS = GROUPS.pop("writer")  # these three are of the search for instructions
ONE_OF_A_KIND = [GROUPS.pop("prompts"), GROUPS.pop("trial")]
# The first choices of all groups together, then the second ones and so on, until each was there once; and each
# experiment by itself, since it is made of choices and values that go together.
EXPERIMENTS = GROUPS.pop("experiment")
ROUNDS = [
    [f"{group}={choices[index % len(choices)]}" for group, choices in GROUPS.items()]
    for index in range(max(map(len, GROUPS.values())))
] + [[f"experiment={name}", "debug=fast"] for name in EXPERIMENTS]


@pytest.fixture
def shipped() -> Iterator[None]:
    with configs.sources():
        yield


@pytest.fixture
def small(tmp_path: Path) -> Iterator[None]:
    """A configuration with a key of each kind."""
    files = {
        "config": "defaults: [_self_, editor: mend, baselines: none, scale: tiny]\nseed: 0\n",
        "editor/mend": "steps: 600\nrate: 1.0e-4\nbest: true\nname: mend\nsites: [a, b]\nlimits: {recent: 100}\n"
        "any: null\ntwice: ${seed}\n",
        "editor/ft": "rate: 1.0e-4\n",
        "baselines/none": "{}\n",
        "baselines/mend": "defaults: [{/editor@mend: mend}]\n",
        "baselines/ft": "defaults: [{/editor@ft: ft}]\n",
        "scale/tiny": "# @package _global_\neditor: {steps: 3}\n",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("# @package _global_\n" * name.startswith("scale") + text)
    with configs.sources(tmp_path):
        yield


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("editor.steps=7", "editor.steps", 7),
        ("editor.rate=1", "editor.rate", 1),
        ("editor.rate=1e-5", "editor.rate", 1e-5),
        ("editor.best=false", "editor.best", False),
        ("editor.name=other", "editor.name", "other"),
        ("editor.sites=[c]", "editor.sites", ["c"]),
        ("editor.limits={recent:5}", "editor.limits.recent", 5),
        ("editor.limits=null", "editor.limits", None),
        ("editor.any=3", "editor.any", 3),
        ("editor.twice=${editor.steps}", "editor.twice", 3),
        ("+editor.new=1", "editor.new", 1),
        ("seed=4", "editor.twice", 4),
        ("baselines=[mend,ft]", "baselines.ft.rate", 1e-4),
        ("~scale", "editor.steps", 600),
    ],
)
def test_right_words_are_taken(small: None, word: str, key: str, value: object) -> None:
    found = OmegaConf.select(configs.checked([word]), key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("editor.steps=many", "editor.steps is 'many', but must be a whole number such as 3"),
        ("editor.steps=1.5", "editor.steps is 1.5, but must be a whole number such as 3"),
        ("editor.steps=true", "editor.steps is true, but must be a whole number such as 3"),
        ("editor.twice=x", "editor.twice is 'x', but must be a whole number such as 0"),
        ("editor.rate=fast", "editor.rate is 'fast', but must be a number such as 0.0001"),
        ("editor.best=1", "editor.best is 1, but must be true or false such as true"),
        ("editor.name=3", "editor.name is 3, but must be text such as 'mend'"),
        ("editor.sites=a", "editor.sites is 'a', but must be a list such as ['a', 'b']"),
        ("editor.limits=3", "editor.limits is 3, but holds settings of its own: set editor.limits.recent=…"),
        ("editor.limits={recent:x}", "editor.limits.recent is 'x', but must be a whole number such as 100"),
        ("editor.step=3", "There is no setting 'editor.step': did you mean editor.steps?"),
        ("steps=3", "There is no setting 'steps': did you mean editor.steps?"),
        ("editr=mend", "There is no setting 'editr': did you mean editor?"),
        ("sacle=tiny", "There is no setting 'sacle': did you mean scale?"),
        ("baselines.ft.rate=1", "There is no setting 'baselines.ft.rate': baselines has none"),
        ("editor=mand", "editor is 'mand', but must be one of ft, mend: did you mean mend?"),
        ("editor=3", "editor is 3, but must be one of ft, mend"),
        ("editor=null", "editor is left out, but must be one of ft, mend"),
        ("~editor", "editor is left out, but must be one of ft, mend"),
        ("editor=[mend,ft]", "editor is a list, but takes one choice: ft, mend; only baselines takes several"),
        ("scale=null", "scale=null is not understood: leave the group out with ~scale"),
        ("baselines=[x]", "baselines is 'x', but must be one of ft, mend, none"),
        ("seed=0,1", "seed=0,1 names several values: write seed=[0,1] for a list, or add -m for a run with each"),
        (
            "editor.steps=[1",
            "Cannot read 'editor.steps=[1': a setting is written key=value, its value quoted where odd",
        ),
        ("editor", "Cannot read 'editor': a setting is written key=value, its value quoted where odd"),
        ("editor.any=???", "editor.any has no value: set editor.any=…"),
        ("editor.any=${nope}", "editor.any cannot be resolved: Interpolation key 'nope' not found"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(small: None, word: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        configs.checked([word])
    assert str(error.value) == sentence


@pytest.mark.parametrize("words", [["editor=mend,ft", "seed=0,1"], ["seed=range(3)"], ["editor=glob(*)"]])
def test_sweeps_are_taken(small: None, words: list[str]) -> None:
    assert "editor" in configs.checked(words, sweep=True)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["editor=mend,nope"], "editor is 'nope'"),
        (["seed=0,x"], "seed is 'x'"),
        (["editor=mend,ft", "editor.name=x"], "There is no setting 'editor.name'"),
    ],
)
def test_every_part_of_a_sweep_is_checked(small: None, words: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        configs.checked(words, sweep=True)


def test_folders_never_collide(shipped: None) -> None:
    assert configs.checked([]).run.dir != configs.checked([]).run.dir


def test_one_configuration_has_one_folder(shipped: None) -> None:
    config = configs.checked([])
    assert config.run.dir == config.run.dir


def test_a_job_is_known_by_what_its_results_depend_on(shipped: None) -> None:
    def known(*words: str, editor: str = "mend") -> str:
        return configs.identity(configs.checked(["editor=mend", *words]), editor)

    same = ["run.dir=x", "run.title=x", "run.study=x", "run.skip_finished=true", "tracker=none", "cache=disk"]
    assert known() == known(*same)
    others = {known(word) for word in ("seed=1", "editor.rank=3", "scale=small", "run.editors_from=x", "baselines=ke")}
    assert len({known(), *others, known(editor="mine")}) == 7
    assert configs.identity(OmegaConf.create(OmegaConf.to_yaml(configs.checked([]), resolve=True)), "x") == (
        configs.identity(configs.checked([]), "x")
    )


@pytest.mark.parametrize("choices", ROUNDS, ids=" ".join)
def test_every_choice_composes_and_fits_its_target(shipped: None, choices: list[str]) -> None:
    nodes = dict(targets(configs.checked(choices)))
    assert {"model", "tasks", "editor", "trainer", "regime", "evaluator", "tracker"} <= set(nodes)
    for name, node in nodes.items():
        check_fits(name, node)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_composes_and_fits_its_target(shipped: None, writer: str) -> None:
    assert [len(choices) for choices in ONE_OF_A_KIND] == [1, 1]
    needed = {"openai": ["writer.model=x"], "local": ["writer.path=x"]}.get(writer, [])
    nodes = dict(targets(configs.checked([f"writer={writer}", *needed], primary="instructions")))
    assert {"model", "tasks", "editor", "trainer", "evaluator", "writer", "search"} <= set(nodes)
    for name, node in nodes.items():
        check_fits(name, node)


def test_all_baselines_are_all_editors(shipped: None) -> None:
    assert sorted(configs.checked(["baselines=all"]).baselines) == GROUPS["editor"]


def targets(node: Any, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield name, node
        for key in node:
            yield from targets(node._get_node(key), f"{name}.{key}".lstrip("."))


def check_fits(name: str, node: DictConfig) -> None:
    """Every key is a parameter of the target, and no parameter without a default is left to chance."""
    module, _, attribute = str(node._target_).rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    keys = {str(key) for key in node if not str(key).startswith("_")} - ({"tuned"} if name == "model" else set())
    assert keys <= set(parameters), f"{name}: {keys - set(parameters)} is no parameter of {node._target_}"
    needed = {key for key, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    given_in_code = {"lm", "path"} if node.get("_partial_") or name.split(".")[0] in ("editor", "baselines") else set()
    if not node.get("_partial_"):
        assert needed <= keys | given_in_code, f"{name}: {needed - keys} is missing"


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (
            {"_target_": "editkit.tracking.WandbTracker", "mode": "sometimes"},
            "tracker.mode is 'sometimes', but must be one of offline, online, disabled",
        ),
        ({"_target_": "editkit.tracking.WandbTracker", "nope": 1}, "unexpected keyword argument 'nope'"),
    ],
)
def test_a_target_that_cannot_be_made_is_a_usage_error(node: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        configs.instantiate(OmegaConf.create(node))


def test_a_bug_inside_a_target_is_not_taken_for_bad_input() -> None:
    with pytest.raises(Exception) as error:
        configs.instantiate(OmegaConf.create({"_target_": "statistics.fmean", "data": 3}))
    assert not isinstance(error.value, UsageError)


def test_hydras_own_names_of_a_folder_are_run_dir() -> None:
    words = ["hydra.sweep.dir=a=b", "hydra.run.dir=c", "seed=1", "hydra/launcher=joblib"]
    assert configs.translated(words) == ["run.dir=a=b", "run.dir=c", "seed=1", "hydra/launcher=joblib"]
