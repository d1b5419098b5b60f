"""The networks of configs/models in PyTorch. Modules are named by the engine's node paths ("e1/1/conv"), so that
parameters pair up by name; maps are NCHW, as PyTorch has them."""
import torch
from torch import nn
from torch.nn import functional as F


class UNet(nn.Module):
    """configs/models/unet.yaml; `norm` makes the batch norm of so many channels."""

    def __init__(self, classes=5, channels=1, norm=lambda c: nn.BatchNorm2d(c, eps=1e-3, momentum=0.01)):
        super().__init__()
        self.nodes = nn.ModuleDict()
        for name, c, k in [("e1", channels, 32), ("e2", 32, 64), ("b", 64, 128), ("d2", 192, 64), ("d1", 96, 32)]:
            for i, c_in in ((1, c), (2, k)):
                self.nodes[f"{name}/{i}/conv"] = nn.Conv2d(c_in, k, 3, padding=1)
                self.nodes[f"{name}/{i}/norm"] = norm(k)
        self.nodes["logits"] = nn.Conv2d(32, classes, 1)

    def block(self, name, x):
        for i in (1, 2):
            x = F.relu(self.nodes[f"{name}/{i}/norm"](self.nodes[f"{name}/{i}/conv"](x)))
        return x

    def forward(self, x):
        e1 = self.block("e1", x)
        e2 = self.block("e2", F.max_pool2d(e1, 2))
        b = self.block("b", F.max_pool2d(e2, 2))
        d2 = self.block("d2", torch.cat([F.interpolate(b, scale_factor=2), e2], 1))
        d1 = self.block("d1", torch.cat([F.interpolate(d2, scale_factor=2), e1], 1))
        return self.nodes["logits"](d1)


MODELS = {"unet": UNet}


def cross_entropy(logits, mask):
    return F.cross_entropy(logits, mask)


def focal(logits, mask, gamma=2.0, alpha=0.25, exclude=(0,)):
    """Softmax focal loss, mean over pixels x kept classes."""
    classes = logits.shape[1]
    p = logits.softmax(1).gather(1, mask[:, None])[:, 0].clamp(1e-7, 1 - 1e-7)
    kept = torch.ones_like(p)
    for k in exclude:
        kept = kept * (mask != k)
    return (-alpha * (1 - p) ** gamma * p.log() * kept).sum() / (mask.numel() * (classes - len(exclude)))
