"""The command line: `editkit run`, `instructions`, `data`, `report`. Heavy parts are imported where they are used."""

import argparse
import errno
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from editkit import __version__, hub
from editkit.errors import UsageError
from editkit.signals import Terminated, handling, on_sigterm

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

RUN_EXAMPLES = """\
examples:
  editkit run                                              InstructEdit on the bundled world
  editkit run "baselines=[mend,ft_l]" trainer.steps=200    with two methods beside it
  editkit run scale=small tasks.root=DATA model.path=DIR   real data, a model of yours
  editkit run -m editor=mend,instructedit seed=0,1,2       a sweep: six runs
  editkit run -m hydra/launcher=submitit_slurm seed=0,1,2  the same on a cluster; also joblib, submitit_local and ray
  editkit run run.resume=outputs/editkit/…                 go on with an interrupted run
  editkit run plan=true                                    what it would need: memory, disk, time; runs nothing
  editkit run --cfg                                        every setting and its value
"""
SEARCH_EXAMPLES = """\
examples:
  editkit instructions search                              the bundled model and a recorded writer: no network
  editkit instructions search writer=openai writer.model=NAME writer.base_url=http://localhost:8000/v1 writer.key=null
  editkit instructions search writer=local writer.path=DIR search.per_round=2 "search.seeds=[0,1,2]"
  editkit instructions search run.resume=outputs/instructions/…
  editkit run editor.descriptions=outputs/instructions/…/descriptions.yaml
"""
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 for a bug, or where jobs of a sweep have not finished; 2 for bad input, told in one sentence; 130
    or 143 after Ctrl-C or SIGTERM.
    """
    parser = build_parser()
    options, extra = parser.parse_known_args(arguments)
    # argparse takes words only up to the first option; those after it are settings too.
    if extra and ("settings" not in options or any(word.startswith("-") for word in extra)):
        parser.error(f"unrecognised: {' '.join(extra)}")
    if "settings" in options:
        options.settings += extra
    try:
        return options.command(options) or 0
    except UsageError as error:
        print(f"editkit: {error}", file=sys.stderr)
        return 2
    except Terminated:
        return 143
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("editkit", description="Knowledge editing of language models as configuration.")
    parser.add_argument("--version", action="version", version=f"editkit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser(
        "run",
        help="train, edit, score and compare",
        description="Trains, edits and scores as the settings say; ends with a table, and a folder with everything.",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("settings", nargs="*", help="group=choice or key=value; see them all with --cfg")
    run.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of comma-separated values"
    )
    run.add_argument("--cfg", action="store_true", help="show the configuration instead of running it")
    run.add_argument(
        "--config-dir", metavar="DIR", help="a folder with groups of your own, such as DIR/editor/mine.yaml"
    )
    run.set_defaults(command=run_command)

    instructions = commands.add_parser("instructions", help="search for descriptions of tasks, or show a set of them")
    actions = instructions.add_subparsers(required=True, metavar="action")
    search = actions.add_parser(
        "search",
        help="have a writer propose descriptions, and trial editors score them",
        description="A writer proposes descriptions of the tasks, a short training scores them, and the scores go back "
        "to the writer, until the best no longer rises. Ends with a table and a file for editor.descriptions.",
        epilog=SEARCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    search.add_argument("settings", nargs="*", help="group=choice or key=value; see them all with --cfg")
    search.add_argument("--cfg", action="store_true", help="show the configuration instead of searching")
    search.set_defaults(command=search_command)
    shown = actions.add_parser("show", help="print a set of descriptions, and how it was found")
    shown.add_argument("source", nargs="?", default="editkit", help="a YAML file, or the name of a set (editkit)")
    shown.set_defaults(command=show_instructions)

    data = commands.add_parser("data", help="show the data a run would use, or rebuild the bundled world and model")
    actions = data.add_subparsers(required=True, metavar="action")
    show = actions.add_parser("show", help="count the requests of each task and split, and what was mended or left out")
    show.add_argument("settings", nargs="*", help="as for `editkit run`, e.g. tasks=convsent tasks.root=DATA")
    show.set_defaults(command=show_data)
    build = actions.add_parser("build", help="generate the world and train the small model that knows it (10 minutes)")
    build.add_argument("folder", type=Path)
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(command=build_data)

    report = commands.add_parser(
        "report",
        help="compare the runs found under folders",
        description="Prints the comparison of all runs under the folders, and writes it as a page for a browser: with "
        "filters, differences between editors, curves, and every answer of single edits.",
    )
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    report.add_argument("--all", action="store_true", help="every measure, with the _bare, _exact and _kl variants")
    report.add_argument("--format", choices=["table", "md", "csv", "latex"], default="table")
    report.add_argument("--page", type=Path, metavar="FILE", help="where the page goes (else DIR/report/index.html)")
    report.add_argument("--watch", action="store_true", help="renew the page alone, as long as a run is running")
    report.set_defaults(command=report_command)
    return parser


def run_command(options: argparse.Namespace) -> int:
    from editkit import configs

    words = configs.translated(options.settings)
    if options.config_dir:
        folder = Path(options.config_dir).absolute()
        if not folder.is_dir():
            raise UsageError(f"There is no folder '{folder}': --config-dir takes one that holds groups such as editor/")
        words.append(f"hydra.searchpath=[file://{folder}]")
    with configs.sources():
        config = configs.checked(words, options.multirun)
    if options.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return 0
    if config.run.resume:
        check_resumable(Path(config.run.resume), ["-m"] * options.multirun + options.settings)
    if config.plan:
        show_plans(words)
        return 0
    if config.run.skip_finished and not any(word.startswith("run.dir=") for word in words):
        raise UsageError("run.skip_finished=true goes on in a folder that is there: name it with run.dir=…")
    folder = Path(config.run.dir).absolute()
    check_writable(folder)
    if options.multirun:
        return sweep(words, folder, config.run.skip_finished)
    launch(words, folder)
    return 0


def show_plans(words: Sequence[str]) -> None:
    """Prints what each job would need; nothing is written."""
    from editkit import configs

    with configs.sources():
        jobs = [(configs.checked(job), configs.chosen("editor", job)) for job in configs.jobs(words)]
    from editkit.plan import plan, table

    for config, editor in jobs:
        config.run.editor = config.run.editor or editor
        terminal().print(table(plan(config)))


def check_resumable(folder: Path, words: Sequence[str], command: str = "run") -> None:
    """Raises a UsageError unless ``command`` began in ``folder`` and no other settings are given."""
    from omegaconf import OmegaConf

    others = [word for word in words if not word.startswith("run.resume=")]
    if others:
        raise UsageError(f"run.resume goes on with the settings in {folder}/config.yaml: leave out {' '.join(others)}")
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"run.resume is '{folder}', but that is no run's folder: it has no config.yaml")
    began = "instructions search" if "search" in OmegaConf.load(folder / "config.yaml") else "run"
    if began != command:
        raise UsageError(f"run.resume is '{folder}', which was begun by editkit {began}: go on with it by that")


def search_command(options: argparse.Namespace) -> None:
    """Searches for descriptions; what is wrong with the settings or the writer is said before anything heavy."""
    from omegaconf import DictConfig, OmegaConf

    from editkit import configs

    with configs.sources():
        config = configs.checked(options.settings, primary="instructions")
    if options.cfg:
        print(OmegaConf.to_yaml(config), end="")
        return
    folder = Path(config.run.dir).absolute()
    if config.run.resume:
        check_resumable(folder, options.settings, "instructions search")
        config = cast(DictConfig, OmegaConf.load(folder / "config.yaml"))
        config.run.resume = str(folder)
    config.run.dir = str(folder)
    check_writable(folder)
    if "descriptions" not in config.editor:
        raise UsageError(
            f"{config.editor._target_} reads no descriptions: set editor to one that does, such as instructedit"
        )
    writer, method = configs.instantiate(config.writer), configs.instantiate(config.search)
    with interruptible(folder, "editkit instructions search"):
        from editkit.searching import search

        search(config, writer, method, say=lambda line: print(line, flush=True))
    from editkit.instructions import Instructions
    from editkit.reporting import table

    found = Instructions(str(folder / "descriptions.yaml"))
    terminal().print(table.search(found.history, folder))


@contextmanager
def interruptible(folder: Path, command: str) -> Iterator[None]:
    """Within: SIGTERM is like Ctrl-C, after either of which ``command`` is offered, and a full disk is a UsageError."""
    try:
        # SIGUSR2 is how Slurm announces the end of a job's time to all its processes; the job's launcher answers it.
        with handling({signal.SIGTERM: on_sigterm, signal.SIGUSR2: signal.SIG_IGN}):
            yield
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise UsageError(unwritable(error)) from error
        raise
    except KeyboardInterrupt:
        begun = (folder / "config.yaml").exists()
        go_on = f"go on with: {command} run.resume={folder}" if begun else "nothing was begun"
        print(f"editkit: interrupted; {go_on}", file=sys.stderr)
        raise


def show_instructions(options: argparse.Namespace) -> None:
    from editkit.instructions import Instructions
    from editkit.reporting import table

    found = Instructions(options.source)
    console = terminal()
    console.print(table.descriptions(found.tasks))
    if "rounds" in found.history:
        console.print(table.search(found.history))


def check_writable(folder: Path) -> None:
    """Raises a UsageError unless ``folder`` can be made, or written to where it is already there."""
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(f"Cannot write to '{there}' ({error.strerror}): set run.dir to another folder") from error


def sweep(words: Sequence[str], folder: Path, skip_finished: bool) -> int:
    """Runs all jobs of a sweep, whatever becomes of any of them; 1 unless all have finished."""
    from editkit import sweeps

    if sweeps.begun(folder) and not skip_finished:
        raise UsageError(
            f"'{folder}' holds runs already: go on there with run.skip_finished=true, or set run.dir to a new folder"
        )
    same = [word for word in words if not word.startswith(("run.dir=", "run.skip_finished="))]
    go_on = f"editkit run -m {shlex.join([*same, f'run.dir={folder}', 'run.skip_finished=true'])}"
    try:
        launch(words, folder, "--multirun")
    except KeyboardInterrupt:
        print(f"editkit: go on with: {go_on}", file=sys.stderr)
        raise
    except UsageError:
        raise
    except Exception as error:
        # No job raises one: it is the launcher's.
        why = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".rstrip(": ")
        if not sweeps.begun(folder):
            raise UsageError(f"No job could be launched ({why})") from error
        print(f"editkit: the launcher gave up ({why}); jobs that it began elsewhere may go on", file=sys.stderr)
        code = 1
    else:
        code = 0

    from editkit.reporting import runs

    found = runs.find([folder])
    for one in found:
        if one.state != "finished":
            print(f"editkit: {one.state}: {one.name} {one.status.get('why', '')}".rstrip(), file=sys.stderr)
            code = 1
    print(f"editkit: {sum(one.state == 'finished' for one in found)} jobs have finished", end="; ")
    print(f"compare all with: editkit report {folder}")
    if code:
        print(f"editkit: go on with: {go_on}", file=sys.stderr)
    return code


def launch(words: Sequence[str], folder: Path, *options: str) -> None:
    """Hands over to Hydra, which makes ``folder`` and calls `job`: once, or for each job of a sweep."""
    import hydra
    from hydra.errors import HydraException

    from editkit import configs

    configs.register_resolvers(str(folder))
    # Without it Hydra would end the process itself on an error, with code 1 and a shortened traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["editkit run", *options, *words]
    try:
        with configs.launchers_of_our_own():
            hydra.main("pkg://editkit.conf", "config", version_base="1.3")(job)()
    except HydraException as error:
        raise UsageError(configs.sentence(error)) from error


def job(config: "DictConfig") -> None:
    """One run, as Hydra calls it: in this process, in a launcher's, or on another machine."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweeping = settings.mode == RunMode.MULTIRUN
    if config.run.resume:
        config = cast(DictConfig, OmegaConf.load(folder / "config.yaml"))
        config.run.resume, config.run.skip_finished = str(folder), False
    else:
        chosen: Mapping[str, str] = settings.runtime.choices
        config.run.editor = config.run.editor or chosen["editor"]
        config.run.mix = config.run.mix or chosen["tasks"]
        config.run.title = config.run.title or f"{config.run.mix} · {chosen['model']} · seed {config.seed}"
        config.run.group = config.run.group or f"{config.run.study} · {(folder.parent if sweeping else folder).name}"
    config.run.dir = str(folder)
    if sweeping:
        from editkit import sweeps

        with handling({signal.SIGTERM: on_sigterm}):
            threads = settings.launcher.get("cpus_per_task")
            told = sweeps.run_job(folder, OmegaConf.to_yaml(config, resolve=True), threads)
        print(f"editkit: {folder.name} {told}", flush=True)
    else:
        perform(config, folder)


