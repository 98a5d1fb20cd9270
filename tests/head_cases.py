"""Heads for tests, labels drawn at random, and the dense definition of a head's loss."""

import warnings

import torch

import mach_ext

H, L, R, B = 6, 20, 3, 5
SIZES = {"in_features": H, "num_labels": L, "num_repetitions": R, "num_buckets": B}


def build(**options):
    """A head whose labels may collide in all repetitions, as those of small tests do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        return mach_ext.MACHHead(**{**SIZES, **options})


def hidden_of(head, *leading, seed=0, dtype=None):
    """Hidden units for a head, a leaf that needs a gradient."""
    own = (head.num_repetitions,) if head.per_repetition else ()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*leading, *own, head.in_features, generator=generator, dtype=torch.float64)
    return drawn.to(dtype or head.bucket_weight.dtype).requires_grad_()


def random_labels(generator, N, num_labels=L, most=6):
    """Lists of label ids, a quarter of them empty."""
    counts = torch.randint(-most // 3, most + 1, (N,), generator=generator).clamp(0, num_labels)
    return [torch.randperm(num_labels, generator=generator)[:count].tolist() for count in counts]


def csr_of(lists):
    """Lists of label ids as (indices, indptr)."""
    indptr = torch.tensor([0, *map(len, lists)]).cumsum(0)
    return torch.tensor([label for labels in lists for label in labels], dtype=torch.int64), indptr


def dense_logits(hidden, weight, bias, per_repetition=False):
    """[N, R, B], of hidden units with any leading dimensions."""
    if per_repetition:
        return torch.einsum("nrh,rhb->nrb", hidden.reshape(-1, *hidden.shape[-2:]), weight) + bias
    return torch.einsum("nh,rhb->nrb", hidden.reshape(-1, hidden.shape[-1]), weight) + bias


def dense_loss(head, hidden, weight, bias, lists, reduction="mean"):
    """The loss by one-hot targets and plain PyTorch: summed over B, averaged over R, and over N for mean."""
    logits = dense_logits(hidden, weight, bias, head.per_repetition)
    targets = torch.zeros_like(logits)
    for n, labels in enumerate(lists):
        for label in labels:
            for r in range(head.num_repetitions):
                targets[n, r, head.hash.buckets[r, label]] = 1
    total = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / head.num_repetitions / (len(lists) if reduction == "mean" else 1)


def leaves(head, hidden):
    """What a loss has gradients to."""
    return [hidden, head.bucket_weight, head.bucket_bias]


def gradients(loss, head, hidden, **options):
    return torch.autograd.grad(loss, leaves(head, hidden), **options)


def all_equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))
