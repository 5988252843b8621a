"""A plan says what the run then does, and takes nothing for it."""

import resource
from pathlib import Path

import pytest
from omegaconf import DictConfig

from editkit import cli, configs
from editkit.lm import LM
from editkit.plan import Plan, plan
from editkit.run import load_model, run

FAST = ["debug=fast", "tracker=none", "evaluator.only=[teacher_forced]", "tasks.test=[recent,convsent]"]


def composed(*words: str) -> DictConfig:
    with configs.sources():
        config = configs.checked([*FAST, *words])
        config.run.editor = configs.chosen("editor", [*FAST, *words])
    return config


def activations(found: Plan) -> int:
    return next(size for what, size in found.memory.items() if "activations of" in what)


@pytest.fixture(scope="module")
def fast() -> Plan:
    return plan(composed())


def test_texts_and_parameters_are_those_of_the_run(fast: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()
    batch = LM.batch

    def noted(lm: LM, texts, start, shift=0):
        asked.update((start, text) for text in texts)
        return batch(lm, texts, start, shift)

    monkeypatch.setattr(LM, "batch", noted)
    config = composed(f"run.dir={tmp_path / 'run'}")
    run(config)
    assert fast.data["different texts"] == len(asked)
    assert fast.data["their tokens"] == sum(len(text.read) for _, text in asked)

    lm = load_model(config)
    editor = configs.instantiate(config.editor, lm=lm)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in (("lm", lm.model), ("editor", editor))}
    assert fast.parameters["model"] == count["lm"]
    assert fast.parameters["instructedit's networks"] == count["editor"]
    assert fast.memory["networks of all editors"] == 4 * count["editor"]
    checkpoints = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    assert sum(fast.disk.values()) == pytest.approx(checkpoints, rel=0.05)


def test_memory_follows_the_edits_that_run_at_once() -> None:
    words = "tasks.train=[recent]", "tasks.test=[recent]", "trainer.batch=8"
    whole, halves = plan(composed(*words)), plan(composed(*words, "trainer.micro_batch=4"))
    assert 1.5 < activations(whole) / activations(halves) < 2.5
    assert whole.parameters == halves.parameters and whole.disk == halves.disk


def test_a_plan_takes_no_memory_for_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(composed("model=llama-2-7b", "model.device=cpu", "model.dtype=bfloat16", "tasks.test=[recent]"))
    assert found.parameters["model"] == 6_738_415_616
    assert found.parameters["model"] == found.parameters["trunk"] + found.parameters["suffix"]
    assert found.memory["weights (bfloat16)"] == 2 * 6_738_415_616
    assert max(found.peaks.values()) > 2 * 6_738_415_616
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9


def test_the_command_writes_nothing_and_plans_each_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*FAST, "plan=true", f"run.dir={tmp_path / 'run'}", "tasks.test=[recent]"]
    assert cli.main(["run", "-m", "editor=ft_l,grace", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("what it would need") == 2
    assert "ft_l: making 2 edits" in said and "grace: scoring them" in said
    assert list(tmp_path.iterdir()) == []
