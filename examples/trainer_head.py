"""Fine-tune BERT with MACH's head by the Trainer of Hugging Face, save the model, and load it again.

The BERT is small and starts at random, so nothing is downloaded. Take BertModel.from_pretrained for yours.
The texts are token ids: label l is right where token l occurs, and the other tokens mean nothing.
Run: pip install transformers accelerate; python trainer_head.py [FOLDER]
"""

import sys
from typing import Any

import numpy as np
import scipy.sparse
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, EvalPrediction, Trainer, TrainingArguments

import mach_ext

L, V = 1000, 1200  # labels, tokens of the vocabulary


class Tagger(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=V, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=16, hidden_dropout_prob=0.0, initializer_range=0.2,
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = mach_ext.MACHHead(config.hidden_size, L, num_repetitions=8, num_buckets=256, seed=seed)

    # Without **kwargs, so that Trainer divides the loss by the number of batches that it accumulates.
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        states = self.encoder(input_ids, attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2)
        hidden = (states * mask).sum(1) / mask.sum(1)  # the mean of the tokens
        outputs = {} if labels is None else {"loss": self.head(hidden, labels)}
        if not self.training:
            outputs["best"] = self.head.topk(hidden, k=5)[1]  # label ids, in place of logits of all labels
        return outputs


def documents(N: int, seed: int) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    labels = [rng.choice(L, rng.integers(1, 4), replace=False) for _ in range(N)]
    tokens = [rng.permutation(np.append(ids, rng.integers(L, V, 3))) for ids in labels]
    return [{"input_ids": t.tolist(), "labels": ids.tolist()} for t, ids in zip(tokens, labels, strict=True)]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    tokens = [torch.tensor(document["input_ids"]) for document in batch]
    labels = [torch.tensor(document["labels"]) for document in batch]
    return {
        "input_ids": pad_sequence(tokens, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in tokens], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def metrics(evaluation: EvalPrediction) -> dict[str, Any]:
    ids = evaluation.label_ids  # padded with -100
    rows, places = (ids >= 0).nonzero()
    Y = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, ids[rows, places])), (len(ids), L))
    return mach_ext.metrics.evaluate(Y, evaluation.predictions, ks=(1, 3))


def trainer(folder: str, model: Tagger, **settings: Any) -> Trainer:
    defaults = {
        "num_train_epochs": 5, "per_device_train_batch_size": 128, "learning_rate": 0.01, "warmup_steps": 50,
        "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "use_cpu": True,
        "load_best_model_at_end": True, "metric_for_best_model": "P@1", "report_to": "none",
    }  # fmt: skip
    arguments = TrainingArguments(folder, **(defaults | settings))
    train, dev = documents(10_000, seed=0), documents(500, seed=1)
    return Trainer(model, arguments, collate, train, dev, compute_metrics=metrics)


def main(folder: str = "runs/trainer_head", **settings: Any) -> dict[str, float]:
    torch.manual_seed(0)
    training = trainer(folder, Tagger(), **settings)
    training.train()
    training.save_model(f"{folder}/best")

    model = Tagger()
    model.load_state_dict(load_file(f"{folder}/best/model.safetensors"))
    result = trainer(folder, model, **settings).evaluate(documents(1000, seed=2))  # held out
    print(f"P@1 {result['eval_P@1']:.3f}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
