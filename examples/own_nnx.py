"""One's own Flax NNX network: the instance's weights are attacked as they are.

Run: uv run python examples/own_nnx.py
"""

from flax import nnx

import selgrad


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.sigmoid(self.hidden(x.reshape(len(x), -1))))


network = Net(rngs=nnx.Rngs(0))
cell = selgrad.run_cell(dataset={"name": "digits", "count": 1}, model=network, ratio=0.1, attack="rank_one")
print(f"10% encrypted: PSNR {cell.psnr:.1f} dB, {cell.report}")
