"""What a piece of torch code costs: operations, memory traffic and live memory, also where tensors have no numbers.

``Counted`` looks at every operation that runs inside it. On a model built on torch's ``meta`` device, whose tensors
are shapes alone, the same code runs without memory or arithmetic, and is counted all the same. Whole numbers and truth
values keep their values there (they say where things are); of the rest only the shape is known, and where code asks
about such numbers they count as large and finite: nothing is zero, no loss is small enough to stop.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
LARGE = {aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar}  # what holds between an unknown number and any known one
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
ALIKE = {aten.any.dim, aten.all.dim}
COSTS = ("flops", "bytes", "operations", "seconds", "floor")
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu


@dataclass
class Rates:
    """What a device does in a second, as measured on it.

    Attributes:
        device: the device.
        clock: what seconds are taken from; ``time.process_time`` where other work is beside this on one thread.
        bytes: read and written by a copy of a tensor that fills no cache.
        overhead: seconds an operation takes however small it is.
    """

    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    bytes: float = 0.0
    overhead: float = 0.0
    _flops: dict[torch.dtype, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table, number = torch.ones(2**25, device=self.device), torch.ones(1, device=self.device)
        copied = torch.empty_like(table)
        self.bytes = 2 * table.nbytes / self.seconds(lambda: copied.copy_(table))
        self.overhead = self.seconds(lambda: [number + 1 for _ in range(200)]) / 200

    def flops(self, dtype: torch.dtype) -> float:
        """Floating-point operations of a matrix product: the best of growing sizes, up to some tenths of a second."""
        if dtype not in self._flops:
            size, best, spent = 256, 0.0, 0.0
            while spent < 0.02 and size <= 8192:
                a = torch.ones(size, size, device=self.device, dtype=dtype)
                spent = self.seconds(partial(torch.matmul, a, a))
                best, size = max(best, 2 * size**3 / spent), size * 2
            self._flops[dtype] = best
        return self._flops[dtype]

    def seconds(self, work: Callable[[], object], times: int = 3) -> float:
        """Of the quickest of ``times`` runs, after one that warms up; on a GPU, until it has finished."""
        work()
        return min(self._once(work) for _ in range(times))

    def _once(self, work: Callable[[], object]) -> float:
        began = self.now()
        work()
        return self.now() - began

    def now(self) -> float:
        """The clock, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()


