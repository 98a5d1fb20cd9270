"""MACH's head on a transformer: `torch.nn.TransformerEncoder`, `mach_ext.MACHHead`, a stock training loop.

A document has 8 tokens in any order. Three of them are those of its labels: label l is right where token l
occurs. The other tokens mean nothing. Run: python transformer_head.py
"""

import scipy.sparse
import torch
from torch import Tensor, nn

import mach_ext

L, V, T, M = 3000, 4000, 8, 3  # labels, tokens of the vocabulary, tokens and labels of a document


class Tagger(nn.Module):
    def __init__(self, H: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, H)
        layer = nn.TransformerEncoderLayer(H, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.head = mach_ext.MACHHead(H, num_labels=L, num_repetitions=8, num_buckets=256)

    def encode(self, tokens: Tensor) -> Tensor:  # [N, T] -> [N, H]
        return self.encoder(self.embedding(tokens)).mean(1)


def documents(N: int, seed: int) -> tuple[Tensor, Tensor]:  # tokens [N, T], labels [N, M]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(L // M, (N, M), generator=generator) * M + torch.arange(M)  # none twice
    noise = torch.randint(L, V, (N, T - M), generator=generator)
    order = torch.rand(N, T, generator=generator).argsort(1)
    return torch.cat((labels, noise), 1).gather(1, order), labels


def main(steps: int = 200) -> float:
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    tokens, labels = documents(20_000, seed=0)
    for step in range(1, steps + 1):
        rows = torch.randint(len(tokens), (256,))
        loss = model.head.loss(model.encode(tokens[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    tokens, labels = documents(1000, seed=1)  # held out
    with torch.no_grad():
        _, best = model.eval().head.topk(model.encode(tokens), k=1)
    Y = scipy.sparse.csr_matrix(
        (torch.ones(1000 * M), labels.flatten(), range(0, 1000 * M + 1, M)), (1000, L)
    )
    precision = mach_ext.metrics.precision_at_k(Y, best, k=1)
    print(f"P@1 {precision:.3f}")
    return precision


if __name__ == "__main__":
    main()
