"""Figures of runs, results and episodes; drawn without pyplot, so that nothing global changes and no window opens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib import colormaps

from ppt_kit.data.dataset import MultiTrajDataset, open_dataset
from ppt_kit.errors import UserError
from ppt_kit.notebook.figure import Plot
from ppt_kit.notebook.success import bars_height, draw_bars
from ppt_kit.sim.results import Evaluation, checkpoint_table, success_table
from ppt_kit.spec import Spec
from ppt_kit.tracking import read_metrics

BLUE, GREY = "#3b7dd8", "#b9b9b9"
SUCCESS = "success rate, beside training"
# height of what a report shows above its curves (inches)
PICTURES = 2.8
# of metrics.jsonl, what a figure of a run's course is made of
DRAWN, COLUMNS = ("train", "val", "eval"), ["run", "kind", "step", "loss", "domain", "success"]


def plot_metrics(metrics: pd.DataFrame | str | Path | Iterable[str | Path]) -> Plot:
    """Training loss (validation loss and success beside it, where they were measured) over optimizer steps.

    Args:
        metrics: what `read_metrics` gives, a run folder, or several run folders to compare.
    """
    if isinstance(metrics, pd.DataFrame):
        rows, read = metrics, "metrics"
    elif not isinstance(metrics, Iterable) or isinstance(metrics, str) or hasattr(metrics, "run_dir"):
        rows, read = read_metrics(cast(Path, metrics)), "ppt.read_metrics(metrics)"
    else:
        rows = pd.concat([read_metrics(each).assign(run=str(each)) for each in metrics])
        read = "pd.concat([ppt.read_metrics(each).assign(run=str(each)) for each in metrics])"
    data = rows[rows["kind"].isin(DRAWN)].filter(COLUMNS)
    code = f'{read}.query("kind in {DRAWN}").filter({COLUMNS})'
    figure = Plot(figsize=(6, 3.6), layout="constrained", data=data, code=code)
    axes = figure.add_subplot()
    # a run without a row yet is a run all the same
    for run in rows["run"].unique() if read.startswith("pd.concat") else [None]:
        _draw_loss(axes, data if run is None else data[data["run"] == run], label=f"{Path(run).name} " if run else "")
    return figure


def plot_success(results: Evaluation | pd.DataFrame | Iterable[Evaluation], *, width: float = 6.4) -> Plot:
    """Success rates, one bar per checkpoint, task and control, with n and their 95 % Wilson intervals in numbers.

    Controls are hatched in grey and named as controls.

    Args:
        width: of the figure in inches, e.g. 3.3 for one column of a paper.
    """
    table = success_table(results)
    size = (width, bars_height(table, width=width))
    figure = Plot(figsize=size, layout="constrained", data=table, code="ppt.success_table(results)")
    draw_bars(figure.add_subplot(), table, width=width)
    return figure


def plot_checkpoints(results: Iterable[Evaluation] | pd.DataFrame) -> Plot:
    """Success over the epochs of checkpoints, one line a run and task, with 95 % Wilson intervals.

    Controls are grey: dashed across where no policy acts, dotted lines where the policy lacks something.
    """
    table = checkpoint_table(results)
    figure = Plot(figsize=(6, 3.8), layout="constrained", data=table, code="ppt.checkpoint_table(results)")
    axes = figure.add_subplot()
    for (run, task, control), group in table.groupby(["run", "task", "control"], sort=False):
        several, name = table["run"].nunique() > 2 or table["task"].nunique() > 1, f"{run} {task}"
        said = (name if several else str(task)) if control == "-" else f"{control} {task if several else ''}"
        _draw_over_epochs(axes, group.sort_values("epoch"), label=said.strip(), is_control=control != "-")
    axes.set_xlabel("epoch")
    axes.set_ylim(-0.02, 1.05)
    axes.set_ylabel("success rate, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_report(
    run_dir: str | Path, results: Evaluation | Iterable[Evaluation], *, frames: Sequence[np.ndarray] = (),
    cloud: np.ndarray | None = None,
) -> Plot:  # fmt: skip
    """Loss curve and success rates side by side; above them what happened and what was learned from, where it is given.

    Args:
        frames: pictures (H, W, 3) uint8 of an episode.
        cloud: (P, C) of a demonstration, m.
    """
    table = success_table(results)
    height = max(3.8, bars_height(table, width=5))
    if not len(frames) and cloud is None:
        figure = Plot(figsize=(11, height), layout="constrained")
        left, right = figure.subplots(1, 2)
    else:
        figure = Plot(figsize=(11, height + PICTURES), layout="constrained")
        rows = figure.add_gridspec(2, 1, height_ratios=[PICTURES, height])
        above, below = (figure.add_subfigure(rows[place]) for place in (0, 1))
        _draw_above(above, frames, cloud)
        left, right = below.subplots(1, 2)
    _draw_loss(left, read_metrics(run_dir), label="")
    draw_bars(right, table, width=5)
    return figure


def plot_episode(dataset: MultiTrajDataset | str | Path, index: int = 0) -> Plot:
    """State and action curves of one episode; its first and last cloud, image and depth of each camera.

    Args:
        dataset: an opened one, or the path of one in any format.
        index: of the episode, in the dataset's split.
    """
    data = dataset if isinstance(dataset, MultiTrajDataset) else open_dataset(dataset)
    if (
        isinstance(index, bool)
        or not isinstance(index, Integral)
        or not -data.num_episodes <= index < data.num_episodes
    ):
        raise UserError(f"index={index!r:.80}: there are {data.num_episodes} episodes, counted from 0.")
    numbers = data.episode(index, modalities=["state", "language"])
    ends = data.episode(index, steps=[0, -1], modalities=["pointcloud", "rgb", "depth"])["obs"]
    spec = data.specs[numbers["domain"]]
    curves = {"state": numbers["obs"].get("state"), "action": numbers["action"]}
    table, code = _curves_table(curves, spec, numbers, index=index, opened=data is dataset)
    pictures = _pictures(ends)
    figure = Plot(figsize=(6 + 2.6 * len(pictures), 5), layout="constrained", data=table, code=code)
    figure.suptitle(_title(numbers), fontsize=10)
    grid = figure.add_gridspec(2, 1 + len(pictures), width_ratios=[6, *[2.6] * len(pictures)])
    for row, (name, values) in enumerate(curves.items()):
        _draw_curves(figure.add_subplot(grid[row, 0]), values, name=name, names=spec.names(name), is_last=row == 1)
    for column, (name, frames) in enumerate(pictures.items(), start=1):
        for row, when in enumerate(("first", "last")):
            is_cloud = name.startswith("cloud")
            axes = figure.add_subplot(grid[row, column], projection="3d" if is_cloud else None)
            draw = _draw_cloud if is_cloud else _draw_image
            draw(axes, np.asarray(frames[row]), title=f"{when} {name}")
    return figure


def _draw_above(figure: Any, frames: Sequence[np.ndarray], cloud: np.ndarray | None) -> None:
    """Frames of an episode side by side, and a cloud at their right."""
    count = len(frames) + (cloud is not None)
    for place, frame in enumerate(frames, start=1):
        _draw_image(figure.add_subplot(1, count, place), frame, title="")
    if cloud is not None:
        axes = figure.add_subplot(1, count, count, projection="3d")
        _draw_cloud(axes, cloud, title=f"a demonstration's cloud: {len(cloud)} points")
        axes.tick_params(labelsize=6, pad=-2)


def _pictures(ends: dict) -> dict[str, Any]:
    """{what is seen: its first and last frame} of an episode's obs: the cloud, then each camera."""
    found = {"cloud (m)": ends["pointcloud"]} if "pointcloud" in ends else {}
    for kind in ("rgb", "depth"):
        found |= {f"{kind} {camera}": images for camera, images in ends.get(kind, {}).items()}
    return found


