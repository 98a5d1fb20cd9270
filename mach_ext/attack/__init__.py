"""Adversarial evaluation: small changes of documents that change their labels, and their effect on P@k.

* The threat models `Dense`, `Support`, `Insert`, `L2`, `L1`, `Delete` and `Embedding` say what an attacker
  may change, and by how much. `Embedding` is about the dense features of a model with `num_dense`. The others
  are about words, and they leave the dense features as they are. `Dense` is refused for such a model.
* The attacks `FGSM`, `PGD` and `Greedy`, and the control `Random`, have a method `perturb(X, Y, epsilon)`. It
  returns a `Perturbation`.
* `evaluate` measures P@k, nDCG@k and PSP@k of clean and adversarial documents over a grid of epsilon, with
  bootstrap intervals.
* `WordDeletion` deletes words of texts, and `evaluate_texts` measures it. TF-IDF and embedding follow the
  changed text.
* All of them also take a `mach_ext.MACHHead` in place of a model. Its documents are hidden units [N, H]. With
  `encoder` they are the inputs of any differentiable encoder: dense arrays [N, ...]. The result is then an
  `InputPerturbation`.

**Goals.** A goal says what an attack tries to reach.

* "untargeted" raises the loss (bucket cross-entropy) of the true labels.
* "own" raises the loss of the model's own top k. So true labels are not needed, and they do not leak into the
  attack.
* "positive" pushes the best-ranked true label of the top k out of the top k.
* "negative" pushes a false label into the top k. By default it is the best-ranked false label outside.

The last two goals are targeted. They raise the difference of two labels' scores (means of logits). Losses are
sums over buckets, with a number for each document. Means would make gradients vanish for large B.

**All features without N x D.** An L-inf step on every feature is x + eps * sign(G W'). G [N, M] is the
gradient to the first layer, and W [D, M] is that layer's weight. The step adds eps * sign(G W') W to the
layer. This product is summed over tiles of features, so a matrix [N, D] never exists. It is the same for
every eps. A `Perturbation` keeps G and this *offset*. It writes the documents tile by tile, only if the user
asks for them.

Notation: N documents, D features, L labels, R repetitions, B buckets, k the size of the top k. The first
layer has C blocks of M units. It is the encoder (C = 1) or, for linear MACH, the R bucket classifiers.

Example:
    >>> from scipy import sparse
    >>> import mach_ext
    >>> from mach_ext.attack import GOALS, METHODS, create
    >>> Y = sparse.eye(6, format="csr")  # document i has label i
    >>> X = Y + 0.4 * sparse.eye(6, k=1, format="csr")  # feature i, and a little of feature i + 1
    >>> model = mach_ext.MACH(6, 6, num_repetitions=8, num_buckets=4, hidden_size=0)
    >>> mach_ext.fit_svm(model, X, Y, progress=False)
    >>> METHODS  # the names that `create` accepts
    ('fgsm', 'pgd', 'delete', 'insert')
    >>> for goal in GOALS:
    ...     fgsm = create("fgsm", model, "support", goal, k=1)
    ...     scores, labels = fgsm.perturb(X, Y, 0.5).predict(1)
    ...     print(f"{goal}: P@1 {mach_ext.metrics.precision_at_k(Y, labels, 1):.2f}")
    untargeted: P@1 0.17
    own: P@1 0.17
    positive: P@1 0.50
    negative: P@1 0.50
"""

from mach_ext._deprecation import renamed_names
from mach_ext.attack.evaluation import evaluate
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.goals import GOALS
from mach_ext.attack.greedy import Greedy
from mach_ext.attack.hybrid_inputs import HybridInputs
from mach_ext.attack.input_perturbation import InputPerturbation
from mach_ext.attack.methods import METHODS, create
from mach_ext.attack.noise import Random
from mach_ext.attack.perturbation import Perturbation
from mach_ext.attack.pgd import PGD
from mach_ext.attack.text_evaluation import evaluate_texts
from mach_ext.attack.text_perturbation import TextPerturbation
from mach_ext.attack.threats import (
    L1,
    L2,
    Delete,
    Dense,
    Embedding,
    Insert,
    Support,
    ThreatModel,
    threat_model,
)
from mach_ext.attack.token_encoder import TokenEncoder
from mach_ext.attack.word_deletion import RandomDeletion, WordDeletion

__all__ = [
    "FGSM",
    "GOALS",
    "L1",
    "L2",
    "METHODS",
    "PGD",
    "Delete",
    "Dense",
    "Embedding",
    "Greedy",
    "HybridInputs",
    "InputPerturbation",
    "Insert",
    "Perturbation",
    "Random",
    "RandomDeletion",
    "Support",
    "TextPerturbation",
    "ThreatModel",
    "TokenEncoder",
    "WordDeletion",
    "create",
    "evaluate",
    "evaluate_texts",
    "threat_model",
]

__getattr__ = renamed_names(
    __name__,
    attack="mach_ext.attack.create",
    sign_pass="mach_ext.attack._dense.sign_pass",
    # Pickles of attacks and perturbations name these.
    _Batch="mach_ext.attack._batch.Batch",
    _Direction="mach_ext.attack._dense.Direction",
    _Layer="mach_ext.attack._layer.Layer",
)
