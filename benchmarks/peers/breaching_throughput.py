"""Iterations per second of breaching's Inverting Gradients on DLG's LeNet: the peer of `attack_throughput.py`.

Runs in the environment that `benchmarks/peers/setup.sh` builds (PyTorch, breaching; never a dependency of selgrad) and prints one JSON line
with the rate of every repeat. `attack_throughput.py --peer PYTHON` starts it in turns with selgrad's own block.
"""

import argparse
import json
import time

import schemas  # noqa: F401 (before torchvision is imported)
import torch

# isort: split
import breaching
from omegaconf import OmegaConf


class LeNet(torch.nn.Module):
    """DLG's LeNet: three 5x5 convolutions of 12 channels (strides 2, 2, 1), one dense layer; weights U(-0.5, 0.5)."""

    def __init__(self, num_classes: int = 100):
        super().__init__()
        convolution = [torch.nn.Conv2d(c, 12, 5, padding=2, stride=s) for c, s in ((3, 2), (12, 2), (12, 1))]
        self.body = torch.nn.Sequential(*(layer for c in convolution for layer in (c, torch.nn.Sigmoid())))
        self.fc = torch.nn.Linear(768, num_classes)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


def run(num_steps: int) -> float:
    model, loss = LeNet().eval(), torch.nn.CrossEntropyLoss()
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    config = breaching.get_attack_config("invertinggradients")
    OmegaConf.set_struct(config, False)
    config.optim.max_iterations = num_steps
    config.optim.callback = 10 * num_steps
    config.restarts.num_trials = 1
    attacker = breaching.attacks.prepare_attack(model, loss, config, setup)
    image, label = torch.rand(1, 3, 32, 32), torch.tensor([3])
    gradients = torch.autograd.grad(loss(model(image), label), tuple(model.parameters()))
    metadata = OmegaConf.create(
        {
            "modality": "vision",
            "shape": [3, 32, 32],
            "classes": 100,
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
            "normalize": False,
            "task": "classification",
            "size": 1,
        }
    )
    payload = {"parameters": [p.detach() for p in model.parameters()], "buffers": [], "metadata": metadata}
    shared = {"gradients": list(gradients), "buffers": None, "metadata": {"num_data_points": 1, "labels": label, "local_hyperparams": None, "num_users": 1}}
    start = time.perf_counter()
    attacker.reconstruct([payload], [shared], {}, dryrun=False)
    return num_steps / (time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    run(20)  # first-call costs of torch are not breaching's
    rates = [run(arguments.num_steps) for _ in range(arguments.repeats)]
    print(json.dumps({"peer": "breaching", "torch": torch.__version__, "threads": torch.get_num_threads(), "iterations_per_second": rates}))
