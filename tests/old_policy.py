"""A policy of ppt_learning, written anew from what is known of it: names and shapes of its weights, and its formulas.

Source: github.com/Universal-Control/ppt_learning (models/policy.py, policy_stem.py, policy_head.py, diffusion.py,
utils/normalizer.py) and, for the trunk's blocks, github.com/GenSim2/GenSim2 (agent/models/transformer.py). Nothing of
ppt_kit is used here, so that what is converted is compared with something else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def sinusoids(length: int, width: int) -> torch.Tensor:
    """(length, width): numbers 2i and 2i + 1 of place p are sine and cosine of p / 10000^(2i / width)."""
    table = np.zeros((length, width))
    for place in range(length):
        for number in range(width):
            angle = place / 10000 ** (2 * (number // 2) / width)
            table[place, number] = np.cos(angle) if number % 2 else np.sin(angle)
    return torch.tensor(table, dtype=torch.float32)


def layers_of(inside, widths, outside, *, ln=True, tanh=False):
    modules = [nn.Linear(inside, widths[0]), nn.ReLU()]
    for before, after in zip(widths[:-1], widths[1:]):
        modules.append(nn.Linear(before, after))
        if ln:
            modules.append(nn.LayerNorm(after))
        modules.append(nn.ReLU())
    modules.append(nn.Linear(widths[-1], outside))
    return nn.Sequential(*modules, *([nn.Tanh()] if tanh else []))


class Net(nn.Module):
    """A stem or head that is one sequence."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class DP3(nn.Module):
    def __init__(self, channels, width, *, layernorm=True, final="none"):
        super().__init__()
        norm = (lambda n: nn.LayerNorm(n)) if layernorm else (lambda n: nn.Identity())
        self.mlp = nn.Sequential(
            nn.Linear(channels, 64), norm(64), nn.ReLU(), nn.Linear(64, 128), norm(128), nn.ReLU(),
            nn.Linear(128, 256), norm(256), nn.ReLU(),
        )  # fmt: skip
        last = nn.Linear(256, width)
        self.final_projection = nn.Sequential(last, nn.LayerNorm(width)) if final == "layernorm" else last

    def forward(self, points):
        return self.final_projection(self.mlp(points).max(dim=1).values)


