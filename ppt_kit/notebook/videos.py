"""Filmed episodes side by side, and beside each what the policy saw of the state."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.disk.rows import spread
from ppt_kit.errors import UserError
from ppt_kit.sim.results import Evaluation, evaluations_in
from ppt_kit.sim.watch import states_in

COLORS = ("#3b7dd8", "#e07b39", "#2e9a5a", "#b05cc6", "#c9a227", "#17a2b8", "#d1495b", "#7f8c8d", "#8d6e4f", "#5c6bc0")
OUTCOMES = {False: "#d1495b", True: "#2e9a5a"}
# of the curves: size, and at most so many points each
WIDTH, HEIGHT, MOST_POINTS = 220, 110, 200
# numbers that are listed below the curves
MOST_LISTED = 12
STYLE = """<style>
.ppt-films { display: flex; flex-wrap: wrap; gap: 10px; font: 12px/1.4 var(--jp-ui-font-family, sans-serif); }
.ppt-film { display: flex; gap: 8px; margin: 0; padding: 6px 8px; border: 1px solid var(--jp-border-color2, #ddd);
  border-left: 4px solid; border-radius: 4px; max-width: 100%; box-sizing: border-box; flex-wrap: wrap; }
.ppt-film figcaption { flex: 0 1 272px; min-width: 150px; color: var(--jp-ui-font-color1, #222); }
.ppt-film svg { display: block; width: 100%; margin: 4px 0; }
.ppt-film small { color: var(--jp-ui-font-color2, #666); display: block; }
.ppt-film ul { list-style: none !important; margin: 0 !important; padding: 0 !important; columns: 2; column-gap: 8px; }
.ppt-film li { font-size: 11px; white-space: nowrap; display: flex; align-items: center; gap: 3px; }
.ppt-film li span { overflow: hidden; text-overflow: ellipsis; flex: 1 1 auto; min-width: 0; }
.ppt-film i { flex: none; width: 8px; height: 3px; }
</style>"""
# moves the cursor and the numbers with the film; what the page does not run leaves curves and film
SCRIPT = """<script>
window.pptFilm = video => {
  const figure = video.closest('figure'), told = JSON.parse(figure.dataset.states), last = told.length - 1;
  const show = () => {
    const step = Math.min(last, Math.round(video.currentTime / (video.duration || 1) * (last + 1)));
    const x = step / Math.max(1, last) * WIDTH;
    const line = figure.querySelector('line'); line.setAttribute('x1', x); line.setAttribute('x2', x);
    figure.querySelector('output').textContent = 'step ' + step;
    figure.querySelectorAll('li b').forEach((value, i) => { value.textContent = +told[step][i].toPrecision(3); });
    if (!video.paused) requestAnimationFrame(show);
  };
  show();
};
</script>""".replace("WIDTH", str(WIDTH))


def show_videos(results: Evaluation | Iterable[Evaluation], *, width: int = 256) -> Any:
    """A grid of the filmed episodes, failures first: seed, outcome, and the state that the policy saw, step by step.

    They are embedded, so the notebook needs no file beside it.

    Args:
        width: of each film (pixels).
    Raises:
        UserError: no episode was filmed, or a video is gone.
    """
    from IPython.display import HTML

    filmed = [row for result in evaluations_in(results) for row in result.rows if row["video"]]
    if not filmed:
        raise UserError("no episode was filmed: evaluate with videos=2 and out_dir=run.run_dir / 'eval'.")
    filmed.sort(key=lambda row: bool(row["success"]))
    return HTML(f'{STYLE}{SCRIPT}<div class="ppt-films">{"".join(_film(row, width=width) for row in filmed)}</div>')


def _film(row: Mapping[str, Any], *, width: int) -> str:
    """HTML of one episode."""
    path = Path(row["video"])
    if not path.is_file():
        raise UserError(f"{path}: is gone. Evaluate again: rows whose video is not there are run again.")
    data, told = base64.b64encode(path.read_bytes()).decode(), states_in(path)
    follows = ' ontimeupdate="window.pptFilm && pptFilm(this)" onplay="window.pptFilm && pptFilm(this)"'
    states = html.escape(json.dumps(told["states"])) if told else ""
    return (
        f'<figure class="ppt-film" style="border-left-color:{OUTCOMES[bool(row["success"])]}" data-states="{states}">'
        f'<video width="{width}" controls loop muted{follows if told else ""} '
        f'src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{_said(row)}{_curves(told['names'], told['states']) if told else ''}</figcaption></figure>"
    )


def _said(row: Mapping[str, Any]) -> str:
    """What came of an episode."""
    under = f", without {', '.join(row['zero_keys'])}" if row["zero_keys"] else ""
    under += f", control {row['control']}" if row.get("control") else ""
    outcome = f"success after {row['success_step']} steps" if row["success"] else f"no success in {row['steps']} steps"
    missed = next((name for name, reached in row["subtasks"].items() if not reached and name != "success"), None)
    told = f"<b>seed {row['seed']}</b>: {outcome}" + (f"; never {html.escape(missed)}" if missed else "")
    return f"{told}<small>{html.escape(row['task'] + under)}</small>"


def _curves(names: Sequence[str], states: Sequence[Sequence[float]]) -> str:
    """The state over the episode, each number between its own ends, and the numbers of one step."""
    values = np.asarray(states, np.float64)
    low, high = np.nanmin(values, 0), np.nanmax(values, 0)
    shares = (values - low) / np.where(high > low, high - low, 1)
    at = spread(MOST_POINTS, len(values))
    across = at / max(1, len(values) - 1) * WIDTH
    lines, listed = "", ""
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        points = " ".join(f"{x:.1f},{HEIGHT - 4 - (HEIGHT - 8) * y:.1f}" for x, y in zip(across, shares[at, number]))
        lines += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.3"/>'
        if number < MOST_LISTED:
            said = html.escape(name)
            listed += f'<li title="{said}"><i style="background:{color}"></i><span>{said}</span> '
            listed += f"<b>{values[0, number]:.3g}</b></li>"
    cursor = f'<line x1="0" x2="0" y1="0" y2="{HEIGHT}" stroke="var(--jp-ui-font-color1, #222)"/>'
    rest = f"<small>and {len(names) - MOST_LISTED} more</small>" if len(names) > MOST_LISTED else ""
    drawn = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{lines}{cursor}</svg>'
    return f"{drawn}<small>state, <output>step 0</output></small><ul>{listed}</ul>{rest}"
