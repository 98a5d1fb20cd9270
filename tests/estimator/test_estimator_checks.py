"""MACHClassifier: scikit-learn's own checks, its parameters, and the same bits as `train`."""

import inspect

import numpy as np
import pytest
import scipy.sparse as sp
from estimator_cases import DENSE, SMALL, X, assert_same_model, brief, small
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_classifier_multioutput, parametrize_with_checks
from training_cases import same_bits

import mach_ext
from mach_ext import data
from mach_ext.runs.recipe import SETTINGS
from mach_ext.sklearn import MACHClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------- scikit-learn's checks

# None is expected to fail. scikit-learn itself skips the check of `predict_proba`, which the estimator does
# not have, and that of array API inputs unless the environment sets SCIPY_ARRAY_API.
ESTIMATORS = [
    MACHClassifier(),
    MACHClassifier(threshold=0.0, hidden_size=32),
    MACHClassifier(svm=True),
    MACHClassifier(num_dense=1),
]


@parametrize_with_checks(ESTIMATORS)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_threshold_zero_is_the_sign_of_the_decision_function():
    """scikit-learn has this check for estimators of several outputs, and skips it for labels."""
    check_classifier_multioutput("MACHClassifier", MACHClassifier(threshold=0.0, hidden_size=32))


# ------------------------------------------------------------------------------------------------ parameters


def test_parameters_are_those_of_train():
    ours = {*inspect.signature(MACHClassifier).parameters}
    theirs = {*inspect.signature(mach_ext.train).parameters} - {
        "dataset", "output", "resume", "overwrite", "svmlight_base", "propensity", "evaluate",
        "text_encoder", "text_learning_rate", "finetune", "finetune_epochs",  # X holds numbers, not texts
        "label_names",  # labels are classes
        "quantization_step",  # nothing is saved
    }  # fmt: skip
    theirs |= {*SETTINGS, "random_state", "k", "threshold", "num_dense"}  # a dataset says its own num_dense
    assert ours == theirs - {"hyperparameters", "seed"}


