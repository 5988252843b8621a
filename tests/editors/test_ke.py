"""KE's arithmetic against a plain written-out version: dense products, one edit at a time, a copied model."""

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editkit.editors.ke import KE, ConditionReader, Gates
from editkit.errors import UsageError
from editkit.lm import LM, Text
from editkit.objectives import Constrained, Objective
from editkit.requests import EditRequest
from editkit.training import Trainer, restore
from tests.conftest import SITES


def ke(lm: LM, **changes) -> KE:
    return KE(lm, SITES[lm.name], hidden=12, condition=10, **changes).double()


def plain_condition(editor: KE, lm: LM, request: EditRequest) -> Tensor:
    """h, by an LSTM written out: one text, token by token, forwards and backwards."""
    text = f"{request.truth} >> {request.target} || {request.instruction}{request.prompt}"
    words = lm.model.get_input_embeddings().weight[lm.tokenizer(text)["input_ids"]]
    lstm, ends = editor.reader.lstm, []
    for suffix, order in (("", words), ("_reverse", words.flip(0))):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_x, w_h, b_x, b_h = (getattr(lstm, f"{name}_l0{suffix}") for name in names)
        state = cell = torch.zeros(lstm.hidden_size, dtype=torch.float64)
        for word in order:
            enter, forget, new, out = (w_x @ word + b_x + w_h @ state + b_h).chunk(4)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = out.sigmoid() * cell.tanh()
        ends.append(state)
    return torch.tanh(editor.reader.linear.weight @ torch.cat(ends) + editor.reader.linear.bias)


def plain_ke(editor: KE, lm: LM, request: EditRequest) -> dict[str, Tensor]:
    """Each weight's change as the formulas read: a dense gradient, times A, plus B, gated."""
    model = copy.deepcopy(lm.model).requires_grad_(True)
    text = lm.text(request.instruction + request.prompt, request.target)
    logits = model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(text.answer)).backward()
    h = plain_condition(editor, lm, request)
    found = {}
    for gates, site in zip(editor.gates, editor.sites, strict=True):
        module = model.get_submodule(site)
        gradient = module.weight.grad.mT if isinstance(module, torch.nn.Linear) else module.weight.grad
        d_in, d_out = gradient.shape
        first, _, second = gates.layers
        z = second.weight @ torch.tanh(first.weight @ h + first.bias) + second.bias
        a, c, b, d, eta = z.split([d_in, d_out, d_in, d_out, 1])
        if gates.softmax_over == "inputs":
            first_side, second_side = torch.outer(a.softmax(0), c), torch.outer(b.softmax(0), d)
        else:
            first_side, second_side = torch.outer(a, c.softmax(0)), torch.outer(b, d.softmax(0))
        found[site] = gates.max_scale * torch.sigmoid(eta) * (gradient * first_side + second_side)
    return found


@pytest.mark.parametrize("softmax_over", ["inputs", "outputs"])
@torch.no_grad()
def test_the_update_is_the_formula(lm: LM, requests: list[EditRequest], softmax_over: str) -> None:
    editor = ke(lm, softmax_over=softmax_over, max_scale=0.5)
    for gates in editor.gates:  # off the start, where the gradient's part is far smaller than B's
        gates.layers[2].bias *= 30
    told = [replace(request, instruction="Do: " * (index % 2)) for index, request in enumerate(requests)]
    edit = editor.edit(lm, [[request] for request in told])
    for slot, request in enumerate(told):
        with torch.enable_grad():
            plain = plain_ke(editor, lm, request)
        for site, wanted in plain.items():
            assert torch.allclose(edit.rules[site].update(slot), wanted, rtol=1e-9, atol=1e-13)


