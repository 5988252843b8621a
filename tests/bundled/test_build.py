"""The shipped model knows its world, ends its answers, and is what the builder builds."""

import warnings
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from editkit.bundled import build
from editkit.tasks.world import Sentence, World, generate


@pytest.fixture(scope="module")
def world() -> World:
    return generate(0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(build.FOLDER / "model")


def test_it_knows_its_world_and_no_edit():
    measured = build.measure(limit=400)
    assert measured["statement"] >= 0.98
    assert measured["question"] >= 0.98
    assert measured["opinion"] >= 0.95
    assert measured["with_preamble"] >= 0.95
    assert measured["ended"] >= 0.95
    assert measured["targets"] <= 0.02


def test_it_loads_without_a_warning(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoTokenizer.from_pretrained(build.FOLDER / "model")
        model = AutoModelForCausalLM.from_pretrained(build.FOLDER / "model")
    assert model.dtype == torch.float32
    assert not caplog.records


def test_it_stops_by_itself(tokenizer, world):
    model = AutoModelForCausalLM.from_pretrained(build.FOLDER / "model").eval()
    fact = next(sentence for sentence in world.sentences if sentence.form == "question")
    tokens = tokenizer(fact.prompt, return_tensors="pt")
    written = model.generate(**tokens, max_new_tokens=20, do_sample=False)[0, tokens.input_ids.shape[1] :]
    assert tokenizer.decode(written) == f" {fact.answer}.{build.END}"


def test_the_tokenizer_is_the_one_this_code_trains(tokenizer, world):
    trained = build.train_tokenizer(world, Random("editkit reading 0"))
    assert trained.get_vocab() == tokenizer.get_vocab()


def test_text_survives_the_tokenizer(tokenizer):
    for text in ("Zoë of Ærøvik, “then” and now.\n\tTabs, 数字 and all", "Input: The answer is 42."):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_pieces_of_a_text_are_tokenised_as_the_whole(tokenizer, world):
    for document in build.reading(world.sentences[:300], Random(0)):
        pieces = [token for text, _ in document for token in tokenizer(text).input_ids]
        assert pieces == tokenizer("".join(text for text, _ in document)).input_ids


def test_an_epoch_reads_every_sentence_once(world):
    sentences = world.sentences[:500]
    text = "".join(text for document in build.reading(sentences, Random(0)) for text, _ in document)
    assert all(text.count(f"{sentence.prompt} {sentence.answer}.") == 1 for sentence in sentences)


SPORTS = {"Ivo": "chess", "Lena": "judo", "Quin": "golf", "Tara": "polo", "Uma": "tennis", "Wim": "rowing"}
SENTENCES = [Sentence(name, f"The sport of {name} is", sport, "statement") for name, sport in SPORTS.items()]


def trained(tokenizer, epochs, monkeypatch) -> LlamaForCausalLM:
    monkeypatch.setattr(build, "EPOCHS", epochs)
    torch.manual_seed(0)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **width))
    build.train(model, tokenizer, SENTENCES, Random(0), progress=False)
    return model


def test_reading_teaches(tokenizer, monkeypatch):
    asked = [(sentence.prompt, sentence.answer) for sentence in SENTENCES]
    assert build.share_given(trained(tokenizer, 1, monkeypatch), tokenizer, asked) < 0.5
    assert build.share_given(trained(tokenizer, 200, monkeypatch), tokenizer, asked) == 1.0


def test_a_seed_is_a_model(tokenizer, monkeypatch):
    one, other = (trained(tokenizer, 3, monkeypatch).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
