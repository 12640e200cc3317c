"""The torch peers of the benchmarks: one convolution, ResNets with temporal shift, plain or frame-flexible, the 3-D
networks of torchvision and pytorchvideo, recurrent networks, and the transformers of torchvision and transformers."""

import contextlib
import copy
import functools
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from timing import count_cores
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(count_cores())


def torch_convolution(
    x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray, strides: Any, pads: Sequence[int], groups: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward, and forward + backward, of one convolution in channels-last memory; arguments as for flaxvid's."""
    rank = len(pads)
    convolve = F.conv2d if rank == 2 else F.conv3d
    memory_format = torch.channels_last if rank == 2 else torch.channels_last_3d

    def channels_first(array: np.ndarray, *order: int) -> torch.Tensor:
        return torch.from_numpy(array).permute(*order).contiguous(memory_format=memory_format)

    to_first = (0, rank + 1, *range(1, rank + 1))
    tensor, cotangent_tensor = channels_first(x, *to_first), channels_first(cotangent, *to_first)
    weight = channels_first(kernel, rank + 1, rank, *range(rank))

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return convolve(tensor, weight, None, strides, pads, 1, groups)

    def both() -> Any:
        leaves = tensor.detach().requires_grad_(), weight.detach().requires_grad_()
        y = convolve(*leaves, None, strides, pads, 1, groups)
        return y, torch.autograd.grad(y, leaves, cotangent_tensor)

    return forward, both


class Shifted(nn.Module):
    """A convolution behind the temporal shift and, if frame-flexible, the count's gain."""

    def __init__(self, conv: nn.Conv2d, frames: Sequence[int], shift: bool):
        super().__init__()
        self.conv, self.shift, self.count = conv, shift, frames[-1]
        gains = {str(n): nn.Parameter(1e-3 * torch.randn(conv.in_channels, 1, 1)) for n in frames}
        self.gains = nn.ParameterDict(gains if len(frames) > 1 else {})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames of all clips on the batch axis."""
        if self.shift:
            # On (b, t, h, w, c), as channels last lies in memory: a slice of (b, t, c, h, w) would be copied twice.
            clips, fold = x.permute(0, 2, 3, 1).unflatten(0, (-1, self.count)), x.shape[1] // 8
            ahead, behind, rest = clips.split((fold, fold, x.shape[1] - 2 * fold), -1)
            ahead = F.pad(ahead[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
            behind = F.pad(behind[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
            x = torch.cat([ahead, behind, rest], -1).flatten(0, 1).permute(0, 3, 1, 2)
        if self.gains:
            x = x * (1 + self.gains[str(self.count)]).to(x.dtype)
        return self.conv(x)


class PrivateNorm(nn.Module):
    """One BatchNorm for each frame count."""

    def __init__(self, norm: nn.BatchNorm2d, frames: Sequence[int]):
        super().__init__()
        self.norms = nn.ModuleDict({str(n): copy.deepcopy(norm) for n in frames})
        self.count = frames[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of the count at hand."""
        return self.norms[str(self.count)](x)


@functools.cache
def declare_operators() -> Any:
    """Declares what torchvision does in C++, and lacks without its binaries; it lasts as long as what is returned."""
    spec = importlib.util.find_spec("torchvision")
    for binary in pathlib.Path(spec.origin or "").parent.glob("_C*.so") if spec else ():
        with contextlib.suppress(OSError):  # built for another torch
            torch.ops.load_library(binary)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def make_network(name: str, frames: Sequence[int]) -> nn.Module:
    """torchvision's ResNet with shift in front of every block (tsm_) or none (tsn_), norms private to each count."""
    declare_operators()
    from torchvision.models import resnet

    family, depth = name.split("_")
    network = getattr(resnet, depth)(num_classes=174)
    for block in [m for m in network.modules() if isinstance(m, resnet.Bottleneck | resnet.BasicBlock)]:
        setattr(block, "conv1", Shifted(block.conv1, frames, shift=family == "tsm"))  # noqa: B010
    if len(frames) > 1:
        for parent in list(network.modules()):
            for child_name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, child_name, PrivateNorm(child, frames))
    network.fc = nn.Sequential(nn.Dropout(0.5), network.fc)
    return network