class BasicBlock(nn.Module):
    """torchvision's, by its names."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class ResNet(nn.Module):
    """Pictures (B * T, cameras, H, W, c), 224 x 224 -> (B * T, cameras, width); BatchNorm by its statistics."""

    def __init__(self, width, *, planes, hidden=8, blocks=(2, 1, 1, 1)):
        super().__init__()
        self.planes = planes
        self.register_buffer("_mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("_std", torch.tensor([0.229, 0.224, 0.225]))
        stages, before = [], hidden
        for stage, count in enumerate(blocks):
            after = hidden * 2**stage
            rows = [BasicBlock(before if n == 0 else after, after, 2 if stage and n == 0 else 1) for n in range(count)]
            stages.append(nn.Sequential(*rows))
            before = after
        self.net = nn.Sequential(
            nn.Conv2d(planes, hidden, 7, 2, 3, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1), *stages,
        )  # fmt: skip
        self.avgpool, self.proj = nn.AvgPool2d(7, stride=1), nn.Linear(before, width)
        for norm in [each for each in self.modules() if isinstance(each, nn.BatchNorm2d)]:
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        rows, cameras = x.shape[:2]
        x = (x.float() / 255 - self._mean) / self._std if self.planes == 3 else x
        maps = self.avgpool(self.net(x.flatten(0, 1).permute(0, 3, 1, 2)))
        return self.proj(maps.flatten(1)).reshape(rows, cameras, -1)


class CrossAttention(nn.Module):
    def __init__(self, width, heads, dim_head):
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width)

    def forward(self, queries, keys):
        rows, count, _ = queries.shape
        inner = self.heads * self.dim_head
        q = self.to_q(queries).reshape(rows, count, self.heads, self.dim_head)
        both = self.to_kv(keys)
        k, v = (part.reshape(rows, -1, self.heads, self.dim_head) for part in (both[..., :inner], both[..., inner:]))
        weights = (torch.einsum("bihd,bjhd->bhij", q, k) * self.dim_head**-0.5).softmax(-1)
        return self.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(rows, count, inner))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, bias=True, add_bias_kv=True)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm_2(x))))


class Trunk(nn.Module):
    def __init__(self, width, depth, heads):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))

    def forward(self, tokens):
        return self.blocks(tokens.transpose(0, 1)).transpose(0, 1)


class Normalizer(nn.Module):
    """x * scale + offset; its numbers are parameters."""

    def __init__(self, fields):
        super().__init__()
        self.params_dict = nn.ParameterDict()
        for name, values in fields.items():
            low, high = values.min(0).values, values.max(0).values
            scale = 2 / (high - low)
            stats = {"min": low, "max": high, "mean": values.mean(0), "std": values.std(0)}
            frozen = lambda x: nn.Parameter(x, requires_grad=False)
            self.params_dict[name] = nn.ParameterDict(
                {
                    "scale": frozen(scale),
                    "offset": frozen(-1 - scale * low),
                    "input_stats": nn.ParameterDict({key: frozen(value) for key, value in stats.items()}),
                }
            )

    def normalize(self, name, x):
        return x * self.params_dict[name]["scale"] + self.params_dict[name]["offset"]

    def unnormalize(self, name, x):
        return (x - self.params_dict[name]["offset"]) / self.params_dict[name]["scale"]


class ConvBlock(nn.Module):
    def __init__(self, before, after, kernel=5):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(before, after, kernel, padding=kernel // 2), nn.GroupNorm(8, after), nn.Mish()
        )

    def forward(self, x):
        return self.block(x)


class Residual(nn.Module):
    def __init__(self, before, after, condition, *, scales=True):
        super().__init__()
        self.after, self.scales = after, scales
        self.conv1, self.conv2 = ConvBlock(before, after), ConvBlock(after, after)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, after * (2 if scales else 1)))
        self.residual_conv = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x, condition):
        film = self.cond_encoder(condition)[:, :, None]
        out = self.conv1(x)
        out = film[:, : self.after] * out + film[:, self.after :] if self.scales else out + film
        return self.conv2(out) + self.residual_conv(x)


class UNet(nn.Module):
    def __init__(self, dim, seen, widths, *, step_dim=128, scales=True):
        super().__init__()
        self.step_dim = step_dim
        self.diffusion_step_encoder = nn.Sequential(
            nn.Identity(), nn.Linear(step_dim, 4 * step_dim), nn.Mish(), nn.Linear(4 * step_dim, step_dim)
        )
        block = lambda a, b: Residual(a, b, step_dim + seen, scales=scales)
        pairs = list(zip([dim, *widths[:-1]], widths))
        self.down_modules = nn.ModuleList(
            nn.ModuleList([block(a, b), block(b, b), nn.Identity() if b is widths[-1] else nn.Conv1d(b, b, 3, 2, 1)])
            for a, b in pairs
        )
        self.mid_modules = nn.ModuleList([block(widths[-1], widths[-1]), block(widths[-1], widths[-1])])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * b, a), block(a, a), nn.ConvTranspose1d(a, a, 4, 2, 1)])
            for a, b in reversed(pairs[1:])
        )
        self.final_conv = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], dim, 1))

    def forward(self, chunk, step, seen):
        half = self.step_dim // 2
        angles = step[:, None] * torch.exp(torch.arange(half) * -(np.log(10000) / (half - 1))).float()
        condition = torch.cat([self.diffusion_step_encoder(torch.cat([angles.sin(), angles.cos()], -1)), seen], -1)
        x, before = chunk.transpose(1, 2), []
        for first, second, smaller in self.down_modules:
            x = second(first(x, condition), condition)
            before.append(x)
            x = smaller(x)
        for block in self.mid_modules:
            x = block(x, condition)
        for first, second, larger in self.up_modules:
            x = larger(second(first(torch.cat([x, before.pop()], 1), condition), condition))
        return self.final_conv(x).transpose(1, 2)


class Diffusion(nn.Module):
    """Sampled by diffusers' own scheduler; all noise is given, since it is drawn in another way here."""

    def __init__(self, dim, seen, horizon, widths, *, steps, scheduler="DDIM", prediction="epsilon", scales=True):
        super().__init__()
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.dim, self.horizon, self.steps = dim, horizon, steps
        self.unet = UNet(dim, seen, widths, scales=scales)
        kind = {"DDIM": DDIMScheduler, "DDPM": DDPMScheduler}[scheduler]
        self.scheduler = kind(
            num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", beta_start=1e-4, beta_end=0.02,
            prediction_type=prediction, clip_sample=True, clip_sample_range=1.0,
        )  # fmt: skip

    def forward(self, seen, *, start, drawn=None, eta=0.0):
        """`start` (B, Ta, Da) the first noise; `drawn`: step -> the noise that is drawn in it."""
        chunk = start
        self.scheduler.set_timesteps(self.steps)
        for step in self.scheduler.timesteps:
            out = self.unet(chunk, torch.full((len(chunk),), int(step)), seen)
            more = {"eta": eta, "variance_noise": drawn[int(step)]} if eta else {}
            chunk = self.scheduler.step(out, step, chunk, **more).prev_sample
        return chunk