@torch.no_grad()
def test_the_gradient_matters(lm: LM, requests: list[EditRequest]) -> None:
    editor = ke(lm)
    for gates in editor.gates:  # A's columns are 0: only B is left
        d_in, d_out, *_ = gates.sizes
        gates.layers[2].parametrizations.weight.original0[d_in : d_in + d_out] = 0
        gates.layers[2].bias[d_in : d_in + d_out] = 0
    edit = editor.edit(lm, [requests[:1]])
    for gates, (site, rule) in zip(editor.gates, edit.rules.items(), strict=True):
        _, _, b, d, gate = gates(editor.condition(lm, requests[:1]))
        assert torch.allclose(rule.update(0), gate[0] * torch.outer(b[0], d[0]), rtol=1e-12), site
    whole = ke(lm).edit(lm, [requests[:1]])
    assert all((whole.rules[site].update(0) != rule.update(0)).any() for site, rule in edit.rules.items())


@torch.no_grad()
def test_a_slot_of_several_requests_is_the_sum_of_their_edits(lm: LM, requests: list[EditRequest]) -> None:
    editor = ke(lm)
    alone = editor.edit(lm, [[request] for request in requests])
    together = editor.edit(lm, [requests[:2], requests[2:]])
    for site, rule in together.rules.items():
        one = [alone.rules[site].update(slot) for slot in range(len(requests))]
        assert torch.allclose(rule.update(0), sum(one[:2]), rtol=1e-9, atol=1e-13)
        assert torch.allclose(rule.update(1), sum(one[2:]), rtol=1e-9, atol=1e-13)


@torch.no_grad()
def test_no_dense_update_is_built(lm: LM, requests: list[EditRequest]) -> None:
    edit = ke(lm).edit(lm, [[request] for request in requests])
    longest = max(len(lm.text(request.prompt, request.target).ids) for request in requests)
    assert all(rule.u.shape[1] <= longest + 1 for rule in edit.rules.values())


@torch.no_grad()
def test_the_condition_says_old_and_new_answer_and_the_prompt(lm: LM, requests: list[EditRequest]) -> None:
    editor, request = ke(lm), requests[0]
    others = [
        replace(request, truth="Yes"),
        replace(request, truth=None),
        replace(request, target="Milan"),
        replace(request, prompt="Where is it"),
        replace(request, instruction="Do: "),
    ]
    h = editor.condition(lm, [request, *others])
    assert all(not torch.allclose(h[0], other, atol=1e-6) for other in h[1:])
    assert torch.allclose(h[2], editor.condition(lm, [replace(request, truth="")])[0], rtol=1e-12)


def test_padding_is_not_read() -> None:
    reader = ConditionReader(4, 3, 2).double()
    texts = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([5, 7, 2])
    together = reader(texts, lengths)
    for row, length in enumerate(lengths):
        alone = reader(texts[row : row + 1, :length], lengths[row : row + 1])
        assert torch.allclose(alone[0], together[row], rtol=1e-12)


def test_the_softmax_is_on_the_side_that_was_said() -> None:
    h = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    a, c, b, d, gate = Gates(3, 4, 6, 5, "inputs", 0.1)(h)
    assert torch.allclose(a.sum(-1), torch.ones(2)) and torch.allclose(b.sum(-1), torch.ones(2))
    assert not torch.allclose(c.sum(-1), torch.ones(2))
    assert ((gate > 0) & (gate < 0.1)).all()
    a, c, b, d, _ = Gates(3, 4, 6, 5, "outputs", 0.1)(h)
    assert torch.allclose(c.sum(-1), torch.ones(2)) and torch.allclose(d.sum(-1), torch.ones(2))
    assert not torch.allclose(a.sum(-1), torch.ones(2))