class Pathways(nn.Module):
    """SlowFast with the two pathways taken from one clip."""

    def __init__(self, network: nn.Module, alpha: int = 4):
        super().__init__()
        self.network, self.alpha = network, alpha

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(b, 3, t, h, w) to logits."""
        frames = video.shape[2]
        slow = torch.linspace(0, frames - 1, frames // self.alpha, device=video.device).long()
        return self.network([video.index_select(2, slow), video])


class Excited(nn.Module):
    """A block with squeeze-and-excitation on what it gives."""

    def __init__(self, block: nn.Module, channels: int):
        super().__init__()
        squeeze, excite = nn.Conv3d(channels, channels // 16, 1), nn.Conv3d(channels // 16, channels, 1)
        self.block = block
        self.se = nn.Sequential(nn.AdaptiveAvgPool3d(1), squeeze, nn.ReLU(), excite, nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Grid to grid."""
        x = self.block(x)
        return x * self.se(x)


TORCHVISION = ("r3d_18", "r3d_18_se", "r2plus1d_r18", "r2plus1d_r34")
PYTORCHVIDEO = re.compile(r"slow_r50|res3dcnn|r2plus1d_r50|x3d_\w+|slowfast_r\d+")
MVIT = {"mvit_base": "mvit_v1_b", "mvit_v2_s": "mvit_v2_s"}
TRANSFORMERS = {
    "videomae_small": ("VideoMAE", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}),
    "videomae_base": ("VideoMAE", {}),
    "vivit_base": ("Vivit", {}),
    "timesformer_base": ("Timesformer", {}),
}
"""The first part of the name of their classes, and what their configuration has other than its defaults."""


def has_reference(name: str) -> bool:
    """Whether torch has a network of this name, in a package that is installed."""
    package = "pytorchvideo" if PYTORCHVIDEO.fullmatch(name) else "torchvision"
    if name in TRANSFORMERS:
        package = "transformers"
    known = name in {*TORCHVISION, *MVIT, "cnn_lstm", "cnn_gru"} or re.match(r"ts[mn]_resnet", name)
    return bool((known or package != "torchvision") and importlib.util.find_spec(package))


