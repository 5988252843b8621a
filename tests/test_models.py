"""Every model's file: its shape is the published one, and its sites are in it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from editkit import configs
from editkit.lm import Layout, full_names, load, site, weight

# As their publishers count them.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-j-6b": 6_050_882_784,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "mistral-7b": 7_241_732_096,
}
FOLDER = Path(configs.__file__).parents[1] / "conf" / "model"


def test_every_file_is_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"tiny", *PARAMETERS}


@pytest.mark.parametrize("name", PARAMETERS)
def test_shape_and_sites(name: str) -> None:
    with configs.sources():
        settings = configs.checked([f"model={name}"]).model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings.shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    layout = Layout(**settings.layout)
    for role, names in settings.sites.items():
        for full_name in full_names(model, layout, [names] if isinstance(names, str) else names):
            module = site(model, full_name)
            if role != "calinet":
                assert min(weight(module).shape) >= model.config.hidden_size


def test_random_weights_need_neither_folder_nor_network() -> None:
    shape = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 4000}
    layout = {"blocks": "transformer.h", "norm": "transformer.ln_f", "head": "lm_head"}
    one, other, third = (
        load("nowhere/at-all", layout, {}, weights="random", device="cpu", shape=shape, seed=seed) for seed in (0, 0, 1)
    )
    assert one.name == "at-all" and len(one.blocks) == 2
    assert one.fingerprint() == other.fingerprint() != third.fingerprint()
    assert one.write(["The answer is"], tokens=3, stop=False)