class OldPolicy(nn.Module):
    """Args:
    stems: domain -> {modality: module}, each (B * T, …) -> (B * T, tokens, width) or (B * T, width).
    heads: domain -> module.
    fields: domain -> what its normaliser is fitted to.
    latents: modality -> tokens of a frame; None = no cross-attention.
    """

    def __init__(
        self, *, width, depth, heads_of_trunk, stems, heads, fields, latents, frames, cross=(2, 8), pooling="mean",
        no_trunk=False,
    ):  # fmt: skip
        super().__init__()
        self.trunk = Trunk(width, depth, heads_of_trunk)
        self.stems, self.heads = nn.ModuleDict(), nn.ModuleDict(heads)
        self.normalizer = nn.ModuleDict({name: Normalizer(each) for name, each in fields.items()})
        self.modalities = list(next(iter(stems.values())))
        self.frames, self.pooling, self.no_trunk, self.crosses = frames, pooling, no_trunk, latents is not None
        self.modalities_tokens = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(1, 1, width)) for name in self.modalities}
        )
        if latents is not None:
            self.crossattn_modalities_latents = nn.ParameterDict()
        for domain, each in stems.items():
            for name, stem in each.items():
                self.stems[f"{domain}_{name}"] = stem
                if latents is not None:
                    shape = (1, latents[name], width)
                    self.crossattn_modalities_latents[f"{domain}_{name}"] = nn.Parameter(torch.zeros(shape))
                    self.stems[f"{domain}_attend_{name}"] = CrossAttention(width, *cross)
        # zeros would hide what is not taken over
        with torch.no_grad():
            for parameter in [p for p in self.parameters() if p.requires_grad]:
                parameter.add_(0.1 * torch.randn_like(parameter))

    def tokens(self, domain, data):
        """(B, tokens, width) of frames: data {modality: (B, T, …)}."""
        found = []
        for name in self.modalities:
            seen = data[name]
            if name == "state" and self.crosses and "state" in self.normalizer[domain].params_dict:
                seen = self.normalizer[domain].normalize("state", seen)
            flat = seen.flatten(0, 1)
            local = self.stems[f"{domain}_{name}"](flat)
            local = local[:, None] if local.ndim == 2 else local
            if self.crosses:
                queries = self.crossattn_modalities_latents[f"{domain}_{name}"].expand(len(local), -1, -1)
                local = self.stems[f"{domain}_attend_{name}"](queries, local)
            local = local.reshape(-1, self.frames, *local.shape[1:]) + self.modalities_tokens[name]
            local = local + sinusoids(self.frames, local.shape[-1])[None, :, None]
            found.append(local.flatten(1, 2))
        tokens = torch.cat(found, 1)
        return tokens + sinusoids(tokens.shape[1], tokens.shape[2])

    def pooled(self, domain, data):
        tokens = self.tokens(domain, data)
        mixed = tokens if self.no_trunk else self.trunk(tokens)
        return mixed.mean(1) if self.pooling == "mean" else mixed.flatten(1)

    def forward(self, domain, data, **noise):
        """(B, Ta, Da) in the data's units."""
        made = self.heads[domain](self.pooled(domain, data), **noise)
        width = len(self.normalizer[domain].params_dict["action"]["scale"])
        return self.normalizer[domain].unnormalize("action", made.reshape(len(made), -1, width))


