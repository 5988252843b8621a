"""Composing a run's configuration, and refusing what is wrong with it before anything heavy is imported."""

import difflib
import hashlib
import importlib.util
import itertools
import json
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from editkit.errors import UsageError

# Launchers that are no part of the default installation, and the extra that brings them.
EXTRAS = {"hydra_plugins.hydra_submitit_launcher": "slurm", "hydra_plugins.hydra_ray_launcher": "ray"}
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
OPTIONAL = ("scale", "experiment", "debug")
KINDS = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    list: ((list,), "a list"),
}


def register_resolvers(folder: str | None = None) -> None:
    """Makes ``${run_folder:study,resume}`` and ``${job_folder:}`` known.

    The first is ``folder``, or else a name that no other run has; the second names a job of a sweep by its settings.
    """

    def run_folder(study: str, resume: str | None) -> str:
        return folder or resume or f"outputs/{study}/{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"

    def job_folder(*, _root_: DictConfig) -> str:
        editor = _root_.run.editor or _root_.hydra.runtime.choices.editor
        return f"{editor}-seed{_root_.seed}-{identity(_root_, editor)}"

    OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def identity(config: DictConfig, editor: str) -> str:
    """Ten hex digits of every setting that results depend on: of no folder, title, tracker or cache.

    ``editor``: the name of the method under study.
    """
    kept: dict[str, Any] = {
        str(key): OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in config.items()
        if key not in ("cache", "hydra", "run", "tracker")
    }
    kept["run"] = {"editor": editor, "editors_from": config.run.get("editors_from")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def begun_as(folder: Path, overrides: Sequence[str], primary: str = "config") -> bool:
    """Whether what ``folder`` holds was begun with the settings that ``overrides`` ask for today; within `sources`."""
    before = cast(DictConfig, OmegaConf.load(folder / "config.yaml"))
    now = hydra.compose(primary, list(overrides), return_hydra_config=True)
    editor = now.hydra.runtime.choices.editor
    return identity(before, before.run.get("editor") or editor) == identity(now, now.run.get("editor") or editor)


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    """The object that ``node``'s ``_target_`` names, made from ``node``'s keys as plain containers and ``arguments``.

    Raises:
        UsageError: the target's own, or one for a key that it does not take.
    """
    try:
        return hydra.utils.instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UsageError):
            raise cause from error
        # Raised by the call itself, not inside it: the target has no such argument.
        if isinstance(cause, TypeError) and cause.__traceback__ and not cause.__traceback__.tb_next:
            raise UsageError(f"{node.get('_target_')} cannot be made from these settings: {cause}") from error
        raise


@contextmanager
def sources(folder: str | Path | None = None) -> Iterator[None]:
    """Within: configurations are composed from ``folder``, by default the package's own."""
    register_resolvers()
    with launchers_of_our_own():
        if folder is None:
            with hydra.initialize_config_module("editkit.conf", version_base="1.3"):
                yield
        else:
            with hydra.initialize_config_dir(str(Path(folder).absolute()), version_base="1.3"):
                yield