def test_a_seed_is_a_start_and_the_global_generator_is_left_alone(make_lm: Callable[..., LM]) -> None:
    lm = make_lm("llama")
    before = torch.random.get_rng_state()
    one, same, other = ke(lm), ke(lm), ke(lm, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.reader.linear.weight, other.reader.linear.weight)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"softmax_over": "rows"}, "editor.softmax_over is 'rows', but must be one of inputs, outputs"),
        ({"hidden": 0}, "editor.hidden is 0, editor.condition 10, but both must be at least 1"),
    ],
)
def test_wrong_settings_are_answered_in_one_sentence(
    make_lm: Callable[..., LM], changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        KE(make_lm("gpt2"), SITES["gpt2"], **{"hidden": 4, "condition": 10, **changes})


class TestConstrained:
    def test_the_multiplier_follows_the_constraint(self) -> None:
        start = Constrained(margin=0.5, rate=0.25)
        above, below = start.stepped({"kl": 0.6}), start.stepped({"kl": 0.4})
        assert (above.locality_weight, below.locality_weight) == (1.25, 0.75)
        for _ in range(9):
            below = below.stepped({"kl": 0.4})
        assert below.locality_weight == 0
        assert start.locality_weight == 1

    def test_the_margin_shrinks_after_a_good_validation(self) -> None:
        start = Constrained(margin=0.5, least_margin=0.35)
        assert start.validated({"success": 0.9}) is start
        once = start.validated({"success": 0.91})
        assert once.margin == pytest.approx(0.4)
        assert once.validated({"success": 1.0}).margin == 0.35

    @torch.no_grad()
    def test_success_is_the_share_of_whole_targets(
        self, make_lm: Callable[..., LM], requests: list[EditRequest]
    ) -> None:
        lm = make_lm("llama")
        edit = ke(lm).edit(lm, [[request] for request in requests])
        for rule in edit.rules.values():
            rule.v.zero_()  # changes nothing
        texts = [greedy(lm, request.prompt) for request in requests]
        texts[0] = texts[0]._replace(ids=(*texts[0].ids[:-1], (texts[0].ids[-1] + 1) % 257))

        class Said(Objective):
            """Asks for what the model says anyway, but for the first one's last token."""

            def _asked(self, lm: LM, request: EditRequest, draw: random.Random) -> list[Text]:
                return [texts[requests.index(request)]]

        objective = Said(distant_probes=0)
        found = objective(lm, edit, objective.questions(lm, requests, random.Random(0)))
        assert found["success"] == pytest.approx(5 / 6)
        assert found["reliability"] == pytest.approx(5 / 6 + 2 / 3 / 6)

    def test_training_moves_both_and_resumes_exactly(
        self, make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path
    ) -> None:
        lm = make_lm("llama")
        # Every validation is good enough, so that the margin moves as well.
        trainer = Trainer(Constrained(margin=1e-4, enough=-1.0), steps=6, batch=4, validate_every=2, progress=False)
        curve: dict[int, Mapping[str, float]] = {}

        def keep(metrics: Mapping[str, float], step: int) -> None:
            curve[step] = {**curve.get(step, {}), **metrics}

        class Interrupted(Exception):
            pass

        def stop(metrics: Mapping[str, float], step: int) -> None:
            if step == 5:
                raise Interrupted

        def fit(folder: str, log) -> tuple[object, KE]:
            editor = ke(lm, lr=0.01).float()
            return trainer.fit(lm, editor, requests[:4], requests[4:], tmp_path / folder, log), editor

        state, whole = fit("whole", keep)
        for step in range(1, 7):
            seen = curve[step]
            before = curve[step - 1]["train/locality_weight"] if step > 1 else 1.0
            margin = 1e-4 * 0.8 ** ((step - 1) // 2)
            assert seen["train/margin"] == pytest.approx(margin)
            assert seen["train/locality_weight"] == pytest.approx(before + (0.1 if seen["train/kl"] > margin else -0.1))
        assert state.learned["margin"] == pytest.approx(1e-4 * 0.8**3)

        with pytest.raises(Interrupted):
            fit("halted", stop)
        resumed, again = fit("halted", lambda metrics, step: None)
        assert resumed == state
        assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))
        last = [restore(tmp_path / folder / "last.safetensors", lm) for folder in ("whole", "halted")]
        assert last[0][1] == last[1][1]
        assert all(torch.equal(last[0][0][key], last[1][0][key]) for key in last[0][0])


def greedy(lm: LM, prompt: str, tokens: int = 3) -> Text:
    """The prompt with the tokens that the model goes on with."""
    ids = lm.text(prompt, "").ids
    before = len(ids)
    for _ in range(tokens):
        ids += (int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()),)
    return Text(ids, before)