def test_clone_and_set_params():
    estimator = small(hidden_size=(8, 8), threshold=0.5)
    copied = clone(estimator)
    assert copied.get_params() == estimator.get_params()
    assert copied.set_params(k=3, C=2.0).get_params()["k"] == 3
    assert repr(MACHClassifier(k=3)) == "MACHClassifier(k=3)"
    with pytest.raises(TypeError):
        MACHClassifier(8)  # all arguments have names


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"device": "abacus"}, ValueError, "device must be cpu, cuda or cuda:N, got 'abacus'"),
        ({"optimizer": "sgd"}, ValueError, "fit: optimizer must be one of adam, adagrad, got 'sgd'"),
        ({"epochs": 1.5}, ValueError, "fit: epochs must be an int of at least 0, got 1.5"),
        ({"merge": "sum"}, ValueError, "MACH: merge must be one of mean_logit, .*, got 'sum'"),
        ({"C": 1.0}, ValueError, "C is an option of support vector machines, see svm"),
        ({"svm": True}, ValueError, "svm takes no epochs, batch_size"),
        ({"random_state": -1}, ValueError, "LabelHash: seed must be .*0.*, got -1"),
        ({"random_state": "now"}, ValueError, "'now' cannot be used to seed"),
        ({"holdout": "no"}, TypeError, "MACHClassifier: holdout must be True or False, got 'no'"),
        ({"progress": 1}, TypeError, "MACHClassifier: progress must be True or False, got 1"),
        ({"svm": "no"}, TypeError, "svm must be None, True or False, got 'no'"),
        ({"svm": 1}, TypeError, "svm must be None, True or False, got 1"),
        ({"feature_dropout": "0.5"}, TypeError, "MACH: feature_dropout must be a number, got str"),
        ({"hidden_dropout": None}, TypeError, "MACH: hidden_dropout must be a number, got NoneType"),
        ({"k": 0}, ValueError, r"MACHClassifier: k must be in 1 ... L=8, got 0"),
        ({"k": 9}, ValueError, r"MACHClassifier: k must be in 1 ... L=8, got 9"),
        ({"k": 1.5}, TypeError, "MACHClassifier: k must be an int, got float"),
        ({"threshold": "high"}, ValueError, "MACHClassifier: threshold must be None or a number, got 'high'"),
        ({"threshold": np.nan}, ValueError, "MACHClassifier: threshold must be None or a number, got nan"),
        ({"threshold": True}, ValueError, "MACHClassifier: threshold must be None or a number, got True"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused_by_fit(parameters, error, message):
    estimator = small(**parameters)
    with pytest.raises(error, match=message):
        estimator.fit(X, DENSE)
    assert not hasattr(estimator, "n_features_in_")


def test_random_state_is_the_seed():
    assert brief(random_state=3).fit(X, DENSE).model_.seed == 3
    assert brief(random_state=np.int64(3)).fit(X, DENSE).model_.seed == 3
    drawn = [brief(random_state=np.random.RandomState(3)).fit(X, DENSE) for _ in range(2)]
    assert_same_model(*drawn)
    former = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(3)  # noqa: NPY002 - None draws from this generator, as scikit-learn has it
        seeds = {brief(random_state=None).fit(X, DENSE).model_.seed for _ in range(3)}
    finally:
        np.random.set_state(former)  # noqa: NPY002
    assert len(seeds) == 3
    assert drawn[0].model_.seed in seeds


# ------------------------------------------------------------------------------------ the same bits as train

SHORT = {**SMALL, "epochs": 3}
TRAINED = {
    "default": {},
    "small": SHORT,
    "linear": {"hidden_size": 0, "epochs": 3, "repetitions_at_a_time": 4},
    "dropout": {**SHORT, "feature_dropout": 0.1, "hidden_dropout": 0.2, "tau": 0.3},
    "svm": {"svm": True, "C": 0.5},
    "patience": {**SMALL, "patience": 1, "metric": "nDCG@3"},
}


@pytest.mark.parametrize("holdout", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_same_bits_as_train(name, holdout, tmp_path):
    X32, Y = data.check_csr(X), data.check_labels(sp.csr_matrix(DENSE))
    dataset = data.Dataset("small", tmp_path / "none", data.Split(X32, Y))
    if holdout:
        dataset = data.hold_out(dataset)
    settings = {"progress": False, **TRAINED[name]}
    run = mach_ext.train(dataset, output=tmp_path / "run", seed=5, evaluate=False, **settings)
    ours = MACHClassifier(random_state=5, holdout=holdout, **settings).fit(X, DENSE)
    assert run.model.configuration() == ours.model_.configuration()
    assert same_bits(dict(run.model.named_parameters()), dict(ours.model_.named_parameters()))
    assert ours.history_ == run.history


def test_same_bits_as_train_on_a_folder(tmp_path):
    """From a file that `train` reads, without holding out, as its argument says."""
    (tmp_path / "corpus").mkdir()
    data.write_xmc(tmp_path / "corpus" / "train.txt", data.check_csr(X), sp.csr_matrix(DENSE))
    run = mach_ext.train(
        tmp_path / "corpus", output=tmp_path / "run", holdout=False, progress=False, evaluate=False, **SHORT
    )
    read = run.dataset().train
    ours = MACHClassifier(**SHORT).fit(read.X, read.Y)
    assert same_bits(dict(run.model.named_parameters()), dict(ours.model_.named_parameters()))


def test_many_documents_a_label_get_support_vector_machines():
    """The rule of `train`, which looks at N, D and the documents of a label."""
    y = np.arange(10_000) % 10
    estimator = MACHClassifier(choice="rule").fit(sp.csr_matrix(np.eye(10)[y]), y)
    assert estimator.model_.is_linear
    assert estimator.model_.merge == "mean_logprob"
    assert estimator.history_ == [{"solver": "svm", "C": 1.0}]
    assert estimator.score(sp.eye(10, format="csr"), np.arange(10)) == 1.0
