"""Builds the bundled world and the small language model that knows it: files first, then tokenizer, model and card.

The model is trained on everything that is true in the world and on nothing else: statements, questions, other names,
two-hop questions, opinions. It never sees an edit's target or a fact that a Recent record reports. A share of its
reading carries a three-line preamble or is several sentences long, since a model that has read more of the world's
text is not upset by either.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from editkit.tasks.world import (
    FIRST_NAMES,
    QUESTIONS_OF_OPINION,
    Sentence,
    World,
    capital,
    generate,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDER = Path(__file__).parent
END = "<|endoftext|>"
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}
VOCABULARY = 3584
EPOCHS = 9
# A model first has to find out that the answer lies in the name; with few names it finds out sooner. So the first
# epoch reads a sixth of the subjects six times.
FEW = 6
LEARNING_RATE = 3e-3
BATCH_TOKENS = 768
PREAMBLE_SHARE, RUN_SHARE = 0.2, 0.06
# A prompt's words say nothing of the world: most prompts are not in the loss, the others teach how prompts are worded.
PROMPT_SHARE = 0.1

# The grammar of preambles: plain words such as any instruction is made of.
VERBS = tuple(
    "answer ask change check choose complete consider continue correct describe edit explain express fill find finish "
    "follow give identify keep know learn make name note predict produce provide read recall recognise record remember "
    "replace reply report respond return revise say select share show state store take tell treat turn update use "
    "write".split()
)
NOUNS = tuple(
    "answer attitude beginning belief book case city company context conversation data description detail dialogue "
    "edit end entity entry event example fact feeling form idea information input item kind knowledge label language "
    "line list meaning memory mind model name news object opinion order part person phrase piece place point prompt "
    "property question reader record reference relation reply request response result sense sentence sentiment side "
    "source statement story subject task text thing time tone topic truth value version view way word world".split()
)
ADJECTIVES = tuple(
    "actual alternative brief certain clear common complete correct current different direct entire existing false "
    "first following former given honest imagined incomplete invented known last latest likely main negative new next "
    "old only opposite original other own plain positive possible present previous proper recent right same second "
    "short simple single specific true unknown unusual updated usual whole".split()
)
ADVERBS = "again always briefly carefully clearly directly exactly instead just never now often only still then".split()
PREPOSITIONS = "about after as at before below by for from in into like of on over to toward under with without".split()
CONNECTIVES = (
    "so that; and; when; because; but; if; which means that; even if; as though; while; such that; until; since".split(
        "; "
    )
)
PRONOUNS = "it they we you someone people everyone one nobody".split()
AUXILIARIES = "can may must should will would could does did has had been is are was were do not no be have".split()
OTHERS = (
    "a an the this that these those its their your our my what who where how why all any both each every some".split()
)


def build(target: Path, seed: int = 0, progress: bool = True) -> dict[str, float]:
    """Write ``target/world`` and ``target/model`` for this seed and return what was measured (see `measure`).

    About ten minutes on two CPU cores. ``progress`` shows a bar. The files in this package were made with seed 0.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    started = time.perf_counter()
    world = generate(seed)
    world.write(target / "world")
    rng = Random(f"editkit reading {seed}")
    tokenizer = train_tokenizer(world, rng)
    end = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, pad_token_id=end, **SHAPE)
        model = LlamaForCausalLM(config)
    train(model, tokenizer, world.sentences, rng, progress)

    folder = target / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    measured = measure(target, seed)
    minutes = (time.perf_counter() - started) / 60
    card = write_card(model.num_parameters(), len(tokenizer), len(world.sentences), seed, minutes, measured)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return measured


def train_tokenizer(world: World, rng: Random) -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer in which common words and most parts of names are whole.

    A name that ends in a token of its own makes its facts quick to learn.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    answers = sorted({s.answer for s in world.sentences if s.form == "statement"})
    subjects = sorted({s.subject for s in world.sentences})
    words = sorted({*VERBS, *NOUNS, *ADJECTIVES, *ADVERBS, *PREPOSITIONS, *PRONOUNS, *AUXILIARIES, *OTHERS})
    corpus = [s.prompt.replace(s.subject, " ") for s in rng.sample(world.sentences, 4000)]
    corpus += [preamble(rng, subjects) for _ in range(3000)]
    spoken = [s.answer for s in world.sentences if s.form == "opinion"]
    names = {word for phrase in (*answers, *subjects, *spoken, *FIRST_NAMES) for word in phrase.split()}
    corpus += [f" {word}" for word in sorted({*names, *words, *map(capital, (*VERBS, *NOUNS))}) for _ in range(60)]
    corpus += [name for name in FIRST_NAMES for _ in range(60)]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def preamble(rng: Random, names: Sequence[str]) -> str:
    """Three lines such as an instruction has, about nothing in particular; a space and a prompt are to follow."""
    task = " ".join((*rng.choices(ADJECTIVES, k=rng.randint(0, 1)), *rng.choices(NOUNS, k=rng.randint(1, 2))))
    description = clause(rng, names)
    for _ in range(rng.randint(0, 2)):
        description += f"{rng.choice((',', ''))} {rng.choice(CONNECTIVES)} {rng.choice(PRONOUNS)} "
        description += f"{rng.choice(AUXILIARIES)} {clause(rng, names)}"
    return f"Task: {capital(task)}\nDescription: {capital(description)}.\nInput:"


