"""The networks of configs/models in PyTorch, as one would write them there. A module's path with slashes for dots is
the path of the engine's node ("x10/node/1/conv1"), so that parameters pair up by name; maps are NCHW."""
from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


class Conv(nn.Conv2d):
    """Padding "same" as in TensorFlow: where it is odd, the odd pixel comes after."""

    def __init__(self, c, k, kernel=3, stride=1, dilation=1, bias=True):
        super().__init__(c, k, kernel, stride, "same" if stride == 1 else 0, dilation, bias=bias)

    def forward(self, x):
        if self.padding == "same":
            return super().forward(x)
        pads = []
        for size, kernel, stride, dilation in zip(x.shape[:1:-1], self.kernel_size, self.stride, self.dilation):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class ConvTranspose(nn.ConvTranspose2d):
    """The adjoint of Conv: kernel - stride rows and columns too many, of which Conv pads the smaller half before."""

    def __init__(self, c, k, kernel=2, stride=2):
        self.crop = [((kernel - stride) // 2, (kernel - stride + 1) // 2)] * 2
        super().__init__(c, k, kernel, stride)

    def forward(self, x):
        y = super().forward(x)
        (top, bottom), (left, right) = self.crop
        if not any(sum(self.crop, ())):
            return y
        return y[:, :, top:y.shape[2] - bottom, left:y.shape[3] - right].contiguous(memory_format=layout(y))


def layout(x):
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def batch_norm(c):
    return nn.BatchNorm2d(c, eps=1e-3, momentum=0.01)


def group_norm(c, groups=32):
    return nn.GroupNorm(min(groups, c), c, eps=1e-3)


def units(repeat, make):
    """Units named "1", "2", ...; make(first) makes one."""
    return nn.Sequential(OrderedDict((str(i), make(i == 1)) for i in range(1, repeat + 1)))


def conv_norm(c, k, norm=batch_norm, kernel=3, repeat=1):
    def unit(first):
        parts = OrderedDict(conv=Conv(c if first else k, k, kernel))
        if norm is not None:
            parts["norm"] = norm(k)
        parts["relu"] = nn.ReLU()
        return nn.Sequential(parts)

    return units(repeat, unit)


class ResidualUnit(nn.Module):
    def __init__(self, c, k, kernel, norm, rate=0.0, stride=1, bare=False):
        super().__init__()
        self.conv1, self.norm1 = Conv(c, k, kernel, stride), norm(k)
        self.dropout = nn.Dropout(rate) if rate else nn.Identity()
        self.conv2, self.norm2 = Conv(k, k, kernel), norm(k)
        around = c != k or stride != 1
        self.shortcut = Conv(c, k, 1, stride) if around else nn.Identity()
        self.shortcut_norm = norm(k) if around and not bare else nn.Identity()

    def forward(self, x):
        h = self.dropout(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut_norm(self.shortcut(x)))


def residual(c, k, kernel=3, norm=group_norm, repeat=1, rate=0.0, stride=1, bare=False):
    return units(repeat, lambda first: ResidualUnit(c if first else k, k, kernel, norm, rate, stride if first else 1,
                                                    bare))


class SqueezeExcite(nn.Module):
    """As Keras users have it: two dense layers with biases on the means of the channels."""

    def __init__(self, c, ratio=16):
        super().__init__()
        self.reduce, self.expand = nn.Linear(c, c // ratio), nn.Linear(c // ratio, c)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))[:, :, None, None]


def se_conv(c, k, norm=group_norm, kernel=3, repeat=1, ratio=16, rate=0.0):
    return units(repeat, lambda first: nn.Sequential(OrderedDict(
        conv=Conv(c if first else k, k, kernel), norm=norm(k), relu=nn.ReLU(), se=SqueezeExcite(k, ratio),
        dropout=nn.Dropout(rate) if rate else nn.Identity())))


class AttentionGate(nn.Module):
    def __init__(self, x, g, k):
        super().__init__()
        self.theta, self.phi, self.psi = Conv(x, k, 1, bias=False), Conv(g, k, 1, bias=False), Conv(k, 1, 1)

    def forward(self, x, g):
        return x * torch.sigmoid(self.psi(F.relu(self.theta(x) + self.phi(g))))


class Aspp(nn.Module):
    def __init__(self, c, k, rates=(6, 12, 18)):
        super().__init__()
        self.branch_1x1 = Conv(c, k, 1)
        for rate in rates:
            self.add_module(f"branch_rate_{rate}", Conv(c, k, 3, dilation=rate))
        self.branch_pool = Conv(c, k, 1)
        self.project = Conv((len(rates) + 2) * k, k, 1)
        self.rates = rates

    def forward(self, x):
        parts = [self.branch_1x1(x)] + [getattr(self, f"branch_rate_{r}")(x) for r in self.rates]
        parts.append(self.branch_pool(x.mean((2, 3), keepdim=True)).expand_as(parts[0]))
        return self.project(torch.cat(parts, 1))


class Position(nn.Module):
    def __init__(self, positions, c):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(positions, c))

    def forward(self, x):
        return x + self.embedding


class TransformerLayer(nn.Module):
    """Norms first; (N, positions, C)."""

    def __init__(self, c, heads, mlp_ratio=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(c), nn.Linear(c, mlp_ratio * c), nn.Linear(mlp_ratio * c, c)

    def forward(self, x):
        n, positions, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, positions, c)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Over the positions of a map of H x W; no copy where the map is channels_last."""

    def __init__(self, c, size, heads=4, mlp_ratio=4, repeat=1):
        super().__init__()
        self.position = Position(size[0] * size[1], c)
        for i in range(1, repeat + 1):
            self.add_module(str(i), TransformerLayer(c, heads, mlp_ratio))

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.children():
            tokens = layer(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """configs/models/unet.yaml"""

    def __init__(self, classes=5, channels=1, norm=batch_norm):
        super().__init__()
        block = partial(conv_norm, norm=norm, repeat=2)
        self.e1, self.e2, self.b = block(channels, 32), block(32, 64), block(64, 128)
        self.t = nn.Identity()
        self.d2, self.d1 = block(192, 64), block(96, 32)
        self.logits = Conv(32, classes, 1)

    def forward(self, x):
        e1 = self.e1(x)
        e2 = self.e2(F.max_pool2d(e1, 2))
        b = self.t(self.b(F.max_pool2d(e2, 2)))
        d2 = self.d2(torch.cat([F.interpolate(b, scale_factor=2), e2], 1))
        d1 = self.d1(torch.cat([F.interpolate(d2, scale_factor=2), e1], 1))
        return self.logits(d1)


class UNetTransformer(UNet):
    """configs/models/unet_transformer.yaml, for images of `size`"""

    def __init__(self, classes=5, channels=1, size=(64, 128)):
        super().__init__(classes, channels, group_norm)
        self.t = Transformer(128, (size[0] // 4, size[1] // 4), repeat=2)


class Down(nn.Module):
    """The net "down" of the UNet++: max-pool, then the block."""

    def __init__(self, block):
        super().__init__()
        self.node = block

    def forward(self, x):
        return self.node(F.max_pool2d(x, 2))


class Up(nn.Module):
    """The net "up" of the UNet++: what is below comes up, is joined to the skips, then the block."""

    def __init__(self, c, k, block):
        super().__init__()
        self.up, self.node = ConvTranspose(c, k), block


class UpAdd(Up):
    def forward(self, below, *skips):
        x = self.up(below)
        for skip in skips:
            x = x + skip
        return self.node(x)


class UpConcat(Up):
    def forward(self, below, *skips):
        return self.node(torch.cat([*skips, self.up(below)], 1))


class UNetPlusPlus(nn.Module):
    """configs/models/unet_plus_plus.yaml"""

    def __init__(self, classes=5, channels=1):
        super().__init__()
        block = partial(residual, kernel=2, repeat=2)
        self.x00, self.x10, self.x20 = block(channels, 64), Down(block(64, 128)), Down(block(128, 256))
        self.x01, self.x11 = UpAdd(128, 64, block(64, 64)), UpAdd(256, 128, block(128, 128))
        self.x02 = UpAdd(128, 64, block(64, 64))
        self.drop = nn.Dropout2d(0.2)
        self.logits = Conv(64, classes, 1)

    def forward(self, x):
        x00 = self.x00(x)
        x10 = self.x10(x00)
        x01, x11 = self.x01(x10, x00), self.x11(self.x20(x10), x10)
        return self.logits(self.drop(self.x02(x11, x00, x01)))


class UNetPlusPlusFull(nn.Module):
    """configs/models/unet_plus_plus_full.yaml: the logits of its four heads, each with a quarter of the loss."""

    heads = (0.25, 0.25, 0.25, 0.25)

    def __init__(self, classes=5, channels=1, widths=(32, 64, 128, 256, 512)):
        super().__init__()
        block = partial(conv_norm, repeat=2)
        self.depth = len(widths)
        self.x00 = block(channels, widths[0])
        for i in range(1, self.depth):
            self.add_module(f"x{i}0", Down(block(widths[i - 1], widths[i])))
        for j in range(1, self.depth):
            for i in range(self.depth - j):
                k = widths[i]
                self.add_module(f"x{i}{j}", UpConcat(widths[i + 1], k, block((j + 1) * k, k)))
            self.add_module(f"logits{j}", Conv(widths[0], classes, 1))

    def forward(self, x):
        rows = [[self.x00(x)]]
        for i in range(1, self.depth):
            rows.append([getattr(self, f"x{i}0")(rows[-1][0])])
        for j in range(1, self.depth):
            for i in range(self.depth - j):
                rows[i].append(getattr(self, f"x{i}{j}")(rows[i + 1][j - 1], *rows[i]))
        return tuple(getattr(self, f"logits{j}")(rows[0][j]) for j in range(1, self.depth))


class SeUNet(nn.Module):
    """configs/models/se_unet.yaml"""

    def __init__(self, classes=5, channels=1):
        super().__init__()
        block = partial(se_conv, rate=0.1)
        self.e1, self.e2, self.e3, self.b = block(channels, 32), block(32, 64), block(64, 128), block(128, 256)
        self.u3, self.g3 = ConvTranspose(256, 128, 3), AttentionGate(128, 128, 128)
        self.i3, self.d3 = conv_norm(128, 128, None, 1), block(128, 128)
        self.u2, self.g2, self.d2 = ConvTranspose(128, 64, 3), AttentionGate(64, 64, 64), block(64, 64)
        self.g1 = AttentionGate(32, 64, 32)
        self.i1, self.d1 = conv_norm(64, 32, None, 1), block(32, 32)
        self.logits = Conv(32, classes, 1)

    def forward(self, x):
        e1 = self.e1(x)
        e2 = self.e2(F.max_pool2d(e1, 2))
        e3 = self.e3(F.max_pool2d(e2, 2))
        u3 = self.u3(self.b(F.max_pool2d(e3, 2)))
        u2 = self.u2(self.d3(self.i3(u3) + self.g3(e3, u3)))
        u1 = F.interpolate(self.d2(u2 + self.g2(e2, u2)), scale_factor=2)
        return self.logits(self.d1(self.i1(u1) + self.g1(e1, u1)))


def bilinear(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Encode(nn.Module):
    """The net "encode" of the Double U-Net: the map before the pool, and the pooled one."""

    def __init__(self, c, k):
        super().__init__()
        self.unit, self.se = residual(c, k, rate=0.1, bare=True), SqueezeExcite(k)

    def forward(self, x):
        se = self.se(self.unit(x))
        return se, F.max_pool2d(se, 2)


class Decode(nn.Module):
    def __init__(self, c, k):
        super().__init__()
        self.unit = residual(c, k, rate=0.1, bare=True)

    def forward(self, x, skip):
        return self.unit(torch.cat([bilinear(x), skip], 1))


class Encoder(nn.Module):
    def __init__(self, channels, widths, bottleneck):
        super().__init__()
        for i, (c, k) in enumerate(zip((channels, *widths), widths), 1):
            self.add_module(f"e{i}", Encode(c, k))
        self.aspp = Aspp(widths[-1], bottleneck)

    def forward(self, x):
        maps, pooled = [], [x]
        for i in range(1, 5):
            se, pool = getattr(self, f"e{i}")(pooled[-1])
            maps.append(se)
            pooled.append(pool)
        return self.aspp(pooled[-1]), maps, pooled[1:]


class Decoder(nn.Module):
    def __init__(self, bottleneck, widths, skips, classes):
        super().__init__()
        self.d4 = Decode(bottleneck + skips[3], widths[3])
        for i in (3, 2, 1):
            self.add_module(f"d{i}", Decode(widths[i] + skips[i - 1], widths[i - 1]))
        self.logits = Conv(widths[0], classes, 1)

    def forward(self, x, skips):
        for i in (4, 3, 2, 1):
            x = getattr(self, f"d{i}")(x, skips[i - 1])
        return self.logits(x)


class DoubleUNet(nn.Module):
    """configs/models/double_unet.yaml"""

    def __init__(self, classes=5, channels=1, widths=(32, 64, 128, 256), bottleneck=512):
        super().__init__()
        self.one, self.first = Encoder(channels, widths, bottleneck), Decoder(bottleneck, widths, widths, classes)
        self.two, self.second = Encoder(classes, widths, bottleneck), Decoder(bottleneck, widths, widths, classes)

    def forward(self, x):
        y, maps, _ = self.one(x)
        masked = x * self.first(y, maps).softmax(1)
        y, maps, pooled = self.two(masked)
        return self.second(y, [maps[0]] + [bilinear(p) for p in pooled[1:]])


MODELS = {"unet": UNet, "unet_plus_plus": UNetPlusPlus, "se_unet": SeUNet, "double_unet": DoubleUNet,
          "unet_plus_plus_full": UNetPlusPlusFull, "unet_transformer": UNetTransformer}


def make(name, height, width):
    """The network of configs/models/NAME.yaml, with its own weights, for such images."""
    return MODELS[name](size=(height, width)) if MODELS[name] is UNetTransformer else MODELS[name]()


def parameter_count(model):
    """As Keras counts: running statistics are parameters too."""
    running = [b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    return sum(t.numel() for t in [*model.parameters(), *running])


def cross_entropy(logits, mask):
    return F.cross_entropy(logits, mask)


def focal(logits, mask, gamma=2.0, alpha=0.25, exclude=(0,)):
    """Softmax focal loss, mean over pixels x kept classes; in fp32 at least. Its value is Keras's, of a clipped p; its
    gradient is that of the loss without the clip."""
    classes = logits.shape[1]
    log_p = logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).gather(1, mask[:, None])[:, 0]
    kept = torch.ones_like(log_p)
    for k in exclude:
        kept = kept * (mask != k)
    loss = -alpha * (1 - log_p.exp()) ** gamma * log_p
    clipped = log_p.detach().exp().clamp(1e-7, 1 - 1e-7)
    loss = loss + (-alpha * (1 - clipped) ** gamma * clipped.log() - loss).detach()
    return (loss * kept).sum() / (mask.numel() * (classes - len(exclude)))


def heads_loss(loss, model, output, mask):
    """The loss of a network: with deep supervision the weighted sum of its heads' losses."""
    if torch.is_tensor(output):
        return loss(output, mask)
    return sum(w * loss(logits, mask) for w, logits in zip(model.heads, output))
