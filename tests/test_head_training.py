"""A transformer with MACH's head learns a planted task with each tool of PyTorch's training, and with all.

A document has five tokens. Three of them are those of its labels, and the others mean nothing.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mach_ext

L, V, T, M, H = 1000, 1200, 5, 3, 96  # labels, vocabulary, tokens and labels of a document, hidden units
BATCH, STEPS = 128, 100
TOOLS = ("clipping", "scaler", "autocast", "checkpointing", "compile")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Dynamo tracing an autograd.Function.
    pytest.mark.filterwarnings(
        "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
    ),
]


class Tagger(nn.Module):
    """Token ids [N, T] -> hidden units [N, H], or with labels the loss."""

    def __init__(self, checkpointing):
        super().__init__()
        self.checkpointing = checkpointing
        self.embedding = nn.Embedding(V, H)
        layer = nn.TransformerEncoderLayer(H, 4, H, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.head = mach_ext.MACHHead(H, num_labels=L, num_repetitions=8, num_buckets=256)

    def forward(self, tokens, labels=None):
        x = self.embedding(tokens)
        for layer in self.encoder.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x)
        hidden = x.mean(1)
        return hidden if labels is None else self.head(hidden, labels)


def documents(N, seed):
    """Tokens [N, T] and labels [N, M]: label l is right where token l occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(L // M, (N, M), generator=generator) * M + torch.arange(M)  # none twice
    noise = torch.randint(L, V, (N, T - M), generator=generator)
    order = torch.rand(N, T, generator=generator).argsort(1)
    return torch.cat((labels, noise), 1).gather(1, order), labels


def losses_of_training(model, tools):
    """Train by stock AdamW and the given tools. The loss of each step is returned.

    torch.compile traces forward and backward, but writes no C++: inductor takes a minute to compile these.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", enabled="scaler" in tools)
    whole = {"fullgraph": True, "backend": "aot_eager"}
    run = torch.compile(model, **whole) if "compile" in tools else model
    tokens, labels = documents(20_000, seed=0)
    indptr = torch.arange(0, BATCH * M + 1, M)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        rows = torch.randint(len(tokens), (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in tools):
            loss = run(tokens[rows], (labels[rows].flatten(), indptr))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if "clipping" in tools:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def precision(model):
    """P@1 on documents that were held out."""
    tokens, labels = documents(1000, seed=1)
    with torch.no_grad():
        _, best = model.eval().head.topk(model(tokens), k=1)
    rows = torch.arange(len(labels)).repeat_interleave(M)
    Y = torch.zeros(len(labels), L)
    Y[rows, labels.flatten()] = 1
    return mach_ext.metrics.precision_at_k(Y, best, k=1)


@pytest.mark.parametrize("tools", [(), *((tool,) for tool in TOOLS), TOOLS], ids="+".join)
def test_transformer_learns_the_planted_task(tools, say):
    torch.manual_seed(0)
    model = Tagger("checkpointing" in tools)
    losses = losses_of_training(model, tools)
    p1 = precision(model)
    say(f"{' + '.join(tools) or 'AdamW alone'}: loss {losses[0]:.2f} -> {losses[-1]:.2f}, P@1 {p1:.3f}")
    assert losses[-1] < losses[0] / 2
    assert p1 >= 0.99
