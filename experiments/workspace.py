"""The comparison as a workspace on W&B: what the page of `editkit report` shows, of runs that were sent there.

    python experiments/workspace.py outputs/editkit/… entity=me                     # project=editkit name=Comparison

Reads in the runs' folders which tasks, measures and curves there are; W&B draws them, one colour an editor, of the runs
of these folders' groups. Needs: pip install 'editkit[workspaces]', `wandb login`, and runs that are there: either of
`tracker.mode=online`, or sent by `wandb sync`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit.errors import UsageError
from editkit.reporting import runs
from editkit.reporting.layout import Panel, layout
from editkit.reporting.runs import Found

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def workspace(found: Sequence[Found], entity: str, project: str, name: str) -> "Workspace":
    """The workspace of ``found`` runs, not yet saved."""
    import wandb_workspaces.workspaces as ws

    groups = list(dict.fromkeys(one.run.config["run"]["group"] for one in found))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=section.title, panels=[drawn(panel) for panel in section.panels], is_open=True)
            for section in layout(found)
        ],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group").isin(groups)],
            groupby=[ws.Config("editor_name")],
            pinned_columns=[f"config:{name}" for name in ("editor_name", "task_mix", "model_name", "seed")],
        ),
    )


def drawn(panel: Panel) -> Any:
    """W&B's panel; of several runs of an editor, their mean."""
    import wandb_workspaces.reports.v2 as wr

    over_runs = {"groupby": wr.Config("editor_name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys), **over_runs)
    if panel.kind == "curves":
        return wr.LinePlot(title=panel.title, x="step", y=list(panel.keys), **over_runs)
    if panel.kind == "points":
        x, y = map(wr.SummaryMetric, panel.keys)
        return wr.ScatterPlot(title=panel.title, x=x, y=y, log_x=True)
    if panel.kind == "images":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    return wr.WeavePanelSummaryTable(table_name=panel.keys[0])


def main(words: Sequence[str]) -> None:
    folders = [Path(word) for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    asked = {"entity": "", "project": "editkit", "name": "Comparison"} | given
    if not folders or not asked["entity"] or len(asked) > 3:
        raise UsageError("name folders of runs, and entity=USER_OR_TEAM; further words are project= and name=")
    try:
        made = workspace(runs.find(folders), **asked)
    except ImportError as error:
        raise UsageError("W&B's workspaces need a package: pip install 'editkit[workspaces]'") from error
    print(made.save().url)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"workspace: {error}", file=sys.stderr)
        raise SystemExit(2) from error