class Counted(TorchDispatchMode):
    """Counts what runs inside.

    Attributes:
        flops: floating-point operations of matrix products.
        bytes: read and written by all operations, each by itself.
        operations: how many there were.
        seconds: with ``rates``, of all operations, each at the rate that bounds it: arithmetic, memory or its launch.
        floor: of the matrix products alone, without their launch.
        live: bytes held by tensors made inside and still there.
        peak: the most that ``live`` was; may be set back to it.
    """

    def __init__(self, rates: Rates | None = None) -> None:
        super().__init__()
        self.rates = rates
        self.flops = self.bytes = self.operations = 0.0
        self.seconds = self.floor = 0.0
        self.live = self.peak = 0
        self._held: set[int] = set()
        self._shapes: dict[Any, Sequence[tuple[Any, ...]]] = {}
        self._around = ExitStack()

    def __enter__(self) -> "Counted":
        with ExitStack() as stack:
            stack.enter_context(_Functions())
            # torch's optimisers of one pass go by a list of devices, on which shapes alone are not.
            stack.enter_context(patch("torch.optim.optimizer._get_fused_kernels_supported_devices", _fused))
            super().__enter__()
            self._around = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._around.close()

    @contextmanager
    def noted(self, cost: dict[str, float]) -> Iterator[None]:
        """Writes to ``cost`` what is counted inside; ``peak`` is what was held at most beside what was held before."""
        before, peak, live = {name: getattr(self, name) for name in COSTS}, self.peak, self.live
        self.peak = live
        yield
        cost.update({name: getattr(self, name) - count for name, count in before.items()}, peak=self.peak - live)
        self.peak = max(peak, self.peak)

    def again(self, cost: Mapping[str, float]) -> None:
        """Counts what was noted once more."""
        for name in COSTS:
            setattr(self, name, getattr(self, name) + cost[name])
        self.peak = max(self.peak, self.live + int(cost["peak"]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _tensors((*args, *kwargs.values()))
        out = self._answered(func, args, kwargs, read)
        made = _tensors(out if isinstance(out, list | tuple) else (out,))
        inputs = {tensor.untyped_storage()._cdata for tensor in read}
        new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in inputs]
        for tensor in new:
            self._hold(tensor.untyped_storage())
        if new or func._schema.is_mutable:
            self._count(func, args, kwargs, out, sum(map(_extent, (*read, *made))))
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.live -= size

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, moved: int) -> None:
        counter = flop_registry.get(func._overloadpacket)
        flops = counter(*args, **kwargs, out_val=out) if counter else 0
        if func._overloadpacket is ATTENTION:
            flops = sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        self.flops += flops
        self.bytes += moved
        self.operations += 1
        if self.rates:
            bound = moved / self.rates.bytes
            if flops:
                bound = max(bound, flops / self.rates.flops(args[0].dtype))
                self.floor += bound
            self.seconds += max(bound, self.rates.overhead)

    # -- tensors that are shapes alone ---------------------------------------------------------------------------

    def _answered(self, func: Any, args: Any, kwargs: Mapping[str, Any], read: Sequence[Tensor]) -> Any:
        """``func`` of tensors of which some may be shapes alone."""
        shapes = [tensor for tensor in read if tensor.is_meta]
        target = torch.device(kwargs.get("device") or "cpu") if "device" in kwargs else None
        to_shape = target is not None and target.type == "meta"
        if not shapes and not to_shape:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default or (target is not None and not to_shape):
            return func(*map(_known, args), **kwargs)
        if read and not any(map(_floats, shapes or read)):
            return _valued(func, args, kwargs)
        if func in INDEXED and any(place is not None and place.dtype == torch.bool for place in args[1]):
            return func(args[0], [_known(place) for place in args[1]], *args[2:])  # how many are true makes the shape
        try:
            out = self._outline(func, args, kwargs, read) if read else func(*args, **kwargs)
        except NotImplementedError:  # it has no rule for shapes
            out = func(*tree_map(_zeros, args), **tree_map(_zeros, kwargs))
            return tree_map(_shape_of, out)
        if func in LARGE:
            _know(out, torch.ones((), dtype=torch.bool).expand(out.shape))
        elif not read and isinstance(out, Tensor) and not _floats(out):
            return _valued(func, args, kwargs)
        return out

    def _outline(self, func: Any, args: Any, kwargs: Mapping[str, Any], read: Sequence[Tensor]) -> Any:
        """``func`` of shapes; torch's rules for these take a millisecond each, so that results are remembered."""
        try:
            key = func, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items())
            known = self._shapes.get(key)
        except TypeError:  # not hashable
            return func(*args, **kwargs)
        if known is not None:
            new = [torch.empty_strided(*sizes, dtype=dtype, device="meta") for *sizes, dtype in known]
            return new[0] if len(new) == 1 else tuple(new)
        out = func(*args, **kwargs)
        made = out if isinstance(out, tuple) else (out,)
        inputs = {tensor.untyped_storage()._cdata for tensor in read}
        if all(isinstance(x, Tensor) and x.is_meta and x.untyped_storage()._cdata not in inputs for x in made):
            self._shapes[key] = [(x.shape, x.stride(), x.dtype) for x in made]
        return out


def _fused() -> list[str]:
    return ["cpu", "cuda", "meta"]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among ``values`` and in the lists among them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [x for x in value if isinstance(x, Tensor)]
    return found


def _key(value: Any) -> Any:
    """What the shape of a result may depend on."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.is_meta
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value


def _extent(tensor: Tensor) -> int:
    """Bytes of ``tensor``, those of an expanded one counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Functions(TorchFunctionMode):
    """What has to be caught before it is split into operations that know no values, or that no device runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "meta":
            return func(*args, **{**kwargs, "device": "cpu"}).to("meta")
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].device.type == "meta":
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in one operation, as devices run it; left alone, shapes would go through the textbook's many."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _valued(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """``func`` of whole numbers and truth values: its result keeps its values beside its shape."""
    inputs = _tensors((*args, *kwargs.values()))
    shape_of = {id(_known(x)): x for x in inputs}
    here = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
    if func in ALIKE and not any(_known(args[0]).stride()):
        args = (_known(args[0]).narrow(args[1], 0, 1), *args[1:])  # all values are one: a single one will do
    out = func(*tree_map(_known, args), **tree_map(_known, here))
    return tree_map(lambda x: shape_of.get(id(x)) if id(x) in shape_of else _shape_of(x), out)


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _know(shape: Tensor, values: Tensor) -> Tensor:
    """``shape`` with its values beside it."""
    shape.known = values  # type: ignore[attr-defined]
    return shape


def _known(x: Any) -> Any:
    """A shape's values if it has some; else ones for numbers, and zeros for what counts or is true or false."""
    if not isinstance(x, Tensor) or not x.is_meta or hasattr(x, "known"):
        return getattr(x, "known", x)
    if _floats(x):
        return torch.ones(x.shape, dtype=x.dtype)
    return _known(_know(x, torch.zeros(x.shape, dtype=x.dtype)))


def _zeros(x: Any) -> Any:
    return torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, Tensor) and x.is_meta else x


def _shape_of(x: Any) -> Any:
    """A tensor's shape, with its values beside it if they count or are true or false."""
    if not isinstance(x, Tensor):
        return x
    shape = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return shape if _floats(x) else _know(shape, x)
