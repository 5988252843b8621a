"""The trunk's store and the cut below the sites against the whole model, one text at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from editkit.editors.mend import MEND
from editkit.edits import applied
from editkit.errors import UsageError
from editkit.lm import LM, Layout, Text, find, load, shared, weight
from editkit.requests import EditRequest
from tests.conftest import FAMILIES, SITES

TEXTS = [
    ("The capital is", "Rome"),
    ("Hm", "a longer answer"),
    ("Who wrote this?", "I"),
    ("Köln or", "Ålesund, Norway"),
]


@pytest.mark.parametrize("start", [0, 1, 3])
def test_suffix_on_kept_states_equals_the_whole_model(lm: LM, start: int) -> None:
    texts = [lm.text(*text) for text in TEXTS]
    for _ in range(2):  # the second time everything comes from the store
        found = lm.logits(lm.batch(texts, start))
        wanted = [lm.model(torch.tensor([t.ids])).logits[0, t.prompt - 1 : -1] for t in texts]
        assert torch.allclose(found, torch.cat(wanted), rtol=0, atol=1e-10)


def test_order_and_neighbours_do_not_matter(lm: LM) -> None:
    texts = [lm.text(*text) for text in TEXTS]
    together = lm.logits(lm.batch(texts, 2)).split([len(text.answer) for text in texts])
    for place in (3, 1, 0, 2):
        assert torch.allclose(lm.logits(lm.batch([texts[place]], 2)), together[place], rtol=0, atol=1e-10)


def test_a_text_runs_through_the_trunk_once(lm: LM) -> None:
    texts = [lm.text(*text) for text in TEXTS]
    runs = []
    handle = lm.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    lm.batch(texts, 2)
    first = len(runs)
    lm.batch(texts[::-1] + texts[:1], 2)
    handle.remove()
    assert first == 1
    assert len(runs) == first


def test_answers_of_one_token_share_what_is_read(lm: LM) -> None:
    ids = lm.text("The capital is", "Rome").read
    texts = [Text((*ids, token), len(ids)) for token in (5, 6)]
    batch = lm.batch(texts, 2)
    assert torch.equal(*batch.hidden)
    assert lm.logits(batch).shape[0] == 2
    assert list(lm._tables["block-2"].where) == [texts[0].read] == [texts[1].read]


def test_a_fused_activation_is_the_same_function() -> None:
    shape = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 2048, "n_positions": 32}
    layout = {"blocks": "transformer.h", "norm": "transformer.ln_f", "head": "lm_head"}
    lm = load("bundled", layout, {}, weights="random", dtype="float64", device="cpu", shape=shape)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float64).eval()
    plain.load_state_dict(lm.model.state_dict())
    assert (lm.model.config.activation_function, plain.config.activation_function) == ("gelu_pytorch_tanh", "gelu_new")
    ids = torch.arange(20)[None]
    assert torch.allclose(lm.model(ids).logits, plain(ids).logits, rtol=0, atol=1e-12)


def test_base_states_are_those_of_the_unedited_model(lm: LM) -> None:
    texts = [lm.text(*text) for text in TEXTS]
    found = lm.head(lm.base(texts, 2))
    assert torch.allclose(found, lm.logits(lm.batch(texts, 0)), rtol=0, atol=1e-10)


def test_the_boundary_never_merges(lm: LM) -> None:
    text = lm.text("Ends with a space? ", "no")
    assert lm.tokenizer.decode(list(text.ids[: text.prompt])) == "Ends with a space? "
    assert lm.tokenizer.decode(list(text.answer)) == " no"


def test_shifted_positions_are_one_token_later(lm: LM) -> None:
    text = lm.text("The capital is", "Rome")
    found = lm.logits(lm.batch([text], 2, shift=1))
    assert torch.allclose(found, lm.model(torch.tensor([text.ids])).logits[0, text.prompt :], rtol=0, atol=1e-10)


def test_writing_stops_at_a_newline_or_the_end(make_lm: Callable[..., LM]) -> None:
    lm = make_lm("gpt2")
    newline = lm.tokenizer("\n")["input_ids"][0]
    with torch.no_grad():
        lm.model.lm_head.weight.zero_()  # every logit equal but the newline's
        lm.model.lm_head.weight[newline] = 1.0
        lm.norm.weight.zero_()
        lm.norm.bias.fill_(1.0)
    assert lm.write(["a", "bcd"], 5, stop=True) == ["\n", "\n"]
    assert lm.write(["a"], 5, stop=False) == ["\n" * 5]


def test_sites_are_counted_from_either_end(lm: LM, family: str) -> None:
    down = {"llama": "down_proj", "gpt2": "c_proj"}[family]
    full = f"{lm.layout.blocks}.3.mlp.{down}"
    assert list(lm.sites([f"-1.mlp.{down}"])) == list(lm.sites([f"3.mlp.{down}"])) == list(lm.sites([full])) == [full]
    assert lm.block_of([full, f"{lm.layout.blocks}.2.mlp.{down}"]) == 2


def test_a_site_is_a_linear_map_or_an_mlp_and_only_the_former_has_a_weight(lm: LM, family: str) -> None:
    with pytest.raises(UsageError, match="must be a linear map or an MLP"):
        lm.sites([{"llama": "1.input_layernorm", "gpt2": "1.ln_1"}[family]])
    ((_, mlp),) = lm.sites(["-1.mlp"]).items()
    with pytest.raises(UsageError, match="MLP, but this editor needs a linear map"):
        weight(mlp)


@pytest.mark.parametrize(("site", "said"), [("4.mlp.x", "none of the 4 blocks"), ("1.mlp.x", "No module")])
def test_a_site_that_is_not_there_is_refused(lm: LM, site: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        lm.sites([site])


def test_a_model_that_is_not_there_is_refused_at_once() -> None:
    layout = {"blocks": "transformer.h", "norm": "transformer.ln_f", "head": "lm_head"}
    for path, said in (("./nowhere", "no such folder"), ("some-hub-model", "Hub cannot be reached")):
        with pytest.raises(UsageError, match=said):
            load(path, layout, {})


def test_the_fingerprint_tells_weights_apart(make_lm: Callable[..., LM]) -> None:
    names = {family: make_lm(family).fingerprint() for family in FAMILIES}
    assert make_lm("gpt2").fingerprint() == names["gpt2"] != names["llama"]
    other = make_lm("gpt2")
    with torch.no_grad():
        other.model.transformer.h[0].mlp.c_fc.weight.add_(1e-3)
    assert other.fingerprint() != names["gpt2"]


def test_a_layout_that_does_not_fit_is_refused(make_lm: Callable[..., LM]) -> None:
    with pytest.raises(UsageError, match="No module 'model.layers'"):
        LM(make_lm("gpt2").model, None, Layout("model.layers", "model.norm", "lm_head"), "x")


@pytest.mark.parametrize("asked", [True, False])
def test_float32_products_are_whole_unless_asked(asked: bool) -> None:
    shape = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 2048}
    layout = {"blocks": "transformer.h", "norm": "transformer.ln_f", "head": "lm_head"}
    load("bundled", layout, {}, weights="random", device="cpu", tf32=asked, shape=shape)
    assert torch.backends.cuda.matmul.allow_tf32 is asked


class TestSharedAmongDevices:
    """With Accelerate's hooks in place; that tensors are moved needs two devices, and is theirs to test."""

    @pytest.fixture
    def pair(self, make_lm: Callable[..., LM], family: str) -> tuple[LM, LM]:
        plain, other = make_lm(family), make_lm(family)
        return plain, LM(shared(other.model, other.layout, ["cpu", "cpu"]), other.tokenizer, other.layout, family)

    def test_is_the_same_model(self, pair: tuple[LM, LM]) -> None:
        plain, both = pair
        assert all(hasattr(block, "_hf_hook") for block in (*both.blocks, both.norm, both.head))
        texts = [plain.text(*text) for text in TEXTS]
        assert torch.equal(both.logits(both.batch(texts, 2)), plain.logits(plain.batch(texts, 2)))
        assert both.write(["Hm"], 4, stop=False) == plain.write(["Hm"], 4, stop=False)

    def test_is_edited_and_trained_on_alike(self, pair: tuple[LM, LM], family: str) -> None:
        request = EditRequest(id="a", task="t", subject="s", prompt="The capital is", target="Rome")
        found = []
        for lm in pair:
            editor = MEND(lm, SITES[family], rank=8, step_size=-0.1).double()
            edit = editor.edit(lm, [[request]])
            with applied(lm.sites(list(edit.rules)), edit, [0]):
                logits = lm.logits(lm.batch([lm.text("Hm", "so")], 2))
            logits.square().sum().backward()
            found.append((logits, editor.step_sizes.grad))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other) and one.abs().sum() > 0

    def test_blocks_are_shared_out_in_order(self, make_lm: Callable[..., LM], family: str) -> None:
        def kinds(*parts: nn.Module) -> list[str]:
            return [next(part.parameters()).device.type for part in parts]

        lm = make_lm(family, blocks=5)
        layout, embeddings = lm.layout, lm.model.get_input_embeddings()
        both = shared(lm.model, layout, ["cpu", "meta"])
        assert kinds(*find(both, layout.blocks)) == ["cpu", "cpu", "cpu", "meta", "meta"]
        assert kinds(find(both, layout.norm), find(both, layout.head)) == ["meta", "meta"]
        assert kinds(embeddings) == ["cpu" if family == "llama" else "meta"], "GPT-2's are its head"

    def test_a_site_elsewhere_is_refused(self, lm: LM) -> None:
        lm.blocks[0].to("meta")
        with pytest.raises(UsageError, match=r"Site '.*\.0\.mlp.*' is on meta, but .* on cpu: name fewer devices"):
            lm.sites([SITES[lm.name][-1].replace("-1", "0")])
