"""A training loop of one's own on `functional` and `optim`: linear-in, hidden layer, MACH loss.

Random sparse documents, 1,000 features, 500 labels hashed 8 times into 64 buckets. Run: python train_loop.py
"""

import scipy.sparse
import torch

import mach_ext
from mach_ext import functional as F


def main(steps: int = 200) -> list[float]:
    torch.manual_seed(0)
    N, D, L, R, B, H = 256, 1000, 500, 8, 64, 128
    X = scipy.sparse.random(N, D, density=0.02, format="csr", dtype="float32", random_state=0)
    Y = scipy.sparse.random(N, L, density=0.006, format="csr", random_state=1)
    X_csr = [torch.from_numpy(a) for a in (X.data, X.indices, X.indptr)]
    Y_csr = [torch.from_numpy(a) for a in (Y.indices, Y.indptr)]

    hash = mach_ext.LabelHash(L, B, R, seed=0)
    encoder, bias = torch.nn.Parameter(torch.randn(D, H) * 0.1), torch.nn.Parameter(torch.zeros(H))
    weight = torch.nn.Parameter(torch.randn(R, H, B) * H**-0.5)
    bucket_bias = torch.nn.Parameter(torch.full((R, B), -4.0))
    optimizer = mach_ext.optim.SparseAdam([encoder, bias, weight, bucket_bias], lr=0.01)

    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        hidden = F.sparse_linear(*X_csr, encoder, bias, activation="relu", sparse_grad=True)
        loss = F.bucket_bce(hidden, weight, bucket_bias, *Y_csr, hash)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.5f}")

    logits = F.bucket_forward(*X_csr, encoder, bias, weight, bucket_bias)
    _, labels = F.merge_topk(logits, hash, k=1)
    print(f"P@1 {mach_ext.metrics.precision_at_k(Y, labels, 1):.3f}")
    return losses


if __name__ == "__main__":
    main()