def centred(points: torch.Tensor, *, up: int = 1) -> torch.Tensor:
    """(B, T, P, 3) m -> (B, T, P, 4), as openpoints' centring and its height give them, window by window."""
    windows = []
    for cloud in points:
        flat = cloud.reshape(-1, 3)
        height = flat[:, up : up + 1] - flat[:, up].min()
        flat = flat - flat.mean(0, keepdim=True)
        flat = flat / flat.square().sum(-1).sqrt().max()
        windows.append(torch.cat([flat, height], -1).reshape(*cloud.shape[:-1], 4))
    return torch.stack(windows)


# ---------------------------------------------------------------- openpoints


def conv(before, after, kind, *, norm=True, act=True):
    """A layer of openpoints: 1 x 1 convolution, BatchNorm, ReLU."""
    convolution, batch_norm = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d)}[kind]
    modules = [convolution(before, after, 1, bias=not norm)]
    return nn.Sequential(*modules, *([batch_norm(after)] if norm else []), *([nn.ReLU()] if act else []))


def ball(centres, points, radius, count):
    """(M, count): for each centre the first `count` points nearer than the radius, the first of all where they end."""
    index = np.zeros((len(centres), count), dtype=np.int64)
    for row, centre in enumerate(centres):
        near = [at for at, point in enumerate(points) if float(((centre - point) ** 2).sum()) < radius * radius]
        index[row] = (near + near[:1] * count)[:count]
    return index


def farthest(points, count):
    """(count,): the first point, then each as far as can be from those before it."""
    chosen = [0]
    while len(chosen) < count:
        gaps = np.min([((points - points[at]) ** 2).sum(-1) for at in chosen], axis=0)
        chosen.append(int(gaps.argmax()))
    return np.array(chosen)


