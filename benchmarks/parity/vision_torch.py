"""Gradients of ResNet-20 and a small ViT in float64 by PyTorch, against which the tests hold selgrad's.

Command: python benchmarks/parity/vision_torch.py   (PyTorch alone, CPython 3.11; ten seconds)
The ResNet is built from PyTorch's layers with option-A shortcuts, the ViT from `torch.nn.TransformerEncoderLayer`. Weights, images and labels are drawn by
NumPy from the name of the leaf, so nothing large is kept: of each leaf's gradient the file holds the norm and the inner products with two drawn directions.
A ReLU's derivative jumps at zero, so that float32 can only be held to a gradient where no argument is within rounding of zero. Of 400 drawn pairs of
images this one keeps both ResNets' 750,000 arguments farthest from it; the file says how far (`nearest_kink`).
Leaves: tests/parity/vision_torch.json, read by tests/parity/test_vision.py.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

OUT = Path(__file__).parents[2] / "tests" / "parity" / "vision_torch.json"
BATCH, WIDTH, LAYERS, HEADS, PATCH = 2, 192, 6, 3, 4
IMAGES = "images 214"


def drawn(name, shape):
    """Standard normal, by name; the test draws the same."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def weight(path, shape):
    """A leaf's value: kernels by He's rule, the rest about what it starts from."""
    ending, values = path.rsplit("/", 1)[-1], drawn(path, shape)
    if ending == "kernel":
        return values * np.sqrt(2 / np.prod(shape[:-1]))
    if ending == "scale":
        return 1 + 0.1 * values
    if ending == "var":
        return np.exp(0.1 * values)
    return 0.1 * values


nearest: list[float] = []


def relu(x):
    nearest.append(x.detach().abs().min().item())
    return functional.relu(x)


class Block(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.more = channels - before

    def forward(self, x):
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return relu(x + y)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(3):
                first = stage and not block
                setattr(self, f"layer{stage + 1}_{block}", Block(channels // 2 if first else channels, channels, 2 if first else 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            for block in range(3):
                x = getattr(self, f"layer{stage + 1}_{block}")(x)
        return self.linear(x.mean(dim=(2, 3)))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, (32 // PATCH) ** 2 + 1, WIDTH))
        for i in range(LAYERS):
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True)
            setattr(self, f"layer_{i}", layer)
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for i in range(LAYERS):
            x = getattr(self, f"layer_{i}")(x)
        return self.head(self.norm(x[:, 0]))


RENAMED = {
    "self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj": "attention.output", "linear1": "mlp.up", "linear2": "mlp.down", "norm1": "attention_norm",
    "norm2": "mlp_norm", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def ours(name, tensor):
    """selgrad's path of a PyTorch tensor, and how to turn a tensor to selgrad's layout and back."""
    for theirs, new in RENAMED.items():
        name = name.replace(theirs, new)
    path = name.replace(".", "/")
    if path.endswith("weight"):
        path = path.removesuffix("weight") + ("kernel" if tensor.ndim > 1 else "scale")
    if path == "patches/kernel":
        # (features, channels, rows, columns) as the kernel of a dense layer over patches.
        size = tensor.shape
        return path, lambda a: a.transpose(2, 3, 1, 0).reshape(-1, size[0]), lambda a: a.reshape(*size[2:], size[1], size[0]).transpose(3, 2, 0, 1)
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}.get(tensor.ndim, tuple(range(tensor.ndim)))
    return path, lambda a: a.transpose(axes), lambda a: a.transpose(np.argsort(axes))


def measure(model, train):
    model = model.double().train(train)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 0:
                continue
            path, there, back = ours(name, tensor)
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(back(weight(path, there(tensor.numpy()).shape)))))
    images = torch.from_numpy(drawn(IMAGES, (BATCH, 32, 32, 3)).transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(10), BATCH))
    nearest.clear()
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    leaves = {}
    for name, tensor in model.named_parameters():
        path, there, _ = ours(name, tensor)
        gradient = there(tensor.grad.numpy())
        products = [float((gradient * drawn(f"{path} {i}", gradient.shape)).sum()) for i in range(2)]
        leaves[path] = {"norm": float(np.linalg.norm(gradient)), "products": products}
    return {"logits": logits.tolist(), "loss": loss.item(), "nearest_kink": min(nearest, default=None), "gradients": dict(sorted(leaves.items()))}


def main():
    torch.set_num_threads(1)
    found = {"resnet20 evaluation": measure(ResNet20(), False), "resnet20 train": measure(ResNet20(), True), "vit": measure(ViT(), False)}
    OUT.write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n")
    print(f"wrote {OUT.name}: {', '.join(found)}")


if __name__ == "__main__":
    main()