def _title(episode: dict) -> str:
    words = f": {episode['obs']['language'][0]}" if "language" in episode["obs"] else ""
    return f"{episode['domain']}, episode {episode['episode']}, {len(episode['action'])} steps{words}"


def _curves_table(
    curves: dict[str, np.ndarray | None], spec: Spec, episode: dict, *, index: int, opened: bool
) -> tuple[pd.DataFrame, str]:
    """State and action of an episode, a column a number under the name of its group; and the line that gives it.

    Args:
        opened: whether `dataset` is one, or the path of one.
    """
    dataset = "dataset" if opened else "ppt.open_dataset(dataset)"
    read = {
        "state": f"{dataset}.episode({index}, modalities=['state'])['obs']['state']",
        "action": f"{dataset}.episode({index}, modalities=[])['action']",
    }
    there = {name: values for name, values in curves.items() if values is not None}
    parts = [
        f"'{name}': pd.DataFrame({read[name]}, columns={dataset}.specs[{episode['domain']!r}].names('{name}'))"
        for name in there
    ]
    frames = {name: pd.DataFrame(values, columns=spec.names(name)) for name, values in there.items()}
    return pd.concat(frames, axis=1), f"pd.concat({{{', '.join(parts)}}}, axis=1)"


def _draw_curves(axes: Any, values: np.ndarray | None, *, name: str, names: list[str], is_last: bool) -> None:
    """(T, D) numbers over control steps, each with its name; an empty frame where there are none."""
    if values is not None:
        shade = colormaps["viridis"].resampled(values.shape[1])
        for place, label in enumerate(names):
            axes.plot(values[:, place], color=shade(place), label=label, linewidth=1.2)
        axes.legend(
            frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + values.shape[1] // 9
        )
    axes.set_ylabel(name)
    axes.set_xlabel("control step" if is_last else "")


