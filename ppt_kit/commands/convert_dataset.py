"""From any dataset format to another: python scripts/convert_dataset.py source=PATH target=PATH to=zarr|lerobot"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.schema import ConvertConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    if not cfg.source or not cfg.target:
        raise UserError("source and target are required: type source=<a dataset> target=<where to write it>.")
    from tqdm import tqdm

    from ppt_kit.data.convert import to_lerobot, to_zarr
    from ppt_kit.data.disk.rows import bytes_under
    from ppt_kit.data.formats import open_store
    from ppt_kit.data.formats.wanted import Wanted
    from ppt_kit.tracking import bar_pace

    start = time.perf_counter()
    # a DictConfig's own `keys` is a method
    keys = list(cfg["keys"])
    wanted = Wanted(keys=keys or None, whole_episodes_only=cfg.whole_episodes_only, converting=True)
    # each row is read once: none is kept
    store = open_store(cfg.source, format=cfg.format, filter_key=cfg.filter_key, cache_gb=0, wanted=wanted)
    target = Path(cfg.target).expanduser()
    # delayed: what is refused at the door is one line without a bar
    with tqdm(
        total=int(store.episode_ends[-1]), desc=f"writing {target.name}", unit="step", delay=0.5, **bar_pace()
    ) as bar:
        common = {"overwrite": cfg.overwrite, "keys": keys, "progress": bar.update}
        if cfg.to == "zarr":
            to_zarr(store, target, **common)
        else:
            to_lerobot(store, target, fps=cfg.fps, video=cfg.video, codec=cfg.codec, **common)
    print(
        f"{target}: {len(store.episode_ends)} episodes, {store.episode_ends[-1]} steps, {bytes_under(target)} bytes, "
        f"{time.perf_counter() - start:.1f} s"
    )


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main, schema=ConvertConfig, about="Writes a dataset of any known format as a zarr replay buffer or for LeRobot."
    )


if __name__ == "__main__":
    run()
