"""`HybridInputs`: inputs of an encoder, with sparse features beside them."""

from __future__ import annotations

from typing import Any


class HybridInputs:
    """Inputs of an encoder with the sparse features of the same documents beside them.

    It is for a model with dense features whose encoder is attacked. The attack changes the inputs, such as
    the vectors of tokens. The sparse features, such as words, stay as they are.

    Args:
        inputs: [N, ...], a tensor of float32 or float64, or a NumPy array.
        sparse: The sparse features [N, D], a SciPy, NumPy or torch matrix.

    Raises:
        ValueError: The arguments differ in their rows.

    Example:
        >>> import scipy.sparse, torch, mach_ext
        >>> model = mach_ext.MACH(6, 40, num_repetitions=8, num_buckets=16, hidden_size=8, num_dense=4)
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5 * 8, 4))
        >>> tokens = torch.randn(3, 5, 8)  # three texts of five tokens
        >>> X = mach_ext.attack.HybridInputs(tokens, scipy.sparse.eye(3, 6, format="csr"))
        >>> Y = scipy.sparse.eye(3, 40, format="csr")
        >>> mach_ext.attack.FGSM(model, "l2", encoder=encoder).perturb(X, Y, epsilon=0.5).inputs.shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, inputs: Any, sparse: Any) -> None:
        """Keeps both parts. Attacks check them."""
        self.inputs, self.sparse = inputs, sparse
        if len(inputs) != sparse.shape[0]:
            raise ValueError(
                "HybridInputs: inputs and sparse must have as many rows, "
                f"got {len(inputs)} and {sparse.shape[0]}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inputs.

        Example:
            >>> import scipy.sparse, torch, mach_ext
            >>> mach_ext.attack.HybridInputs(torch.zeros(3, 5, 8), scipy.sparse.eye(3, 6)).shape
            (3, 5, 8)
        """
        return tuple(self.inputs.shape)

    def __len__(self) -> int:
        """Returns N, the number of documents."""
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> HybridInputs:
        """Returns some documents."""
        return HybridInputs(self.inputs[rows], self.sparse[rows])
