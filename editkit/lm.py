"""A language model as editors see it: texts in, hidden states or logits out, and sites to edit.

The only place that knows how a family stores its weights and where its blocks are; the latter is said in the model's
YAML. The blocks below the first edited one (the *trunk*) give the same hidden states before and after any edit, so each
text runs through them once and only the blocks from there on are run again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editkit.cache import Cache, Table
from editkit.edits import sent
from editkit.errors import UsageError
from editkit.hub import source

T = TypeVar("T")
ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Of a model's configuration, what has no part in what it computes."""
FUSED = {"gelu_new": "gelu_pytorch_tanh"}
"""Activations that transformers spells out in eight operations, and the same in one, apart by rounding."""
ANCHOR = "a"  # answers are tokenised behind it, so that every tokenizer family gives them their leading space


class Text(NamedTuple):
    """A prompt and the answer it is scored on, as token ids joined at a boundary that never merges."""

    ids: tuple[int, ...]
    prompt: int
    """how many of ``ids`` belong to the prompt; the answer is the rest"""

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.prompt :]

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads to predict the answer: all but its last token."""
        return self.ids[:-1]


@dataclass(frozen=True)
class Batch:
    """Texts ready for the blocks from ``start`` on, padded on the right (a causal model never looks there).

    ``row`` and ``position`` say where each answer token is predicted: one entry for each answer token, texts in order.
    ``share`` is that token's part of its answer, so that summing over tokens gives a sum of means.
    """

    start: int
    hidden: Float[Tensor, "rows tokens d"]
    row: Int[Tensor, " scored"]
    position: Int[Tensor, " scored"]
    labels: Int[Tensor, " scored"]
    share: Float[Tensor, " scored"]
    scored: Sequence[tuple[int, int]]
    """each row's first scored position, and the one behind its last"""


@dataclass(frozen=True)
class Layout:
    """Names of a model's parts: the list of its blocks, the norm behind the last one, the head."""

    blocks: str
    norm: str
    head: str


