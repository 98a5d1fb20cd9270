// _C: what an operator schema can't carry. The XMC text parser and formatter on NumPy arrays, and build
// facts.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "xmc_parser.h"

namespace py = pybind11;
using mach::xmc::Array;
using mach::xmc::Document;
using mach::xmc::Options;

namespace {

template <class T>
py::array_t<T> to_numpy(Array<T>& array) {  // hands the memory over, no copy
  T* data = array.data.release();
  py::capsule owner(data, [](void* pointer) { delete[] static_cast<T*>(pointer); });
  return py::array_t<T>(static_cast<py::ssize_t>(array.size), data, owner);
}

// f(begin, end) on the buffer's bytes without the GIL; its ParseError becomes a ValueError that names the
// file.
template <class F>
void on_bytes(const py::buffer& text, const std::string& path, const F& f) {
  const py::buffer_info info = text.request();
  if (info.ndim != 1 || info.itemsize != 1 || (info.size > 0 && info.strides[0] != 1)) {
    throw py::type_error("_C: the buffer must be contiguous bytes");
  }
  const char* begin = static_cast<const char*>(info.ptr);
  try {
    py::gil_scoped_release release;
    f(begin, begin + info.size);
  } catch (const mach::xmc::ParseError& error) {
    const std::string line = error.line > 0 ? ", line " + std::to_string(error.line) : "";
    throw py::value_error(path + line + ": " + error.rule + ", got '" + error.got + "'");
  }
}

py::tuple parse(const py::buffer& text, const Options& options, const std::string& path) {
  Document document;
  on_bytes(text, path,
           [&](const char* begin, const char* end) { document = mach::xmc::parse(begin, end, options); });
  return py::make_tuple(to_numpy(document.labels.indptr), to_numpy(document.labels.indices),
                        to_numpy(document.features.indptr), to_numpy(document.features.indices),
                        to_numpy(document.features.values), document.rows, document.num_features,
                        document.num_labels);
}

py::tuple parse_xmc(const py::buffer& text, int num_threads, const std::string& path) {
  Options options;
  options.threads = num_threads;
  return parse(text, options, path);
}

py::tuple parse_lines(const py::buffer& text, int64_t num_features, int64_t num_labels, int64_t first_line,
                      bool svmlight, int num_threads, const std::string& path) {
  Options options;
  options.header = false;
  options.svmlight = svmlight;
  options.num_features = num_features;
  options.num_labels = num_labels;
  options.first_line = first_line;
  options.threads = num_threads;
  return parse(text, options, path);
}

py::tuple parse_header(const py::buffer& text, const std::string& path) {
  mach::xmc::Header header;
  on_bytes(text, path, [&](const char* begin, const char* end) {
    mach::xmc::parse_header(mach::xmc::skip_mark(begin, end), end, 1, header);
  });
  return py::make_tuple(header.documents, header.features, header.labels);
}

template <class T>
using Input = py::array_t<T, py::array::c_style>;

py::bytes format_lines(const Input<int64_t>& label_indptr, const Input<int32_t>& label_indices,
                       const Input<int64_t>& indptr, const Input<int32_t>& indices,
                       const Input<float>& values) {
  const py::ssize_t rows = indptr.size() - 1;
  if (rows < 0 || label_indptr.size() != rows + 1 || indices.size() != values.size()) {
    throw py::value_error("format_lines: both indptr must have rows + 1 entries, indices and values as many");
  }
  std::string text;
  {
    py::gil_scoped_release release;
    text = mach::xmc::format(rows, label_indptr.data(), label_indices.data(), indptr.data(), indices.data(),
                             values.data());
  }
  return py::bytes(text);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "g++ " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#ifdef NDEBUG
  info["build_type"] = "release";
#else
  info["build_type"] = "debug";
#endif
  info["cxx_standard"] = static_cast<long>(__cplusplus);
#ifdef MACH_VERSION  // string literals, set by the build
  info["version"] = MACH_VERSION;
#endif
#ifdef MACH_TORCH_VERSION
  info["torch_version"] = MACH_TORCH_VERSION;
#endif
#ifdef MACH_CUDA_NOTE  // with which CUDA the operators were built, or why without
  info["cuda"] = MACH_CUDA_NOTE;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled XMC text parser and build facts; see xmc_parser.h.";
  m.def(
      "parse_xmc", &parse_xmc, py::arg("buffer"), py::arg("num_threads") = 0, py::arg("path") = "text",
      "XMC text with its `N D L` header -> (label indptr, label indices, indptr, indices, values, N, D, L).");
  m.def("parse_lines", &parse_lines, py::arg("buffer"), py::arg("num_features") = mach::xmc::kOpen,
        py::arg("num_labels") = mach::xmc::kOpen, py::arg("first_line") = 1, py::arg("svmlight") = false,
        py::arg("num_threads") = 0, py::arg("path") = "text",
        "The same for lines without a header; sizes left open (-1) become the largest id + 1.");
  m.def("parse_header", &parse_header, py::arg("buffer"), py::arg("path") = "text",
        "The first line `N D L` -> (N, D, L).");
  m.def("format_lines", &format_lines, py::arg("label_indptr"), py::arg("label_indices"), py::arg("indptr"),
        py::arg("indices"), py::arg("values"), "Rows of two CSR matrices -> XMC document lines.");
  m.attr("MAX_LINE") = mach::xmc::kMaxLine;
  m.def("build_info", &build_info, "Compiler, build type, language standard and versions of this build.");
}
