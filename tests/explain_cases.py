"""What the tests of explanations share: labels, a model of known votes, a reader of pages."""

import html.parser

import numpy as np
import scipy.sparse
import torch

import mach_ext

LABELS = [3, 0, 89]


def planted(claimed_by_label_0=2, seed=0):
    """Linear MACH of one feature, whose bucket logits are given: label 0 true, votes about 5, all else -5.

    Label 1 is false but shares buckets with label 0 in some repetitions.
    """
    rng = np.random.default_rng(seed)
    repetitions, labels, buckets = 6, 40, 60
    table = np.stack([rng.permutation(buckets)[:labels] for _ in range(repetitions)])
    table[:claimed_by_label_0, 1] = table[:claimed_by_label_0, 0]
    hash = mach_ext.LabelHash.from_buckets(table, buckets)
    model = mach_ext.MACH(1, labels, repetitions, buckets, hidden_size=0, hash=hash)
    logits = rng.normal(-5, 0.3, (repetitions, buckets))
    logits[np.arange(repetitions), table[:, 0]] = rng.normal(5, 0.3, repetitions)
    with torch.no_grad():
        model.bucket_bias.zero_()
        model.bucket_weight.copy_(torch.from_numpy(logits)[:, None])
    return model, scipy.sparse.csr_matrix(np.ones((1, 1), np.float32)), logits, table


class Page(html.parser.HTMLParser):
    """Counts elements and refuses a page whose tags do not match."""

    VOID = ("meta", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
