"""Fixtures for all tests. Nothing in the tests reaches out to the network."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"

# Shapes written in annotations are checked on every call that a test makes.
with install_import_hook(
    ["editkit.edits", "editkit.lm", "editkit.editors", "editkit.objectives", "editkit.training", "editkit.analysis"],
    "beartype.beartype",
):
    import editkit.analysis.gradients
    import editkit.editors.calinet
    import editkit.editors.ft
    import editkit.editors.grace
    import editkit.editors.instructedit
    import editkit.editors.ke
    import editkit.training  # noqa: F401

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from editkit.lm import LM, Layout
from editkit.requests import EditRequest, Probe

FAMILIES = ("llama", "gpt2")
SITES = {
    "llama": ["-2.mlp.down_proj", "-1.mlp.gate_proj", "-1.mlp.up_proj", "-1.mlp.down_proj"],
    "gpt2": ["-2.mlp.c_fc", "-2.mlp.c_proj", "-1.mlp.c_fc", "-1.mlp.c_proj"],
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(["<|end|>", *alphabet])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


@pytest.fixture(scope="session")
def make_lm(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LM]:
    """A random model of a family: ``make_lm("gpt2", torch.float64)``."""

    def make(family: str, dtype: torch.dtype = torch.float64, blocks: int = 4) -> LM:
        ends = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 257}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if family == "gpt2":
                config = GPT2Config(n_embd=16, n_head=2, n_layer=blocks, n_positions=256, initializer_range=0.2, **ends)
                model, layout = GPT2LMHeadModel(config), Layout("transformer.h", "transformer.ln_f", "lm_head")
            else:
                sizes = {
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_hidden_layers": blocks,
                    "num_attention_heads": 2,
                }
                model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, initializer_range=0.2, **ends))
                layout = Layout("model.layers", "model.norm", "lm_head")
        return LM(model.to(dtype), tokenizer, layout, family)

    return make


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lm(make_lm: Callable[..., LM], family: str) -> LM:
    """A random model of each family in float64."""
    return make_lm(family)


@pytest.fixture
def requests() -> list[EditRequest]:
    """Six requests of different lengths, with probes."""
    words = ["Rome", "a tailor", "Yes", "New York", "Ümlaut", "12"]
    return [
        EditRequest(
            id=f"toy#{index}",
            task="toy",
            subject=f"S{index}",
            prompt="The answer" + " really" * index + " is",
            target=word,
            truth="No",
            rephrases=(f"Say what {index} is:",),
            locality={"Near": (Probe(f"Another {index} is", ("that", "this one")),)},
            portability={"Reasoning": (Probe(f"And so {index}?", (word, "Other")),)},
        )
        for index, word in enumerate(words)
    ]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data that EDITKIT_DATA names; tests that need it are skipped where it is unset."""
    folder = os.environ.get("EDITKIT_DATA")
    if not folder:
        pytest.skip("EDITKIT_DATA is unset: set it to a folder of KnowEdit's files to run the tests on real data")
    return Path(folder)
