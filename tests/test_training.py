"""The meta-training loop: exact resume, early stop that stops, batches and micro-batches, the objective's parts."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from editkit.editors.mend import MEND
from editkit.edits import Edit
from editkit.errors import UsageError
from editkit.lm import LM
from editkit.objectives import Objective
from editkit.requests import EditRequest
from editkit.training import Trainer, batch_indices, pretrained, restore
from tests.conftest import SITES

Curve = list[tuple[int, dict[str, float]]]


def mend(lm: LM, family: str = "llama") -> MEND:
    return MEND(lm, SITES[family], rank=8, lr=1e-3, step_size=0.01).to(lm.head.weight.dtype)


def trainer(**changes) -> Trainer:
    settings = {"steps": 6, "batch": 4, "validate_every": 2, "progress": False} | changes
    return Trainer(Objective(), **settings)


def fit(lm: LM, editor: MEND, requests: list[EditRequest], folder: Path, **changes):
    curve: Curve = []

    def log(metrics: Mapping[str, float], step: int) -> None:
        curve.append((step, {key: value for key, value in metrics.items() if not key.endswith("per_s")}))

    state = trainer(**changes).fit(lm, editor, requests[:4], requests[4:], folder, log)
    return state, curve


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_bit_for_bit_the_uninterrupted(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path, dtype: torch.dtype
) -> None:
    lm = make_lm("llama", dtype)
    whole = mend(lm).float()
    whole_state, whole_curve = fit(lm, whole, requests, tmp_path / "whole", warmup=3, decay=0.1)

    halted = mend(lm).float()

    def stop(metrics: Mapping[str, float], step: int) -> None:
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        trainer(warmup=3, decay=0.1).fit(lm, halted, requests[:4], requests[4:], tmp_path / "halted", stop)
    again = mend(make_lm("llama", dtype)).float()
    state, curve = fit(lm, again, requests, tmp_path / "halted", warmup=3, decay=0.1)

    assert state == whole_state
    assert curve == [point for point in whole_curve if point[0] > 4]
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    last, _ = restore(tmp_path / "whole" / "last.safetensors", lm)
    resumed, _ = restore(tmp_path / "halted" / "last.safetensors", lm)
    assert all(torch.equal(last[key], resumed[key]) for key in last)


def test_a_finished_training_is_not_trained_on(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path
) -> None:
    lm = make_lm("llama")
    state, curve = fit(lm, mend(lm), requests, tmp_path)
    again, nothing = fit(lm, mend(lm), requests, tmp_path)
    assert curve
    assert again == state
    assert nothing == []


@pytest.mark.parametrize("best_by", ["shares", "loss"])
def test_early_stop_stops_and_keeps_the_best(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path, best_by: str
) -> None:
    lm = make_lm("llama")
    editor = mend(lm)
    # A rate that ruins the editor: no validation beats the first.
    editor.lr = editor.step_size_lr = 0.1
    settings = {"steps": 50, "validate_every": 1, "patience": 3, "grad_clip": 1e9, "best_by": best_by}
    state, curve = fit(lm, editor, requests, tmp_path, **settings)
    seen = {step: metrics for step, metrics in curve if "valid/loss" in metrics}
    shares = {step: (m["valid/reliability"] + m["valid/locality"]) / 2 for step, m in seen.items()}
    quality = shares if best_by == "shares" else {step: -m["valid/loss"] for step, m in seen.items()}
    assert state.stopped_early
    assert state.step == state.best_step + 3 < 50
    assert state.best == max(quality.values()) == quality[state.best_step]
    assert max(quality) == state.step
    best, _ = restore(tmp_path / "best.safetensors", lm)
    assert all(torch.equal(tensor, best[name]) for name, tensor in editor.state_dict().items())


def test_micro_batches_take_the_same_step(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path
) -> None:
    lm = make_lm("llama")
    found = []
    for size in (None, 2, 3):
        editor = mend(lm)
        _, curve = fit(lm, editor, requests, tmp_path / str(size), micro_batch=size, steps=3, validate_every=3)
        found.append((editor.state_dict(), [metrics for _, metrics in curve if "train/loss" in metrics]))
    for state, curve in found[1:]:
        for name, tensor in found[0][0].items():
            # A thousandth of one of Adam's steps: losses are summed in fp32.
            assert (tensor - state[name]).abs().max() < 1e-6, name
        for one, other in zip(found[0][1], curve, strict=True):
            assert one.keys() == other.keys()
            assert all(abs(one[key] - other[key]) < 1e-5 for key in one)


WAITS = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.bincount.default",
    "aten.unique.default",
}


class Waiting(TorchDispatchMode):
    """Notes every operation for which a host would have to wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if str(func) in ("aten.index.Tensor", "aten.index_put.default") else []
        if str(func) in WAITS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_inside_a_step_nothing_waits_for_the_device(make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
    lm = make_lm("llama")
    editor = mend(lm)
    objective = Objective()
    questions = objective.questions(lm, requests, random.Random(0))
    for waiting in (Waiting(), Waiting()):  # the first fills the trunk and the base model's outputs
        with waiting:
            scores = objective(lm, editor.edit(lm, [[request] for request in requests]), questions)
            scores["loss"].backward()
    assert waiting.seen == []
    with waiting:
        float(scores["loss"].detach())
        scores["loss"][None][torch.tensor([True])]
    assert len(waiting.seen) == 2


def test_texts_are_all_that_may_be_asked(make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
    lm = make_lm("llama")
    told = [replace(request, instruction="Do: ") for request in requests]
    for settings in ({}, {"outer": "edit", "asked": "bare"}, {"distant_probes": 0, "locality_instruction": True}):
        objective = Objective(**settings)
        asked = set()
        for seed in range(40):
            questions = objective.questions(lm, told, random.Random(seed))
            asked |= {text for _, text in (*questions.changed, *questions.kept)}
        assert asked <= objective.texts(lm, told)
        assert asked == objective.texts(lm, told) or objective.outer == "edit"


def test_every_record_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    seen = [index for step in range(5) for index in batch_indices(10, 4, 7, step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert batch_indices(10, 4, 7, 3) == seen[12:16]
    assert batch_indices(10, 4, 8, 3) != seen[12:16]
    assert sorted(batch_indices(3, 8, 0, 0)[:3]) == [0, 1, 2]  # a batch may be larger than an epoch


class TestObjective:
    def test_is_the_slow_way(self, make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
        lm = make_lm("gpt2")
        editor = mend(lm, "gpt2")
        told = [replace(request, instruction="Do: ") for request in requests]
        with torch.no_grad():
            edit = editor.train().edit(lm, [[request] for request in told])
            found = scores(Objective(outer="both", distant_probes=0), lm, edit, told)
        nll, hits, kl, same = [], [], [], []
        for slot, request in enumerate(told):
            edited = LM(written(lm, edit, slot), lm.tokenizer, lm.layout, "copy")
            for prompt in (request.prompt, request.rephrases[0]):
                for before in (request.instruction, ""):
                    text = lm.text(before + prompt, request.target)
                    logits, wanted = whole(edited, text), torch.tensor(text.answer)
                    nll.append(torch.nn.functional.cross_entropy(logits, wanted))
                    hits.append((logits.argmax(-1) == wanted).double().mean())
            probe = request.locality["Near"][0]
            text = lm.text(probe.prompt, probe.answers[0])
            before, after = whole(lm, text).log_softmax(-1), whole(edited, text).log_softmax(-1)
            kl.append((before.exp() * (before - after)).sum(-1).mean())
            same.append((before.argmax(-1) == after.argmax(-1)).double().mean())
        wanted = {"nll": nll, "reliability": hits, "kl": kl, "locality": same}
        for key, values in wanted.items():
            assert torch.allclose(found[key].double(), torch.stack(values).mean().double(), rtol=1e-6), key
        assert torch.allclose(found["loss"], 0.1 * found["nll"] + found["kl"])

    @pytest.mark.parametrize(
        ("outer", "asked", "texts"),
        [
            ("edit", "bare", 1),
            ("edit", "both", 2),
            ("rephrase", "instructed", 1),
            ("both", "both", 4),
            ("either", "both", 2),
        ],
    )
    def test_asks_what_the_switches_say(
        self, make_lm: Callable[..., LM], requests: list[EditRequest], outer: str, asked: str, texts: int
    ) -> None:
        objective = Objective(outer=outer, asked=asked)
        lm = make_lm("llama")
        request = replace(requests[0], instruction="Do: ")
        prompts = [lm.tokenizer.decode(t.ids[: t.prompt]) for t in objective._asked(lm, request, random.Random(0))]
        assert len(prompts) == texts
        assert any(p.startswith("Do: ") for p in prompts) == (asked != "bare")
        assert all(p.startswith("Do: ") for p in prompts) == (asked == "instructed")
        if outer != "either":
            assert any(request.prompt in p for p in prompts) == (outer != "rephrase")

    def test_falls_back_to_the_edit_prompt(self, make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
        lm = make_lm("llama")
        request = replace(requests[0], rephrases=())
        (text,) = Objective(outer="rephrase", asked="bare")._asked(lm, request, random.Random(0))
        assert text == lm.text(request.prompt, request.target)

    def test_locality_may_carry_the_instruction(self, make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
        lm = make_lm("llama")
        told = [replace(request, instruction="Do: ") for request in requests]
        for flag in (False, True):
            objective = Objective(locality_instruction=flag, distant_probes=0)
            (text,) = objective._kept(lm, 0, told, random.Random(0))
            assert lm.tokenizer.decode(text.ids[: text.prompt]).startswith("Do: ") == flag

    def test_faithful_positions_are_one_later(self, make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
        lm = make_lm("llama")
        with torch.no_grad():
            edit = mend(lm).train().edit(lm, [[request] for request in requests])
            found = scores(Objective(distant_probes=0, locality_positions="faithful"), lm, edit, requests)
        kl = []
        for slot, request in enumerate(requests):
            text = lm.text(request.locality["Near"][0].prompt, request.locality["Near"][0].answers[0])
            edited = LM(written(lm, edit, slot), lm.tokenizer, lm.layout, "copy")
            before, after = (whole(m, text, late=1).log_softmax(-1) for m in (lm, edited))
            kl.append((before.exp() * (before - after)).sum(-1).mean())
        assert torch.allclose(found["kl"].double(), torch.stack(kl).mean(), rtol=1e-6)

    def test_refuses_a_word_it_does_not_know(self) -> None:
        with pytest.raises(UsageError, match="asked is 'politely', but must be one of instructed, bare, both"):
            Objective(asked="politely")


def scores(objective: Objective, lm: LM, edit: Edit, requests: list[EditRequest]) -> dict[str, torch.Tensor]:
    return objective(lm, edit, objective.questions(lm, requests, random.Random(0)))


def written(lm: LM, edit: Edit, slot: int) -> torch.nn.Module:
    import copy

    model = copy.deepcopy(lm.model)
    for site, rule in edit.rules.items():
        module = model.get_submodule(site)
        update = rule.update(slot)
        module.weight.data += update.mT if isinstance(module, torch.nn.Linear) else update
    return model


def whole(lm: LM, text, late: int = 0) -> torch.Tensor:
    with torch.no_grad():
        logits = lm.model(torch.tensor([text.ids])).logits[0]
    return logits[text.prompt - 1 + late : len(text.ids) - 1 + late]


def test_a_checkpoint_for_another_model_or_shape_is_refused(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path
) -> None:
    lm = make_lm("llama")
    fit(lm, mend(lm), requests, tmp_path, steps=2)
    best = tmp_path / "best.safetensors"
    with pytest.raises(UsageError, match="trained for another model"):
        pretrained(mend(make_lm("llama", blocks=5)), best, make_lm("llama", blocks=5))
    with pytest.raises(UsageError, match="does not fit this editor"):
        pretrained(MEND(lm, SITES["llama"], rank=5), best, lm)
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="not an editor's checkpoint"):
        pretrained(mend(lm), tmp_path / "broken.safetensors", lm)


def test_a_trained_editor_comes_back_whole(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path
) -> None:
    lm = make_lm("llama")
    editor, other = mend(lm), mend(lm)
    fit(lm, editor, requests, tmp_path, steps=2)
    pretrained(other, tmp_path / "best.safetensors", lm)
    with torch.no_grad():
        one, two = (e.edit(lm, [requests[:1]]) for e in (editor, other))
    assert all(torch.equal(rule.update(0), two.rules[site].update(0)) for site, rule in one.rules.items())