class Abstraction(nn.Module):
    """One gathering block; `draw(points, count)` chooses its centres."""

    def __init__(self, before, after, *, stride, layers, residual, radius, count, in_radii, first):
        super().__init__()
        self.is_head, self.gathers_all = first and stride == 1, not first and stride == 1
        self.residual = residual and stride > 1
        self.stride, self.radius, self.count, self.in_radii = stride, radius, count, in_radii
        middle = after // 2 if stride > 1 else after
        widths = [before + (0 if self.is_head else 3), *[middle] * (0 if self.is_head else layers - 1), after]
        if self.residual:
            self.skipconv = conv(before, after, 1, norm=False, act=False) if before != after else nn.Identity()
        self.convs = nn.Sequential(
            *(
                conv(
                    a, b, 1 if self.is_head else 2, norm=not self.is_head,
                    act=not (place == len(widths) - 2 and (self.residual or self.is_head)),
                )
                for place, (a, b) in enumerate(zip(widths, widths[1:]))
            )
        )  # fmt: skip

    def forward(self, p, f, draw):
        if self.is_head:
            return p, self.convs(f)
        if self.gathers_all:
            grouped = torch.cat([p.transpose(1, 2), f], 1)[:, :, None]
            return p, self.convs(grouped).max(-1).values
        chosen = torch.stack(
            [torch.as_tensor(draw(row, len(row) // self.stride, place)) for place, row in enumerate(p)]
        )
        centres = torch.stack([row[at] for row, at in zip(p, chosen)])
        identity = torch.stack([row[:, at] for row, at in zip(f, chosen)])
        grouped = around(centres, p, f, self.radius, self.count, in_radii=self.in_radii)
        f = self.convs(grouped).max(-1).values
        return centres, (f + self.skipconv(identity)).relu() if self.residual else f


class InvRes(nn.Module):
    def __init__(self, width, *, radius, count, expansion, in_radii):
        super().__init__()
        self.radius, self.count, self.in_radii = radius, count, in_radii
        self.convs = nn.ModuleDict({"convs": nn.Sequential(conv(width + 3, width, 2))})
        self.pwconv = nn.Sequential(conv(width, expansion * width, 1), conv(expansion * width, width, 1, act=False))

    def forward(self, p, f, draw):
        grouped = around(p, p, f, self.radius, self.count, in_radii=self.in_radii)
        return p, (self.pwconv(self.convs["convs"](grouped).max(-1).values) + f).relu()


def around(centres, p, f, radius, count, *, in_radii):
    """(B, 3 + C, M, count)."""
    rows = []
    for of_centre, of_point, feature in zip(centres, p, f):
        index = torch.as_tensor(ball(of_centre.numpy(), of_point.numpy(), np.float32(radius), count))
        relative = of_point[index] - of_centre[:, None]
        relative = relative / radius if in_radii else relative
        rows.append(torch.cat([relative.permute(2, 0, 1), feature[:, index]]))
    return torch.stack(rows)


class PointNeXt(nn.Module):
    """Clouds (B, P, 3 or 4), xyz first -> (B, width).

    Args:
        said: `encoder_args` of the network's file.
        draw: (points (P, 3), count, cloud, stage) -> (count,) which are the centres of a stage.
    Source: github.com/guochengqian/openpoints (models/backbone/pointnext.py, models/layers/group.py).
    """

    def __init__(self, said, draw, *, width=None):
        super().__init__()
        stages, inside, after, radius = [], said["in_channels"], said["width"], said["radius"]
        in_radii = said["group_args"]["normalize_dp"]
        for place, (stride, count) in enumerate(zip(said["strides"], said["blocks"])):
            after = after * 2 if stride > 1 else after
            blocks = [
                Abstraction(
                    inside, after, stride=stride, layers=said["sa_layers"], residual=said["sa_use_res"], radius=radius,
                    count=said["nsample"], in_radii=in_radii, first=place == 0,
                )
            ]  # fmt: skip
            wider = radius * said["radius_scaling"] if stride > 1 else radius
            blocks += [
                InvRes(after, radius=wider, count=said["nsample"], expansion=said["expansion"], in_radii=in_radii)
                for _ in range(1, count)
            ]
            stages.append(nn.Sequential(*blocks))
            inside, radius = after, wider
        self.pointnet = nn.ModuleDict({"encoder": nn.ModuleDict({"encoder": nn.Sequential(*stages)})})
        # what classified once, and is read by nothing
        self.pointnet["prediction"] = nn.Linear(after, 15)
        self.mlp = None if width is None else nn.Linear(after, width)
        self.draw = draw
        for norm in [each for each in self.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]:
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, points):
        p, f = points[..., :3], points.transpose(1, 2)
        for stage, blocks in enumerate(self.pointnet["encoder"]["encoder"]):
            for block in blocks:
                p, f = block(p, f, lambda row, count, cloud, stage=stage: self.draw(row, count, cloud, stage))
        f = f.squeeze(-1)
        return f if self.mlp is None else self.mlp(f.relu())