@contextmanager
def launchers_of_our_own() -> Iterator[None]:
    """Within: files in ``conf/hydra/launcher`` replace plugins' defaults; Hydra checks their types, but quietly."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
        yield


def checked(overrides: Sequence[str], sweep: bool = False, primary: str = "config") -> DictConfig:
    """The configuration that ``overrides`` ask for, after every one of them was found right; to be called in `sources`.

    ``primary`` is the file that the others are composed into.

    Keys must exist, choices too, and a value must have the type of the one it replaces (``null`` goes everywhere, and
    whatever replaces ``null``). Of a sweep, every combination of choices and every value is checked; the first
    combination's configuration is returned, with each swept key at its last value.

    Raises:
        UsageError: in one sentence, what is wrong and what would be right.
    """
    loader = GlobalHydra.instance().config_loader()
    groups: list[list[str]] = []
    values: list[Override] = []
    names = loader.list_groups("")
    places = [word for word in overrides if word.startswith("hydra.searchpath=")]
    for override in parsed(overrides):
        if override.is_sweep_override() and not sweep:
            raise UsageError(several(override))
        key = str(override.key_or_group)
        if key == "hydra.sweep.subdir":
            raise UsageError(f"{key} names each job's folder by its settings: leave it out, or set run.dir")
        options = loader.get_group_options(key, overrides=places)
        if options and not isinstance(override.value(), dict):
            groups.append(expanded(override))
            check_choice(override, options)
            if key == "hydra/launcher":
                check_launcher(override, places, sweep)
        elif override.is_delete() or key.split(".")[0].split("/")[0] == "hydra":
            groups.append([str(override.input_line)])
        else:
            values += parsed(expanded(override))
    configs = [with_values(composed(choice, primary), values, names) for choice in itertools.product(*groups)]
    return configs[0]


def translated(words: Sequence[str]) -> list[str]:
    """``words`` with Hydra's own names of a run's or a sweep's folder put as ``run.dir``, which they follow."""
    return [f"run.dir={word.partition('=')[2]}" if word.partition("=")[0] in FOLDERS else word for word in words]


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep; to be called in `sources`."""
    return [list(words) for words in itertools.product(*(expanded(override) for override in parsed(overrides)))]


def chosen(group: str, overrides: Sequence[str]) -> str:
    """The name of ``group``'s choice; to be called in `sources`."""
    return hydra.compose("config", list(overrides), return_hydra_config=True).hydra.runtime.choices[group]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of ``key=value`` words."""
    loader = GlobalHydra.instance().config_loader()
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except HydraException as error:
        said = re.search(r"override '(.*)'", str(error))
        word = said[1] if said else next((o for o in overrides if "=" not in o), " ".join(overrides))
        raise UsageError(f"Cannot read '{word}': a setting is written key=value, its value quoted where odd") from error


def several(override: Override) -> str:
    key, value = str(override.input_line).split("=", 1)
    return f"{key}={value} names several values: write {key}=[{value}] for a list, or add -m for a run with each"


def expanded(override: Override) -> list[str]:
    """The override once for each value it sweeps over, as words; one without a sweep, or over an interval, as it is."""
    if not override.is_discrete_sweep():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def check_choice(override: Override, options: Sequence[str]) -> None:
    """Refuses a choice that is not among ``options``, and several where only one makes sense."""
    group = override.key_or_group
    chosen = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    for choice in chosen:
        if isinstance(choice, list) and group != "baselines":
            raise UsageError(
                f"{group} is a list, but takes one choice: {', '.join(options)}; only baselines takes several"
            )
        for name in choice if isinstance(choice, list) else [choice]:
            if name is None and group in OPTIONAL:
                if override.is_delete():
                    continue
                raise UsageError(f"{group}=null is not understood: leave the group out with ~{group}")
            if str(name) not in options:
                given = f"is {shown(name)}" if name is not None else "is left out"
                raise UsageError(f"{group} {given}, but must be one of {', '.join(options)}{guess(str(name), options)}")


def check_launcher(override: Override, places: Sequence[str], sweep: bool) -> None:
    """Refuses a launcher that is not installed, or that has nothing to launch."""
    word = str(override.input_line)
    if not sweep:
        raise UsageError(f"{word} launches the jobs of a sweep: add -m")
    for choice in expanded(override):
        target = hydra.compose("config", [choice, *places], return_hydra_config=True).hydra.launcher._target_
        for plugin, extra in EXTRAS.items():
            if target.startswith(f"{plugin}.") and importlib.util.find_spec(plugin) is None:
                raise UsageError(f"{word} needs a package that is not installed: pip install 'editkit[{extra}]'")


def composed(choices: Iterable[str], primary: str) -> DictConfig:
    """The configuration of these group choices, each key at its default."""
    choices = list(choices)
    try:
        return hydra.compose(primary, choices)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(sentence(error)) from error


def with_values(config: DictConfig, overrides: Sequence[Override], groups: Sequence[str]) -> DictConfig:
    """``config`` with single keys changed, each to a value of the right type; ``groups``: names to guess from."""
    OmegaConf.set_struct(config, False)
    defaults = OmegaConf.to_container(config)
    for override in overrides:
        key = str(override.key_or_group)
        value = override.value() if not override.is_sweep_override() else None
        if not (override.is_add() or override.is_force_add()):
            check_type(key, value, lookup(config, defaults, key, groups))
        OmegaConf.update(config, key, value, merge=isinstance(value, dict))
    try:
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} has no value: set {error.full_key}=…") from error
    except InterpolationResolutionError as error:
        raise UsageError(f"{error.full_key} cannot be resolved: {sentence(error)}") from error
    OmegaConf.set_struct(config, True)
    return config


def lookup(config: DictConfig, defaults: Any, key: str, groups: Sequence[str]) -> Any:
    """The default of a dotted key, interpolations resolved; a UsageError that offers the nearest if there is none."""
    node = defaults
    for depth, part in enumerate(key.split(".")):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            parent = ".".join(key.split(".")[:depth])
            if not isinstance(node, dict) or not parent:
                raise UsageError(f"There is no setting '{key}'{guess(key, [*dotted(defaults), *groups])}")
            hint = guess(part, node, f"{parent}.") or f": {parent} has {', '.join(node) or 'none'}"
            raise UsageError(f"There is no setting '{key}'{hint}")
    if isinstance(node, str) and "${" in node:
        return OmegaConf.select(config, key, throw_on_resolution_failure=False)
    return node


def check_type(key: str, value: Any, default: Any) -> None:
    if value is None or default is None or "${" in str(value):
        return
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise UsageError(
                f"{key} is {shown(value)}, but holds settings of its own: set {key}.{next(iter(default))}=…"
            )
        for name, part in value.items():
            if name in default:
                check_type(f"{key}.{name}", part, default[name])
            else:
                raise UsageError(f"There is no setting '{key}.{name}'{guess(name, list(default), f'{key}.')}")
        return
    types, name = KINDS[type(default)]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UsageError(f"{key} is {shown(value)}, but must be {name} such as {shown(default)}")


def dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of nested mappings, as dotted names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from dotted(value, f"{prefix}{key}.")


def guess(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence that offers what ``word`` was probably meant to be; empty if nothing is near."""
    known = [name for name in known if not word.startswith(f"{name}.")]
    near = difflib.get_close_matches(word, known, 1) or [name for name in known if name.endswith(f".{word}")]
    return f": did you mean {prefix}{near[0]}?" if near else ""


def shown(value: Any) -> str:
    """A value as one would write it in YAML."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def sentence(error: Exception) -> str:
    """What Hydra has to say, without its advice on environment variables and its search path."""
    text = str(error).split("\nConfig search path")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("full_key")]
    return " ".join(line for line in lines if "hydra.cc" not in line and not line.startswith("object_type")).rstrip(".")