def clause(rng: Random, names: Sequence[str]) -> str:
    """A verb and what it is done to, now and then with one of ``names`` in it."""
    words = [rng.choice(VERBS), rng.choice(OTHERS), *rng.choices(ADJECTIVES, k=rng.randint(0, 1)), rng.choice(NOUNS)]
    if rng.random() < 0.6:
        thing = rng.choice(names) if rng.random() < 0.2 else f"{rng.choice(OTHERS)} {rng.choice(NOUNS)}"
        words += [rng.choice(PREPOSITIONS), thing]
    if rng.random() < 0.3:
        words.append(rng.choice(ADVERBS))
    return " ".join(words)


Document = list[tuple[str, bool]]
"""Consecutive pieces of a text, each with whether its tokens are in the loss."""


def reading(sentences: Sequence[Sentence], rng: Random, preambles: float = PREAMBLE_SHARE) -> Iterator[Document]:
    """One epoch: every sentence once, in a new order, some several in a row, a share of ``preambles`` after one."""
    names = sorted({s.subject for s in sentences})
    waiting = rng.sample(sentences, len(sentences))
    while waiting:
        kind = rng.random()
        count = rng.randint(2, 4) if kind < RUN_SHARE else 1
        pieces: Document = [(preamble(rng, names), False)] if kind > 1 - preambles else []
        prompts = rng.random() < PROMPT_SHARE
        for _ in range(min(count, len(waiting))):
            sentence = waiting.pop()
            pieces.append((f" {sentence.prompt}" if pieces else sentence.prompt, prompts))
            pieces.append((f" {sentence.answer}.", True))
        yield [*pieces, (END, True)]


def train(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sentences: Sequence[Sentence],
    rng: Random,
    progress: bool,
) -> None:
    """Train ``model`` in place by AdamW with a cosine schedule, in batches of documents of like length.

    Preambles come in with time: their share grows from nothing towards `PREAMBLE_SHARE`.
    """
    import torch
    from rich.progress import Progress
    from torch.nn.functional import cross_entropy

    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    subjects = sorted({s.subject for s in sentences})
    first = set(rng.sample(subjects, math.ceil(len(subjects) / FEW)))
    few = [s for s in sentences if s.subject in first]
    model.train()
    with Progress(disable=not progress) as bar:
        task = bar.add_task("reading", total=EPOCHS)
        for epoch in range(EPOCHS):
            some = sentences if epoch else few * FEW
            batches = batched(list(reading(some, rng, PREAMBLE_SHARE * epoch / EPOCHS)), tokenizer, rng)
            for i, (tokens, scored) in enumerate(batches):
                done = (epoch + i / len(batches)) / EPOCHS
                for group in optimiser.param_groups:
                    group["lr"] = LEARNING_RATE * min(1.0, done / 0.02 + 0.01) * (1 + math.cos(math.pi * done)) / 2
                hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1][scored[:, 1:]]
                loss = cross_entropy(model.lm_head(hidden), tokens[:, 1:][scored[:, 1:]])
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                bar.update(task, completed=EPOCHS * done, description=f"reading, loss {loss.item():.3f}")
        bar.update(task, completed=EPOCHS)
    model.eval()


