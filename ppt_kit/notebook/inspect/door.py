"""`ppt.inspect`: of a dataset, of a configuration or path that names one, of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ppt_kit.checkpoint import load_policy
from ppt_kit.data.dataset import MultiTrajDataset, load_dataset, open_dataset
from ppt_kit.errors import UserError
from ppt_kit.notebook.inspect.augmented import Augmented
from ppt_kit.notebook.inspect.episodes import DatasetEpisodes, Episodes
from ppt_kit.notebook.inspect.evaluated import EvaluatedEpisodes
from ppt_kit.notebook.inspect.predicted import Predictor
from ppt_kit.schema import Config
from ppt_kit.sim.results import Evaluation


def inspect(thing: Any, *, policy: Any = None, augment: Any = None, episode: int = 0) -> Any:
    """A widget that shows episodes: cameras, cloud, curves, the training window, and what a policy makes of them.

    Args:
        thing: a dataset, as `load_dataset` or `open_dataset` gives it; the path of one in any format, or a
            configuration that names one; or results of `evaluate`, whose episodes are run again from their seeds as
            they are looked at, failures first.
        policy: from `load_policy`, or a run folder: its chunks are shown beside what was demonstrated. Of results: what
            acted, where they do not come from this session's `evaluate`.
        augment: a configuration, or its `augment`, e.g. {"rotation_deg": [0, 0, 30]}; None = that of `thing`, of the
            policy's training, or the default.
        episode: which is shown first.
    Returns:
        An anywidget: end a cell with it. `.episode` and `.step` can be read and set.
    Raises:
        UserError: `thing` is none of these, the policy does not fit it, there is no such episode, or the packages of
            notebooks are not installed.
    """
    try:
        from ppt_kit.notebook.inspect.widget import Inspector
    except ImportError as error:
        raise UserError(f"inspect needs {error.name}: pip install 'ppt_kit[notebook]'.") from None
    acts = policy is None or hasattr(policy, "card")
    episodes = _episodes(thing, policy if acts else load_policy(policy), augment)
    count = len(episodes.listing()["episodes"])
    if not 0 <= episode < count:
        raise UserError(f"episode={episode}: there are {count}, counted from 0.")
    return Inspector(episodes, episode=episode)


def _episodes(thing: Any, policy: Any, augment: Any) -> Episodes:
    results = [thing] if isinstance(thing, Evaluation) else thing
    if isinstance(results, list) and all(isinstance(each, Evaluation) for each in results):
        return EvaluatedEpisodes(results, policy)
    dataset: MultiTrajDataset
    if isinstance(thing, MultiTrajDataset):
        dataset = thing
    elif isinstance(thing, (DictConfig, Config)):
        dataset, augment = load_dataset(thing), thing if augment is None else augment
    elif isinstance(thing, (str, Path, Mapping)):
        dataset = open_dataset(thing)
    else:
        raise UserError(
            f"inspect takes a dataset, a path, a configuration or results of ppt.evaluate, not {type(thing).__name__}."
        )
    if augment is None and policy is not None and policy.card.get("config"):
        augment = policy.card["config"]
    return DatasetEpisodes(dataset, Augmented(dataset, augment), Predictor(policy, dataset) if policy else None)