class LM:
    """A causal language model, its tokenizer and its layout; never changed by anything in editkit.

    Args:
        model: a transformers causal LM; it is put in eval mode and its weights are frozen.
        tokenizer: its tokenizer.
        layout: where its blocks, norm and head are.
        name: what tables and logs call it.
        rows: how many texts run through the trunk at once.
        cache: where hidden states and base outputs are kept.
    """

    def __init__(
        self, model: Any, tokenizer: Any, layout: Layout, name: str, rows: int = 64, cache: Cache | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.layout = layout
        self.name = name
        self.rows = rows
        self.blocks, self.norm, self.head = (find(model, part) for part in (layout.blocks, layout.norm, layout.head))
        self.cache = cache or Cache()
        self._tables: dict[str, Table] = {}
        self._calls: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._tokens: dict[str, tuple[int, ...]] = {}

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    # -- sites ---------------------------------------------------------------------------------------------------

    def sites(self, names: Sequence[str]) -> dict[str, nn.Module]:
        """The modules of ``names`` by full name; raises UsageError unless each is a linear map or an MLP in a block.

        A name is a full one, or ``block.module``: ``-1.mlp.down_proj`` is in the last block, ``0.mlp.down_proj`` in
        the first. Of a model on several devices it must be in a block on the last one.
        """
        found = {name: site(self.model, name) for name in full_names(self.model, self.layout, names)}
        for name, module in found.items():
            device = next(module.parameters()).device
            if device != self.device:
                raise UsageError(
                    f"Site {name!r} is on {device}, but what is edited must be where the head is, on {self.device}: "
                    "name fewer devices in model.device, or a later block."
                )
        return found

    def block_of(self, sites: Iterable[str]) -> int:
        """The index of the first block that holds one of ``sites`` (full names)."""
        return min(int(name.removeprefix(f"{self.layout.blocks}.").split(".")[0]) for name in sites)

    # -- texts ---------------------------------------------------------------------------------------------------

    def text(self, prompt: str, answer: str) -> Text:
        """``prompt`` (with the tokenizer's own special tokens) joined with ``" " + answer``."""
        before, after = self._ids(prompt), self._ids(f"{ANCHOR} {answer}")[len(self._ids(ANCHOR)) :]
        return Text(before + after, len(before))

    def _ids(self, string: str) -> tuple[int, ...]:
        if string not in self._tokens:
            self._tokens[string] = tuple(self.tokenizer(string)["input_ids"])
        return self._tokens[string]

    def string(self, tokens: Sequence[int]) -> str:
        """``tokens`` as text, special ones left out, stripped."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    @torch.no_grad()
    def write(self, prompts: Sequence[str], tokens: int, stop: bool) -> list[str]:
        """What the model writes behind each prompt, greedily: at most ``tokens`` tokens.

        With ``stop`` it ends at its end token or a newline, without it goes on to the last token. Runs the whole model
        with its key-value cache, padded on the left; inside ``applied``, as edited.
        """
        from transformers import GenerationConfig

        ids = [self._ids(prompt) for prompt in prompts]
        longest = max(map(len, ids))
        padding = [longest - len(row) for row in ids]
        end = self.tokenizer.eos_token_id
        config = GenerationConfig(
            max_new_tokens=tokens,
            min_new_tokens=None if stop else tokens,
            do_sample=False,
            eos_token_id=[end, *self._newlines] if stop else end,
            pad_token_id=end,
        )
        padded = torch.tensor([[end] * pad + list(row) for pad, row in zip(padding, ids, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        written = self.model.generate(
            padded.to(self.device), attention_mask=mask.to(self.device), generation_config=config
        )
        return self.tokenizer.batch_decode(written[:, longest:], skip_special_tokens=True)

    @cached_property
    def _newlines(self) -> list[int]:
        """Tokens that hold a newline."""
        strings = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        return [token for token, string in enumerate(strings) if "\n" in string]

    # -- running -------------------------------------------------------------------------------------------------

    def batch(self, texts: Sequence[Text], start: int, shift: int = 0) -> Batch:
        """``texts`` with their hidden states under block ``start``, from the trunk's store.

        ``shift`` moves the scored positions (and their labels) that many tokens to the right, within the text.
        """
        scored = [(text.prompt - 1 + shift, len(text.ids) - 1 + shift) for text in texts]
        places = [(row, position) for row, span in enumerate(scored) for position in range(*span)]
        row, position = sent(places, self.device).T
        labels = sent([token for text in texts for token in text.answer], self.device)
        share = sent([1 / len(text.answer) for text in texts for _ in text.answer], self.device)
        return Batch(start, self._hidden(texts, start, shift > 0), row, position, labels, share, scored)

    def _hidden(self, texts: Sequence[Text], start: int, whole: bool) -> Float[Tensor, "rows tokens d"]:
        read = [text.ids if whole else text.read for text in texts]
        trunk = self._filled(read, start)
        longest = max(map(len, read))
        offset = torch.tensor([trunk.where[ids] for ids in read])
        last = torch.tensor([len(ids) - 1 for ids in read])
        index = offset[:, None] + torch.minimum(torch.arange(longest), last[:, None])
        index = index.flatten().to(trunk.states.device, non_blocking=True)
        return trunk.states.index_select(0, index).unflatten(0, (len(read), longest))

    def states(self, batch: Batch) -> Float[Tensor, "scored d"]:
        """What the head reads at the scored positions."""
        hidden = batch.hidden
        args, kwargs = self._call(batch)
        for block in self.blocks[batch.start :]:
            out = block(hidden, *args, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
        scored = batch.row * hidden.shape[1] + batch.position
        return self.norm(hidden.flatten(0, 1).index_select(0, scored))

    def logits(self, batch: Batch) -> Float[Tensor, "scored vocabulary"]:
        """Logits for the answers' tokens, in fp32 unless the model is wider."""
        logits = self.head(self.states(batch))
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    @torch.no_grad()
    def base(self, texts: Sequence[Text], start: int) -> Float[Tensor, "scored d"]:
        """What the head of the *unedited* model reads at the texts' answers; computed once for each text.

        Call it outside ``applied``. ``lm.head`` turns a row into logits, so that only d numbers a token are kept.
        """
        table = self._table("base")
        keys = {(text.prompt, *text.ids): text for text in texts}
        while missing := table.missing(list(keys), self.device):
            for chunk in chunks(sorted((keys[key] for key in missing), key=lambda text: len(text.ids)), self.rows):
                states = self.states(self.batch(chunk, start))
                table.reserve(sum(len(text.answer) for text in keys.values()), states)
                parts = states.split([len(text.answer) for text in chunk])
                table.add([(text.prompt, *text.ids) for text in chunk], parts)
        offsets = [table.where[(text.prompt, *text.ids)] for text in texts]
        rows = [
            offset + token for offset, text in zip(offsets, texts, strict=True) for token in range(len(text.answer))
        ]
        return table.states[sent(rows, self.device)]

    @torch.no_grad()
    def fill(self, texts: Sequence[Text], start: int) -> None:
        """Run those of ``texts`` through the trunk that have not been."""
        self._filled([text.read for text in texts], start)

    def forget(self) -> None:
        """Let go of all kept states, those on disk excepted."""
        self.flush()
        self._tables.clear()

    def flush(self) -> None:
        """Write to disk what is to be kept there."""
        for table in self._tables.values():
            table.flush()

    def _table(self, what: str) -> Table:
        if what not in self._tables:
            self._tables[what] = self.cache.table(
                f"{self.fingerprint()}-{self.model.dtype}".replace("torch.", ""), what
            )
        return self._tables[what]

    @torch.no_grad()
    def _filled(self, wanted: Sequence[tuple[int, ...]], start: int) -> Table:
        """The table of hidden states under block ``start``, with those of ``wanted`` in it."""
        table = self._table(f"block-{start}")
        tokens = sum(map(len, set(wanted)))
        # What is added may drive out what was found, unless there is room for both.
        while missing := table.missing(wanted, self.device):
            for chunk in chunks(sorted(missing, key=len), self.rows):
                padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in chunk], batch_first=True)
                hidden, _, _ = self._intercepted(padded, start)
                table.reserve(tokens, hidden)
                table.add(chunk, [row[: len(ids)] for row, ids in zip(hidden, chunk, strict=True)])
        return table

    def _call(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the model calls its blocks on texts of this length, hidden states left out.

        With padding on the right nothing in the call depends on the texts, so it is recorded on one row; and a family
        whose blocks are all of one kind calls them all alike.
        """
        key = (batch.start, batch.hidden.shape[1])
        if key not in self._calls:
            _, args, kwargs = self._intercepted(torch.zeros(1, key[1], dtype=torch.long), batch.start)
            self._calls[key] = args, kwargs
        return self._calls[key]

    @torch.no_grad()
    def _intercepted(self, ids: Tensor, start: int) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """The call that the model makes of block ``start`` when it reads ``ids``: hidden states, then the rest.

        The model stops there, below any site, so this may be called inside ``applied``.
        """

        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Called(args, kwargs)

        handle = self.blocks[start].register_forward_pre_hook(record, with_kwargs=True)
        try:
            self.model(input_ids=ids.to(self.device), use_cache=False)
        except _Called as called:
            args, kwargs = called.args, dict(called.kwargs)
        finally:
            handle.remove()
        hidden = args[0] if args else kwargs.pop("hidden_states")
        return hidden.to(self.device), args[1:], kwargs

    # -- identity ------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """A short name of this very model: its configuration, and every tensor's name, shape and up to 64 numbers."""
        shape = {key: value for key, value in self.model.config.to_dict().items() if key not in ASIDE}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            stride = max(1, tensor.numel() // 64)
            digest.update(tensor.flatten()[::stride].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class _Called(Exception):
    """Raised by a hook to end a forward pass at the call it was waiting for."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """``items`` in runs of ``size``, the last one shorter."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def find(model: nn.Module, name: str) -> Any:
    """The module called ``name``; raises UsageError if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UsageError(
            f"No module {name!r} in {type(model).__name__}: set model.layout and model.sites to names from "
            "named_modules()."
        ) from None


def site(model: nn.Module, name: str) -> nn.Module:
    """The linear map, or the module made of some (an MLP), called ``name``; raises UsageError if it is neither."""
    module = find(model, name)
    if not any(isinstance(part, nn.Linear | Conv1D) for part in (module, *module.children())):
        raise UsageError(
            f"Site {name!r} is a {type(module).__name__}, but must be a linear map or an MLP: set model.sites to one."
        )
    return module


def full_names(model: nn.Module, layout: Layout, names: Sequence[str]) -> list[str]:
    """``names`` with their blocks counted from the first and spelled out; raises UsageError for one in no block."""
    depth = len(find(model, layout.blocks))
    found = []
    for name in names:
        block, _, module = name.removeprefix(f"{layout.blocks}.").partition(".")
        if not block.lstrip("-").isdigit() or not -depth <= int(block) < depth:
            raise UsageError(
                f"Site {name!r} is in none of the {depth} blocks of {layout.blocks}: set model.sites to block.module, "
                f"such as -1.{module or 'mlp.down_proj'}."
            )
        found.append(f"{layout.blocks}.{int(block) % depth}.{module}")
    return found


def weight(module: nn.Module) -> Float[Tensor, "d_in d_out"]:
    """A site's ``W`` in ``y = x W``. GPT-2's Conv1D stores it so; ``nn.Linear`` stores the transpose.

    Raises UsageError for a site that is no linear map.
    """
    if not isinstance(module, nn.Linear | Conv1D):
        raise UsageError(
            f"The site is a {type(module).__name__}, but this editor needs a linear map: set it to one such as "
            "-1.mlp.down_proj."
        )
    return module.weight.mT if isinstance(module, nn.Linear) else module.weight


def load(
    path: str,
    layout: Mapping[str, str],
    sites: Mapping[str, str | Sequence[str]],
    name: str | None = None,
    weights: str = "pretrained",
    dtype: str = "float32",
    device: str | Sequence[str] | None = None,
    tf32: bool = False,
    rows: int = 64,
    shape: Mapping[str, Any] | None = None,
    seed: int = 0,
    cache: Cache | None = None,
) -> LM:
    """The model at ``path``: a folder, a Hub id, or ``bundled``.

    Args:
        path: where config, tokenizer and weights are.
        layout: fields of ``Layout``.
        sites: names of linear maps or MLPs by role (see ``LM.sites``), one or several; each is looked for in the
            model's shape before its weights are read.
        name: what tables call it; by default the last part of ``path``.
        weights: ``pretrained``, or ``random`` for the shape alone (drawn by ``seed``).
        dtype: torch's name for the weights' type; ``auto`` is bfloat16 on a GPU and float32 elsewhere.
        device: where it lives, e.g. ``cpu`` or ``cuda:1``; null: on a GPU if there is one. Several share its blocks in
            order, evenly; the last has the head, and what is edited.
        tf32: products of float32 matrices in TF32 where a GPU has it, in this whole process: those of editors' networks
            too. Three digits, several times as fast.
        rows: texts that run through the trunk at once.
        shape: transformers' configuration, ``model_type`` included, that random weights are built from, with the
            bundled tokenizer; null: what lies at ``path``.
        seed: of random weights.
        cache: where hidden states and base outputs are kept; null: in memory.

    Raises:
        UsageError: nothing at ``path``, no network to fetch it, or a part or site that the model does not have.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quiet()
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if weights not in ("pretrained", "random"):
        raise UsageError(f"model.weights is {weights!r}, but must be pretrained or random.")
    devices, dtype = placed(device, dtype)
    drawn = weights == "random"
    folder = source("bundled" if drawn and shape else path)
    try:
        config = AutoConfig.for_model(**shape) if drawn and shape else AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"No model can be loaded from {path!r} ({reason}): set model.path to its folder.") from error
    for key in ("activation_function", "hidden_act"):
        if getattr(config, key, None) in FUSED:
            setattr(config, key, FUSED[getattr(config, key)])
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    for part in layout.values():
        find(outline, part)
    for role in sites.values():
        names = [role] if isinstance(role, str) else role
        for full_name in full_names(outline, Layout(**layout), names):
            site(outline, full_name)
    if drawn:
        with torch.random.fork_rng(), torch.device(devices[0] if len(devices) == 1 else "cpu"):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=getattr(torch, dtype))
    model = model.to(devices[0]) if len(devices) == 1 else shared(model, Layout(**layout), devices)
    return LM(model, tokenizer, Layout(**layout), name or Path(path).name, rows, cache)


def placed(device: str | Sequence[str] | None, dtype: str) -> tuple[list[str], str]:
    """Devices and a type of weights by name; where null or ``auto`` leaves it open, what suits this machine."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    devices = [device] if isinstance(device, str) else list(device)
    if dtype == "auto":
        dtype = "bfloat16" if torch.device(devices[-1]).type == "cuda" else "float32"
    return devices, dtype


def shared(model: nn.Module, layout: Layout, devices: Sequence[str]) -> nn.Module:
    """``model`` with its blocks shared out in order, evenly, among ``devices``.

    Norm and head are on the last, and embeddings whose weight is the head's; all else is on the first. Accelerate's
    hooks move what goes into a block to where the block is.
    """
    from accelerate import dispatch_model

    blocks, head = find(model, layout.blocks), find(model, layout.head).weight
    places = {}
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not name.startswith(f"{layout.blocks}."):
            places[name] = devices[-1 if any(tensor is head for tensor in own) else 0]
    places |= {f"{layout.blocks}.{at}": devices[at * len(devices) // len(blocks)] for at in range(len(blocks))}
    places |= {layout.norm: devices[-1], layout.head: devices[-1]}
    return dispatch_model(model, places, main_device=devices[0], force_hooks=True)


def quiet() -> None:
    """Leaves transformers' bars and remarks off the terminal."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
