"""Counting: the same figures for numbers and for shapes alone."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch

from editkit.counting import Counted, Rates
from editkit.editors import Editor, Trainable
from editkit.editors.calinet import CaliNet
from editkit.editors.ft import FineTuning
from editkit.editors.grace import GRACE
from editkit.editors.ke import KE
from editkit.editors.mend import MEND
from editkit.lm import LM
from editkit.objectives import Objective
from editkit.requests import EditRequest

# In the last block only tokens that are scored have a gradient, but shapes know of no zeros.
SITES = ["-2.mlp.c_fc", "-2.mlp.c_proj"]
EDITORS: dict[str, Callable[[LM], Editor]] = {
    "mend": lambda lm: MEND(lm, SITES, rank=8),
    "ke": lambda lm: KE(lm, SITES, hidden=8, condition=8),
    "ft_m": lambda lm: FineTuning(lm, "-2.mlp.c_proj", loss="target", steps=3, enough=0.0),
    "calinet": lambda lm: CaliNet(lm, "-1.mlp", activation="gelu_new", gated=False, width=4, steps=3, enough=0.0),
    "grace": lambda lm: GRACE(lm, "-2.mlp.c_fc", steps=3),
}


def test_a_product_is_counted() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    with Counted() as counted:
        product = a @ b
        twice = [product, product + 1]
        del product, twice
    assert counted.flops == 2 * 3 * 4 * 5
    assert counted.bytes == 4 * (12 + 20 + 15) + 4 * (15 + 15)
    assert (counted.live, counted.peak) == (0, 2 * 4 * 15)


def test_time_is_that_of_the_rate_that_bounds() -> None:
    rates = Rates(torch.device("cpu"))
    a = torch.ones(256, 256)
    with Counted(rates) as counted:
        a @ a
    slowest = max(2 * 256**3 / rates.flops(torch.float32), 3 * a.nbytes / rates.bytes, rates.overhead)
    assert counted.seconds == slowest


def step(lm: LM, editor: Editor, requests: Sequence[EditRequest]) -> Counted:
    """What an edit of each request costs, and with it a training step if the editor learns."""
    with Counted() as counted:
        edit = editor.edit(lm, [[request] for request in requests])
        if isinstance(editor, Trainable):
            objective = Objective(distant_probes=0)
            objective(lm, edit, objective.questions(lm, requests, random.Random(0)))["loss"].backward()
    return counted


@pytest.mark.parametrize("name", EDITORS)
def test_shapes_alone_cost_what_numbers_do(name: str, make_lm: Callable[..., LM], requests: list[EditRequest]) -> None:
    alike = requests[:1] * 4  # of one length: where texts differ, shapes count their padding as text
    numbers, outline = make_lm("gpt2", torch.float32), make_lm("gpt2", torch.float32)
    outline.model.to("meta")
    real = step(numbers, EDITORS[name](numbers), alike)
    with torch.device("meta"):
        editor = EDITORS[name](outline)
    shapes = step(outline, editor, alike)
    assert shapes.flops == pytest.approx(real.flops, rel=0.1)
    assert shapes.peak == pytest.approx(real.peak, rel=0.15)