def _draw_cloud(axes: Any, cloud: np.ndarray, *, title: str) -> None:
    """(P, C) points; their own colours where they have some, else by height."""
    x, y, z = cloud[:, :3].T
    colors = {"c": np.clip(cloud[:, 3:6], 0, 1)} if cloud.shape[1] >= 6 else {"c": z, "cmap": "viridis"}
    axes.scatter(x, y, z, s=2, **colors)
    axes.set_title(title, fontsize=9)
    axes.set_aspect("equal")


def _draw_image(axes: Any, image: np.ndarray, *, title: str) -> None:
    """(H, W, 3) uint8, or (H, W, 1) metres."""
    depth = image.shape[-1] == 1
    if depth:
        # 0 = no reading
        metres = np.ma.masked_less_equal(image[..., 0], 0)
        # a far background would leave the scene one colour
        wide = metres.count() and metres.max() > 10 * metres.min()
        shown = axes.imshow(metres, cmap="magma", norm="log" if wide else None)
        axes.figure.colorbar(shown, ax=axes, label="m", shrink=0.8)
    else:
        axes.imshow(image)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_loss(axes: Any, metrics: pd.DataFrame, *, label: str) -> None:
    for kind, style in (("train", "-"), ("val", "o--")):
        rows = metrics[metrics["kind"] == kind]
        if len(rows):
            axes.plot(rows["step"], rows["loss"], style, label=f"{label}{kind}", markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (normalised actions)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    _draw_success_over_steps(axes, metrics, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _draw_success_over_steps(axes: Any, metrics: pd.DataFrame, *, label: str) -> None:
    """What was evaluated beside training, on an axis of its own at the right; one for all runs of a figure."""
    rows = metrics[metrics["kind"] == "eval"]
    if not len(rows) or "success" not in rows:
        return
    right = next((each for each in axes.figure.axes if each is not axes and each.get_ylabel() == SUCCESS), None)
    if right is None:
        right = axes.twinx()
        right.set_ylabel(SUCCESS)
        right.set_ylim(0, 1.05)
    for domain, group in rows.dropna(subset=["success"]).sort_values("step").groupby("domain"):
        right.plot(group["step"], group["success"], "s:", markersize=4, color="#2e9a5a")
        right.annotate(f"{label}{domain}", (group["step"].iloc[-1], group["success"].iloc[-1]), fontsize=7, ha="right")


def _draw_over_epochs(axes: Any, group: pd.DataFrame, *, label: str, is_control: bool) -> None:
    """One line; a level across where there is no epoch."""
    if group["epoch"].isna().all():
        axes.axhline(group["rate"].iloc[0], color=GREY, linestyle="--", label=label)
        return
    colour, style = (GREY, ":") if is_control else (None, "-")
    (line,) = axes.plot(group["epoch"], group["rate"], style, color=colour, marker="o", markersize=4, label=label)
    axes.fill_between(
        group["epoch"], group["low_95"], group["high_95"], color=line.get_color(), alpha=0.15, linewidth=0
    )