class FramesRead(nn.Module):
    """ResNet-50 on each frame, two bi-directional layers of LSTM or GRU, and a classifier of their mean."""

    def __init__(self, name: str, classes: int, hidden: int = 512):
        super().__init__()
        from torchvision.models import resnet50

        self.backbone = resnet50()
        make = nn.LSTM if name == "cnn_lstm" else nn.GRU
        self.rnn = make(self.backbone.fc.in_features, hidden, 2, batch_first=True, dropout=0.3, bidirectional=True)
        self.backbone.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * hidden, classes))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(b, 3, t, h, w) to logits."""
        x = self.backbone(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), -1))
        return self.fc(self.rnn(x)[0].mean(1))


class FramesFirst(nn.Module):
    """A network of transformers, whose videos are (b, t, 3, h, w)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(b, 3, t, h, w) to logits."""
        return self.network(video.transpose(1, 2)).logits


def make_transformer(name: str, frames: int, size: int, classes: int = 174) -> nn.Module:
    """The network of a name, (b, 3, t, h, w) to logits, its attention as transformers and torchvision choose it."""
    declare_operators()
    if name in MVIT:
        from torchvision.models import video

        return getattr(video, MVIT[name])(num_classes=classes)  # for clips of 16 x 224 x 224 alone
    import transformers

    family, options = TRANSFORMERS[name]
    config = getattr(transformers, f"{family}Config")(num_labels=classes, num_frames=frames, image_size=size, **options)
    return FramesFirst(getattr(transformers, f"{family}ForVideoClassification")(config))


def make_network_3d(name: str, classes: int = 174) -> nn.Module:
    """The network of a name, (b, 3, t, h, w) to logits at any size: its head pools all that it gets; no softmax."""
    declare_operators()
    if name.startswith("cnn_"):
        return FramesRead(name, classes)
    if name in TORCHVISION:
        from torchvision.models.video import r2plus1d_18, r3d_18, resnet

        if name == "r2plus1d_r34":
            parts = [resnet.Conv2Plus1D] * 4, [3, 4, 6, 3], resnet.R2Plus1dStem
            return resnet.VideoResNet(resnet.BasicBlock, *parts, num_classes=classes)
        network = (r2plus1d_18 if name == "r2plus1d_r18" else r3d_18)(num_classes=classes)
        if name == "r3d_18_se":
            for layer, channels in (("layer3", 256), ("layer4", 512)):
                blocks = [Excited(block, channels) for block in getattr(network, layer)]
                setattr(network, layer, nn.Sequential(*blocks))
        return network
    from torchvision.transforms import functional

    sys.modules.setdefault("torchvision.transforms.functional_tensor", functional)  # as older torchvisions called it
    from pytorchvideo.models import hub

    network = getattr(hub, "slow_r50" if name == "res3dcnn" else name)(model_num_class=classes)
    if name == "res3dcnn":
        network.blocks[0].conv = nn.Conv3d(3, 64, (7, 7, 7), (1, 2, 2), (3, 3, 3), bias=False)
    pool = nn.AdaptiveAvgPool3d(1)
    if name.startswith("slowfast"):
        network.blocks[5].pool = nn.ModuleList([pool, pool])
        return Pathways(network)
    head = network.blocks[5]
    head.activation = None
    if name.startswith("x3d"):
        head.pool.pool = pool
    else:
        head.pool = pool
    return network


class TorchTrainer:
    """The same model, batch and step as flaxvid's, eager or compiled, channels last, autocast for bfloat16.

    With several frame counts it runs as FFN's authors run it (arXiv 2303.14817): the network once for each count, one
    loss, one backward pass.
    """

    def __init__(
        self, name: str, frames: tuple[int, ...], batch: int, size: int, dtype: str, device: str, compiled: bool = False
    ):
        torch.backends.cudnn.benchmark = True  # the fastest algorithms, as XLA looks for them, too
        self.device = "cuda" if device == "gpu" else "cpu"
        self.flat = re.match(r"ts[mn]_", name) is not None
        memory_format = torch.channels_last if self.flat else torch.channels_last_3d
        if name in TRANSFORMERS:
            memory_format = torch.contiguous_format
        if name in MVIT or name in TRANSFORMERS:
            network = make_transformer(name, frames[0], size)
        else:
            network = make_network(name, frames) if self.flat else make_network_3d(name)
        kernels = torch.channels_last if name.startswith("cnn_") else memory_format  # which see frames, not videos
        self.network = network.to(self.device).to(memory_format=kernels)  # pyright: ignore[reportCallIssue]
        if compiled:
            self.network = torch.compile(self.network, dynamic=False)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.autocast = torch.autocast(self.device, torch.bfloat16, enabled=dtype == "bfloat16")
        shapes = {n: (batch * n, 3, size, size) if self.flat else (batch, 3, n, size, size) for n in frames}
        videos = {n: torch.randn(shape, device=self.device) for n, shape in shapes.items()}
        self.videos = {n: video.contiguous(memory_format=memory_format) for n, video in videos.items()}
        self.labels = torch.arange(batch, device=self.device)

    def logits(self) -> dict[int, torch.Tensor]:
        """By frame count."""
        logits = {}
        for count, video in self.videos.items():
            for module in self.network.modules():
                if isinstance(module, Shifted | PrivateNorm):
                    module.count = count
            with self.autocast:
                out = self.network(video).float()
            logits[count] = out.unflatten(0, (-1, count)).mean(1) if self.flat else out
        return logits

    def train(self, calls: int = 1) -> None:
        """So many steps, one behind the other; waits for the last."""
        for _ in range(calls):
            self.step()
        self._wait()

    def step(self) -> None:
        """One training step."""
        self.network.train()
        *students, teacher = (logits := self.logits())
        loss = F.cross_entropy(logits[teacher], self.labels)
        target = logits[teacher].detach().log_softmax(-1)
        for count in students:
            loss = loss + F.kl_div(logits[count].log_softmax(-1), target, reduction="batchmean", log_target=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 20.0)
        self.optimizer.step()

    def forward(self, calls: int = 1) -> None:
        """Logits of each count, as in evaluation."""
        self.network.eval()
        with torch.inference_mode():
            for _ in range(calls):
                self.logits()
        self._wait()

    def peak_bytes(self) -> int | None:
        """The most of the device's memory that was used; None on CPU."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
