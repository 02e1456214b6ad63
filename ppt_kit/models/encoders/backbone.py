"""Backbones of pictures from transformers: normalised as they were trained on, one for all cameras or one each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.errors import UserError
from ppt_kit.keys import show
from ppt_kit.models.encoders.encoder import Encoder, architecture_of
from ppt_kit.models.options import check_switch, check_whole
from ppt_kit.models.part import Sizes

# of ImageNet's pictures in [0, 1], which these backbones were trained on (mean, standard deviation)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# of a configuration: names of classes, and where it came from
UNNEEDED = ("id2label", "label2id", "architectures", "transformers_version", "_name_or_path")
INSTALL = "Type pip install 'ppt_kit[backbones]'."


class PictureEncoder(Encoder):
    """rgb (B, To, H, W, 3) uint8 or depth (B, To, H, W, 1) float32 m of each camera -> (B, To, h, w, width).

    Depth enters as nearness, 1 / (1 + m), on three channels; no reading is 0.

    Args:
        weights: a local folder, or a name on the hub as facebook/dinov2-small; None = random.
        size: height and width that pictures are resized to (pixels); None = as they are, or the next size that the
            backbone takes.
        shared: one network for all cameras; else one each, all with the same weights at first.
        random: sizes of a random backbone, as its configuration in transformers calls them.
    Raises:
        UserError: transformers is not installed, or the weights cannot be had or are of another kind.
    """

    # of a configuration of transformers, and which of its sizes a random backbone takes
    model_type = ""
    random_sizes: tuple[str, ...] = ()

    def __init__(
        self, sizes: Sizes, *, weights: str | None = None, size: int | None = None, shared: bool = True, **random: Any
    ):
        super().__init__()
        option = f"policy.encoders.{sizes.modality}"
        if sizes.modality not in ("rgb", "depth"):
            raise UserError(f"{option}.kind: this backbone reads rgb and depth.")
        if size is not None:
            check_whole(f"{option}.options.size", size)
        check_switch(f"{option}.options.shared", shared)
        if weights is not None and not isinstance(weights, str):
            raise UserError(f"{option}.options.weights={show(weights)}: takes a folder, or a name on the hub.")
        self.cameras, self.shared, self.size = list(sizes.spec.cameras(sizes.modality)), shared, size
        unknown = next((name for name in random if name not in self.random_sizes), None)
        if unknown is not None:
            takes = ", ".join(("weights", "size", "shared", *self.random_sizes))
            raise UserError(f"{option}.options.{unknown}: there is no such option; it takes {takes}.")
        before = architecture_of(sizes.modality)
        if before is not None:
            net = self.made(dict(before["config"]), pretrained=before["pretrained"])
        elif weights is not None:
            if random:
                raise UserError(f"{option}.options.{next(iter(random))}: the weights say how large they are.")
            net = self.loaded(weights, option=f"{option}.options.weights")
        else:
            try:
                net = self.made(random, pretrained=False)
            except UserError:
                raise
            # transformers and torch raise many kinds; each is about these sizes
            except Exception as error:
                told = " ".join(str(error).split())[:160]
                raise UserError(f"{option}.options={random}: no such backbone can be made ({told}).") from None
        pretrained = weights is not None
        config = {name: value for name, value in net.config.to_dict().items() if name not in UNNEEDED}
        self.architecture = {"config": config, "pretrained": pretrained}
        others = [self.made(config, pretrained=pretrained) for _ in ([] if shared else self.cameras[1:])]
        for other in others:
            other.load_state_dict(net.state_dict())
        self.nets, self.config = nn.ModuleList([net, *others]), net.config

    def forward(self, readings: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{camera: (B, To, h, w, width)}."""
        net_of = dict.fromkeys(readings, 0) if self.shared else {name: n for n, name in enumerate(self.cameras)}
        made = {}
        for name, pictures in readings.items():
            planes = normalised(pictures.flatten(0, 1))
            height, width = self.takes(*planes.shape[2:])
            if planes.shape[2:] != (height, width):
                planes = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
            net = self.nets[net_of[name]]
            maps = self.maps(net, planes.to(next(net.parameters()).dtype))
            made[name] = maps.permute(0, 2, 3, 1).unflatten(0, pictures.shape[:2])
        return made

    # ---------------------------------------------------------------- what each backbone says

    def made(self, config: dict[str, Any], *, pretrained: bool) -> Any:
        """The network of a configuration, with random weights."""
        raise NotImplementedError

    def maps(self, net: nn.Module, planes: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, width, h, w)."""
        raise NotImplementedError

    def takes(self, height: int, width: int) -> tuple[int, int]:
        """The size that pictures of this size are resized to."""
        return (height, width) if self.size is None else (self.size, self.size)

    def loaded(self, weights: str, *, option: str) -> Any:
        """The network with the weights of a folder or of the hub."""
        library = need_transformers(option)
        folder = located(weights, option=option)
        with quiet(option, weights):
            config = library.AutoConfig.from_pretrained(folder)
        if config.model_type != self.model_type:
            raise UserError(
                f"{option}={weights}: is a {config.model_type}, and policy.encoders takes a {self.model_type} here. "
                "Set the kind that it is, or other weights."
            )
        with quiet(option, weights):
            # whatever number format the file has
            net, told = library.AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if told["missing_keys"]:
            raise UserError(f"{option}={weights}: the file lacks {sorted(told['missing_keys'])[0]} of the backbone.")
        made = self.made(config.to_dict(), pretrained=True)
        made.load_state_dict(net.state_dict())
        return made


def normalised(frames: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 or (N, H, W, 1) float32 m -> (N, 3, H, W) float32 as the backbones were trained on."""
    if frames.dtype == torch.uint8:
        shares = frames.float() / 255
    else:
        read = (frames > 0) & frames.isfinite()
        shares = torch.where(read, 1 / (1 + torch.where(read, frames, 0.0).float()), 0.0).expand(-1, -1, -1, 3)
    mean, deviation = imagenet(frames.device)
    return ((shares - mean) / deviation).permute(0, 3, 1, 2)


@functools.cache
def imagenet(device: torch.device) -> tuple[torch.Tensor, ...]:
    """(3,) mean and deviation of the colours that backbones were trained on; copied to a device once."""
    return tuple(torch.tensor(numbers, device=device) for numbers in IMAGENET)


def need_transformers(option: str) -> ModuleType:
    """The library, imported when it is first needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{option}: needs the package transformers. {INSTALL}") from None
    return transformers


def located(weights: str, *, option: str) -> str:
    """What transformers is to load: a folder, or the name of something on the hub.

    Raises:
        UserError: it is neither.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return str(path)
    parts = weights.split("/")
    if path.is_absolute() or weights.startswith((".", "~")) or len(parts) > 2 or not all(parts):
        raise UserError(f"{option}={weights}: no such folder. Give one that holds config.json and the weights.")
    return weights


@contextmanager
def quiet(option: str, weights: str) -> Iterator[None]:
    """Inside weights are read; what transformers prints beside is left out.

    Raises:
        UserError: they cannot be had.
    """
    from transformers.utils import logging as told_by

    level, bars = told_by.get_verbosity(), told_by.is_progress_bar_enabled()
    try:
        told_by.set_verbosity(told_by.CRITICAL)
        told_by.disable_progress_bar()
        yield
    except (OSError, ValueError, RuntimeError) as error:
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{option}={weights}: cannot be had ({told[:160]}). Give a local folder that holds config.json and "
            "the weights, or be online for the hub."
        ) from None
    finally:
        told_by.set_verbosity(level)
        if bars:
            told_by.enable_progress_bar()
