"""A ResNet-20 that PyTorch trained, from its safetensors file: leaves are found by name and turned to Flax's layout.

Run: uv run python examples/torch_resnet20.py WEIGHTS.safetensors CIFAR_FOLDER 1000
"""

import sys

import selgrad

weights, data, steps = sys.argv[1:]
cell = selgrad.run_cell(
    dataset={"name": "cifar10", "path": data, "count": 1, "normalisation": "imagenet"},
    model={"name": "resnet", "depth": 20, "checkpoint": weights},
    metric="magnitude",
    ratio=0.1,
    attack={"name": "inverting_gradients", "num_steps": int(steps)},
)
print(f"{cell.num_total:,} entries, 10% encrypted: PSNR {cell.psnr:.1f} dB, label right: {bool(cell.label_correct)}")