def perform(config: "DictConfig", folder: Path) -> None:
    """One run in this process, and what is to be said at its end."""
    try:
        with interruptible(folder, "editkit run"):
            state = state_before(folder, config) if config.run.skip_finished else None
            if state:
                config.run.resume = str(folder)
            if state != "finished":
                # Asked here, a model that cannot be had is refused before seconds of imports.
                if config.model.get("path") and config.model.get("weights") != "random":
                    hub.here(config.model.path)
                from editkit.run import run

                run(config)
        show_results(folder)
    except UsageError as error:
        # Hydra would add a traceback.
        print(f"editkit: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def state_before(folder: Path, config: "DictConfig") -> str | None:
    """The state of the run that ``folder`` holds, if any; a UsageError unless it has the settings of ``config``."""
    from omegaconf import DictConfig, OmegaConf

    from editkit import configs, status

    state = status.of(folder).get("state")
    if state:
        before = cast(DictConfig, OmegaConf.load(folder / "config.yaml"))
        if configs.identity(before, before.run.editor) != configs.identity(config, config.run.editor):
            raise UsageError(f"'{folder}' holds a run of other settings: set run.dir to a new folder")
    return state


def unwritable(error: OSError) -> str:
    where = f"'{error.filename}'" if error.filename else "the run's files"
    return f"Cannot read or write {where} ({error.strerror}): allow it, free some space, or set run.dir elsewhere"


def terminal() -> "Console":
    """The terminal, at least as wide as the tables are: a narrower one folds lines, where rich would cut them."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 100)
    return console


def show_results(folder: Path) -> None:
    """Prints the comparison and says where everything lies."""
    from editkit.reporting import results, table

    console = terminal()
    console.print(table.comparison(results.read([folder])))
    console.print(table.places(folder))


def report_command(options: argparse.Namespace) -> None:
    """Prints the comparison and writes the page; text to be redirected has stdout for itself."""
    from editkit.reporting import runs, table

    target = options.page or options.folders[0] / "report" / "index.html"
    found = runs.find(options.folders)
    if options.watch:
        watch_runs(options.folders, target)
        return
    scores = runs.scores(found)
    if options.format == "table":
        console = terminal()
        if scores:
            console.print(table.comparison(scores, options.all))
        for one in found:
            if one.state != "finished" and one.status:
                console.print(f"{one.state}: {one.name}  {one.status.get('why', '')}".rstrip(), markup=False)
    else:
        print(table.text(scores, options.format, options.all), end="")

    from editkit.reporting import page

    page.write(found, target, folders=options.folders)
    print(f"Page for a browser: {target}", file=sys.stdout if options.format == "table" else sys.stderr)


def watch_runs(folders: Sequence[Path], target: Path) -> None:
    """Renews the page until no run is running, or Ctrl-C."""
    from editkit.reporting import page

    print(f"Page for a browser, renewed while runs are running (Ctrl-C ends this): {target}", flush=True)
    try:
        page.watch(folders, target, say=lambda line: print(line, flush=True))
    except Terminated:
        raise
    except KeyboardInterrupt:
        pass


def show_data(options: argparse.Namespace) -> None:
    from editkit import configs
    from editkit.reporting import table

    with configs.sources():
        config = configs.checked(options.settings)
    splits = configs.instantiate(config.tasks).load(config.seed)
    terminal().print(table.splits(splits))


def build_data(options: argparse.Namespace) -> None:
    from editkit.bundled.build import build

    check_writable(options.folder)
    for name, share in build(options.folder, options.seed).items():
        print(f"{name}: {share:.3f}")
