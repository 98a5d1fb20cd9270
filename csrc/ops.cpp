// Every operator of mach_ext. Shapes and meanings: mach_ext/_ops.py; definitions: mach_ext/_reference.py.
// The code of a device is registered at the end of each binding, in cpu/bind/ and cuda/bind/.
#include <torch/csrc/stable/library.h>

#ifdef MACH_SHIM  // a second library beside it, in tests (tests/cuda_shim)
STABLE_TORCH_LIBRARY(mach_ext_shim, m) {
#else
STABLE_TORCH_LIBRARY(mach_ext, m) {
#endif
  // a batch's non-zeros by feature -> features [U], offsets [U + 1], positions [E], documents [E]; what the
  // others take as `order`, where it is known
  m.def("feature_order(Tensor indices, Tensor indptr, int num_features) -> (Tensor, Tensor, Tensor, Tensor)");
  // sparse documents (CSR) times weight [R, D, M] (or [D, M]), bias and relu fused -> [N, R, M] (or [N, M]);
  // check: documents with a fault in check_csr's sense are refused, on CPU
  m.def(
      "sparse_linear(Tensor values, Tensor indices, Tensor indptr, Tensor weight, Tensor? bias, bool relu, "
      "Tensor[]? order=None, bool check=False) -> Tensor");
  // its gradient to the non-zeros -> [nnz]
  m.def("sparse_linear_grad_values(Tensor grad, Tensor indices, Tensor indptr, Tensor weight) -> Tensor");
  // its gradient to the weight, dense -> [R, D, M]
  m.def(
      "sparse_linear_grad_weight(Tensor grad, Tensor values, Tensor indices, Tensor indptr, int "
      "num_features, Tensor[]? order=None) -> Tensor");
  // the same as the rows that occur, ascending -> rows [U], gradients [R, U, M]
  m.def(
      "sparse_linear_grad_rows(Tensor grad, Tensor values, Tensor indices, Tensor indptr, int num_features, "
      "Tensor[]? order=None) -> (Tensor, Tensor)");
  // logits of the R buckets of the labels asked for -> [N, m, R]
  m.def("label_logits(Tensor hidden, Tensor weight, Tensor? bias, Tensor buckets, Tensor labels) -> Tensor");
  // its gradient to hidden
  m.def(
      "label_logits_grad_hidden(Tensor grad, Tensor hidden, Tensor weight, Tensor buckets, Tensor labels) -> "
      "Tensor");
  // its gradients to weight and bias -> [R, H, B], [R, B]
  m.def(
      "label_logits_grad_weight(Tensor grad, Tensor hidden, Tensor weight, Tensor buckets, Tensor labels) -> "
      "(Tensor, Tensor)");
  // The loss of a group of G repetitions by document, logits [N, G, B] -> [N] float64, summed over the group.
  // With a scale, scale * the gradient to logits + bias is written over the logits, or into `out` in
  // bfloat16. grad_bias [G, B] takes its sum over the documents.
  m.def(
      "bucket_bce(Tensor(a!) logits, Tensor? bias, Tensor buckets, Tensor label_indices, Tensor "
      "label_indptr, float? scale, Tensor(b!)? out=None, Tensor(c!)? grad_bias=None) -> "
      "Tensor");
  // Scores of a group of G repetitions -> [N, G, B] float32. hidden [N, H] or [N, G, H] and weight [G, H, B]
  // in the memory of [G, B, H] are bfloat16; transform: none, sigmoid, logsigmoid
  m.def("bucket_forward(Tensor hidden, Tensor weight, Tensor? bias, str transform) -> Tensor");
  // Logits of all repetitions -> [N, R, B] float32. hidden [N, H] or [N, R, H] float32 is rounded to 7 bits;
  // weight int8 [R, tiles, words, 64, 4], its layout: cpu/bucket_forward_int8.h; scale [R, B]. CPU only.
  m.def("bucket_forward_int8(Tensor hidden, Tensor weight, Tensor scale, Tensor? bias) -> Tensor");
  // The same scores, and what merge_topk on CUDA needs to know of them -> scores, high [N, G], low [N, G],
  // best [N, G] int32, peaks [N, G, groups of 64 buckets]. Their meaning: cuda/merge_extremes.cuh.
  m.def(
      "bucket_forward_extremes(Tensor hidden, Tensor weight, Tensor? bias, str transform) -> (Tensor, "
      "Tensor, "
      "Tensor, Tensor, Tensor)");
  // the group's loss by document and its gradient -> scale * the gradient to the logits [N, G, B] bfloat16,
  // losses [N] float64, the gradient's sums over documents [G, B] float32
  m.def(
      "bucket_forward_bce(Tensor hidden, Tensor weight, Tensor? bias, Tensor buckets, Tensor label_indices, "
      "Tensor label_indptr, float scale) -> (Tensor, Tensor, Tensor)");
  // Gradients of a repetition, where a rank-one matrix replaces the negligible entries of its logits'
  // gradient -> the number of kept entries. If there are more than `most`, nothing is done. CPU only, because
  // the dense products of a GPU are faster.
  m.def(
      "bucket_backward(Tensor gradient, Tensor hidden, Tensor weight, float negligible, int most, Tensor(a!) "
      "grad_hidden, Tensor(b!) grad_weight) -> Tensor");
  // Cholesky factor of I + 2 C X'X for bucket_svm, where X has a last column of ones -> [D + 1, D + 1]
  m.def("svm_factor(Tensor values, Tensor indices, Tensor indptr, int D, float C) -> Tensor");
  // Solves the L2-regularised squared-hinge SVMs of buckets [first, first + M) of a repetition -> passes
  // int64 and violation float64 of each 16 buckets. With a factor by Newton's method, else by coordinate
  // descent. CPU only, because documents come one after the other.
  m.def(
      "bucket_svm(Tensor values, Tensor indices, Tensor indptr, Tensor buckets, Tensor label_indices, Tensor "
      "label_indptr, int first, float C, float tolerance, int max_passes, Tensor? factor, Tensor(a!) weight, "
      "Tensor(b!) bias) -> (Tensor, Tensor)");
  // the sigmoid of logits, or its logarithm, in place; transform as in bucket_forward. CPU only, because
  // PyTorch's depend on an element's place there.
  m.def("transform_logits(Tensor(a!) logits, str transform) -> ()");
  // scores of the labels asked for -> [N, m]
  m.def("merge_scores(Tensor scores, Tensor buckets, Tensor labels, str merge) -> Tensor");
  // its gradient to the bucket scores -> [N, R, B]
  m.def("merge_scores_grad(Tensor grad, Tensor scores, Tensor buckets, Tensor labels, str merge) -> Tensor");
  // The index of a label hash for merge_topk -> codes [L, R] uint16, list_starts [R, B + 1], list_labels [R,
  // L] int32.
  m.def("label_index(Tensor buckets, int num_buckets) -> (Tensor, Tensor, Tensor)");
  // exact top-k over all labels -> values [N, k], labels [N, k] int64; codes ... from label_index or None;
  // path: auto, or what to prefer where possible (direct, scan, lists); trace [N, 3] int64: what was done;
  // extremes: high, low, best and peaks of the scores from bucket_forward_extremes, which the CPU has no use
  // for
  m.def(
      "merge_topk(Tensor scores, Tensor buckets, Tensor? codes, Tensor? list_starts, Tensor? list_labels, "
      "int k, str merge, str path, Tensor(a!)? trace, Tensor[]? extremes=None) -> (Tensor, Tensor)");
  // optimiser steps on the rows of parameter [P, M] that occur; rows None: all of them
  m.def(
      "sparse_adam(Tensor(a!) parameter, Tensor? rows, Tensor gradient, Tensor(b!) exp_avg, Tensor(c!) "
      "exp_avg_sq, float step_size, float beta1, float beta2, float eps) -> ()");
  m.def(
      "sparse_adagrad(Tensor(a!) parameter, Tensor? rows, Tensor gradient, Tensor(b!) sum, float lr, float "
      "eps) -> ()");
  // sparse_linear's gradient to weight [R, D, M] and the step of the rows that occur, row by row
  m.def(
      "sparse_linear_adam(Tensor(a!) weight, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor grad, Tensor "
      "values, Tensor[] order, float step_size, float beta1, float beta2, float eps) -> ()");
  m.def(
      "sparse_linear_adagrad(Tensor(a!) weight, Tensor(b!) sum, Tensor grad, Tensor values, Tensor[] order, "
      "float lr, float eps) -> ()");
  // a tile of a gradient [N, T] into its signs (nonnegative: -1 into 0), in place -> how many are not 0, [N]
  // int64
  m.def("signs(Tensor(a!) gradient, bool nonnegative) -> Tensor");
  // first fault of a CSR structure -> (fault, row, position), CsrFault in cpu/check_csr.h; 0: none. CPU only:
  // on CUDA, documents are not looked at, which would be a wait for the device
  m.def("check_csr(Tensor? values, Tensor indices, Tensor indptr, int num_columns) -> (int, int, int)");
  // instruction set in use: 0 scalar, 1 AVX2, 2 AVX-512
  m.def("cpu_isa() -> int");
}