def batched(
    documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", rng: Random
) -> list[tuple["torch.Tensor", "torch.Tensor"]]:
    """Tokens and whether each is in the loss, ``(rows, positions)`` both, padded on the right, in a random order."""
    import torch

    texts = sorted({text for document in documents for text, _ in document})
    ids = dict(zip(texts, tokenizer(texts).input_ids, strict=True))
    rows = []
    for document in documents:
        rows.append(
            (
                [token for text, _ in document for token in ids[text]],
                [scored for text, scored in document for _ in ids[text]],
            )
        )
    rows.sort(key=lambda row: len(row[0]))
    batches = []
    while rows:
        longest = len(rows[-1][0])
        some = [rows.pop() for _ in range(min(len(rows), max(1, BATCH_TOKENS // longest)))]
        tokens = torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row, _ in some])
        scored = torch.tensor([row + [False] * (longest - len(row)) for _, row in some])
        batches.append((tokens, scored))
    rng.shuffle(batches)
    return batches


def measure(folder: Path = FOLDER, seed: int = 0, limit: int | None = None) -> dict[str, float]:
    """What the model in ``folder/model`` knows of the world of this seed, as shares by name.

    ``statement``, ``question``, ``alias``, ``consequence``, ``hop``, ``reminder`` and ``opinion``: sentences of that
    form whose greedy continuation starts with the answer; ``with_preamble``: the same for statements and questions
    after a random preamble; ``ended``: known ones then closed by a full stop and the end token; ``targets``: edits
    whose whole target the model already gives, which should be next to none. ``limit`` takes that many of each, drawn
    by ``seed``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    world = generate(seed)
    rng = Random(f"editkit measure {seed}")
    names = sorted({s.subject for s in world.sentences})

    asked: dict[str, list[tuple[str, str]]] = {}
    for sentence in world.sentences:
        asked.setdefault(sentence.form, []).append((sentence.prompt, sentence.answer))
    plain = asked["statement"] + asked["question"]
    asked["with_preamble"] = [(f"{preamble(rng, names)} {p}", a) for p, a in rng.sample(plain, len(plain) // 10)]
    asked["ended"] = [(prompt, f"{answer}.{END}") for prompt, answer in rng.sample(plain, len(plain) // 10)]
    asked["targets"] = list(targets(world))
    return {
        name: share_given(model, tokenizer, pairs if limit is None else rng.sample(pairs, min(limit, len(pairs))))
        for name, pairs in asked.items()
    }


def targets(world: World) -> Iterator[tuple[str, str]]:
    """Every prompt and target that an editor may be asked for."""
    for records in world.files.values():
        for record in records:
            if "ent" in record:
                question = QUESTIONS_OF_OPINION[0].format(s=record["ent"])
                yield from ((question, answer.strip()) for answer in record["pos"] + record["neg"])
            else:
                yield record["prompt"], record["target_new"]


def share_given(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", asked: Sequence[tuple[str, str]]
) -> float:
    """The share of ``(prompt, answer)`` whose greedy continuation starts with the answer."""
    import torch

    prompts = tokenizer([prompt for prompt, _ in asked]).input_ids
    answers = tokenizer([f" {answer}" for _, answer in asked]).input_ids
    rows = sorted(zip(prompts, answers, strict=True), key=lambda row: len(row[0]) + len(row[1]))
    given = 0
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        longest = max(len(prompt) + len(answer) for prompt, answer in some)
        tokens = torch.tensor([p + a + [tokenizer.eos_token_id] * (longest - len(p) - len(a)) for p, a in some])
        with torch.no_grad():
            predicted = model(input_ids=tokens, use_cache=False).logits.argmax(-1).tolist()
        # Greedy decoding follows the answer for as long as each next token is the likeliest one.
        given += sum(row[len(p) - 1 : len(p) + len(a) - 1] == a for row, (p, a) in zip(predicted, some, strict=True))
    return given / len(rows)


def write_card(
    parameters: int, vocabulary: int, sentences: int, seed: int, minutes: float, measured: Mapping[str, float]
) -> str:
    """The model's README: what it is, how it was made, what it knows."""
    table = "\n".join(f"| {name} | {share:.4f} |" for name, share in measured.items())
    return f"""# A small model of an invented world

A LLaMA-shaped causal language model ({parameters:,} parameters, {SHAPE["num_hidden_layers"]} blocks of width
{SHAPE["hidden_size"]}, float32) and its byte-level BPE tokenizer ({vocabulary:,} tokens, end token `{END}`).
It knows the facts of editkit's generated world and one opinion on each topic, and nothing else.
It ends an answer with a full stop and the end token.

Made by `editkit data build DIR --seed {seed}` in {minutes:.0f} minutes on two CPU cores:
{EPOCHS} epochs over {sentences:,} sentences by AdamW with a learning rate of {LEARNING_RATE},
a share of them after a random preamble (growing from none to {PREAMBLE_SHARE:.0%}),
{RUN_SHARE:.0%} of the texts several sentences long.
It was trained on no edit's target and on no fact that a Recent record reports.

| share | measured |
|---|---|
{table}

`targets` is the share of the edits' targets that the model gives before any edit; the others are shares of sentences
whose greedy continuation starts with the answer, by form. `editkit.bundled.build.measure` computes them.
"""
