"""Iterations per second of TAG and of LAMP's cosine matching as a PyTorch loop on a BERT from scratch: the peer of `text_throughput.py`.

Runs in the environment that `benchmarks/peers/setup.sh` builds (PyTorch, transformers; never a dependency of selgrad). The loop is the usual one:
dummy embeddings through transformers' BERT with eager attention (the fused one has no second derivative on CPUs), `autograd.grad` with
`create_graph`, the distance over all parameters, `backward`, Adam. Known rows are put back after each step, as LAMP does. Each line on standard
input, `SIZE KIND STEPS`, is answered by one JSON line: KIND is `tag` or `lamp`, or `starts` or `moves`, candidates scored one after the other, as LAMP
does, by the gradient's distance; moves by the perplexity under a GPT-2 of 2 layers too.
"""

import json
import sys
import time

import schemas  # noqa: F401 (before torchvision is imported)
import torch
import transformers

SIZES = {"tiny": (2, 128, 2), "base": (12, 768, 12)}
LENGTH, VOCABULARY = 16, 30522


class Problem:
    def __init__(self, size: str):
        layers, width, heads = SIZES[size]
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width, num_labels=2
        )
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        self.model = transformers.BertForSequenceClassification(config).eval()
        self.table = self.model.get_input_embeddings().weight
        self.tokens = torch.randint(1000, VOCABULARY, (1, LENGTH))
        self.labels = torch.tensor([0])
        self.parameters = [p for p in self.model.parameters() if p is not self.table]
        judge = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=128, n_layer=2, n_head=2)
        self.judge = transformers.GPT2LMHeadModel(judge).eval()
        self.truth = self.gradient(self.table[self.tokens].detach(), create_graph=False)

    def gradient(self, embedded, create_graph=True):
        loss = torch.nn.functional.cross_entropy(self.model(inputs_embeds=embedded).logits, self.labels)
        return torch.autograd.grad(loss, self.parameters, create_graph=create_graph)

    def distance(self, kind: str, found):
        pairs = list(zip(found, self.truth, strict=True))
        if kind == "tag":
            return sum((a - b).square().sum() + 0.01 * (a - b).abs().sum() for a, b in pairs)
        return sum(1 - (a * b).sum() / (a.norm() * b.norm()) for a, b in pairs) / len(pairs)

    def run(self, kind: str, steps: int) -> float:
        dummy = torch.randn(1, LENGTH, self.table.shape[1], requires_grad=True)
        optimiser = torch.optim.Adam([dummy], lr=0.01)
        started = time.perf_counter()
        for _ in range(steps):
            optimiser.zero_grad()
            self.distance(kind, self.gradient(dummy)).backward(inputs=[dummy])
            optimiser.step()
            with torch.no_grad():
                dummy[:, 0], dummy[:, -1] = self.table[101], self.table[102]
        return time.perf_counter() - started

    def score(self, count: int, with_language: bool) -> float:
        """Seconds to score `count` permutations one after another."""
        dummy = self.table[self.tokens].detach()
        started = time.perf_counter()
        for _ in range(count):
            order = torch.randperm(LENGTH)
            value = float(self.distance("lamp", self.gradient(dummy[:, order], create_graph=False)))
            if with_language:
                with torch.no_grad():
                    tokens = self.tokens[:, order]
                    value += 0.2 * float(self.judge(input_ids=tokens, labels=tokens).loss)
        return time.perf_counter() - started


def main() -> None:
    problems = {}
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        size, kind, steps = line.split()
        if size not in problems:
            problems[size] = Problem(size)
            problems[size].run("tag", 2)
        problem = problems[size]
        seconds = problem.score(int(steps), kind == "moves") if kind in ("starts", "moves") else problem.run(kind, int(steps))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
