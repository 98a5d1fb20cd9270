// XMC text format <-> CSR. No torch, no Python: pointers in, arrays out.
//
//   file := "N D L" line, then N document lines      (svmlight: no header, '#' comments, optional "qid:n")
//   line := [label {"," label}] {blank index ":" value}
//
// So a line without labels begins with a blank: "1:0.5 2:1", a mistake for labels with weights, is refused.
//
// Two passes over the buffer, cut at line ends into one chunk a thread. Pass 1 counts '\n', ':' and ',',
// which bounds what each chunk can hold; so pass 2 parses every chunk straight into its own slice of the
// final arrays. Slices that were not filled (duplicates, documents without labels) are closed up at the end.
//
// Guarantees: values are the correctly rounded float32 of their decimal text; indices of a row are sorted and
// unique (features summed in double, rounded once); the result and the error do not depend on the number of
// threads: of several errors the first line's is thrown.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mach::xmc {

constexpr int64_t kMaxDimension = std::numeric_limits<int32_t>::max();
constexpr int64_t kOpen = -1;  // a dimension that ends with the largest id there is

// A line without end, as in a damaged file or in one that expands without limit, is refused before a reader
// by blocks needs memory for all of it. A document of 2^28 bytes would have tens of millions of features.
constexpr int64_t kMaxLine = int64_t{1} << 28;

// Line `line` (1-based; 0: the whole text) breaks `rule`; `got` is what stood there, in printable ASCII.
struct ParseError : std::runtime_error {
  ParseError(int64_t line, std::string rule, std::string got)
      : std::runtime_error(rule), line(line), rule(std::move(rule)), got(std::move(got)) {}
  int64_t line;
  std::string rule, got;
};

template <class T>
struct Array {  // uninitialised on allocation: pages are touched first by the thread that fills them
  std::unique_ptr<T[]> data;
  int64_t size = 0;
  void allocate(int64_t n) {
    data.reset(new T[static_cast<size_t>(n)]);
    size = n;
  }
};

struct Csr {
  Array<int64_t> indptr;  // [rows + 1]
  Array<int32_t> indices;
  Array<float> values;  // empty for labels
};

struct Document {
  Csr labels, features;
  int64_t rows = 0, num_features = 0, num_labels = 0;
};

struct Options {
  bool svmlight = false;         // '#' comments, "qid:n", blank lines mean nothing
  bool header = true;            // first line is "N D L"
  int64_t num_features = kOpen;  // without header: the dimensions
  int64_t num_labels = kOpen;
  int64_t first_line = 1;  // line number of the buffer's first line
  int threads = 0;         // 0: as many as cores and size make sensible
};

// ---------------------------------------------------------------------------------------------- tokens

inline bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f'; }
inline bool is_digit(char c) { return static_cast<unsigned char>(c - '0') < 10; }

inline const char* skip_blanks(const char* p, const char* end) {
  while (p < end && is_blank(*p)) ++p;
  return p;
}

inline std::string printable(const char* begin, const char* end) {  // up to the next blank, at most 40 bytes
  std::string out;
  for (; begin < end && !is_blank(*begin) && out.size() < 40; ++begin) {
    const auto c = static_cast<unsigned char>(*begin);
    if (c >= 0x20 && c < 0x7f) {
      out += *begin;
    } else {
      const char* hex = "0123456789abcdef";
      out += {'\\', 'x', hex[c >> 4], hex[c & 15]};
    }
  }
  return begin < end && !is_blank(*begin) ? out + "..." : out;
}

// Digits at p -> value; saturates at INT64_MAX. Returns p itself when there is no digit.
inline const char* scan_integer(const char* p, const char* end, int64_t& value) {
  uint64_t v = 0;
  const char* begin = p;
  for (; p < end && is_digit(*p); ++p) v = v * 10 + static_cast<uint64_t>(*p - '0');
  if (p - begin > 18) {  // rare: leading zeros, or too large for 64 bits
    const char* first = begin;
    while (first < p && *first == '0') ++first;
    if (p - first > 18) v = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  }
  value = static_cast<int64_t>(v);
  return p;
}

enum class Number { kOk, kNotANumber, kNotFinite };

// Decimal text -> correctly rounded float32. Up to 2^53 of digits with a power of ten up to 22 are exact in
// double arithmetic (one rounding); that double, rounded again, is the right float unless it lies midway
// between two floats. Everything else goes through std::from_chars.
inline const char* scan_float(const char* p, const char* end, float& value, Number& status) {
  static constexpr double kPowers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                       1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  const bool negative = p < end && *p == '-';
  if (p < end && (*p == '-' || *p == '+')) ++p;
  const char* number = p;  // without sign

  uint64_t digits = 0;
  for (; p < end && is_digit(*p); ++p) digits = digits * 10 + static_cast<uint64_t>(*p - '0');
  int64_t count = p - number, exponent = 0;
  if (p < end && *p == '.') {
    const char* fraction = ++p;
    for (; p < end && is_digit(*p); ++p) digits = digits * 10 + static_cast<uint64_t>(*p - '0');
    exponent = fraction - p;
    count -= exponent;
  }
  if (count == 0) {  // not digits: "nan" and "inf" have a rule of their own
    double other = 0;
    const char* after = std::from_chars(number, end, other).ptr;
    status = std::isfinite(other) ? Number::kNotANumber : Number::kNotFinite;
    return after;
  }
  const int64_t point = exponent;  // minus the digits after the point
  if (p + 1 < end && (*p == 'e' || *p == 'E')) {
    const char* q = p + 1;
    const bool minus = *q == '-';
    if (*q == '-' || *q == '+') ++q;
    int64_t e = 0;
    const char* after = scan_integer(q, end, e);
    if (after > q) {
      e = std::min<int64_t>(e, 1'000'000'000);
      exponent += minus ? -e : e;
      p = after;
    }
  }

  status = Number::kOk;
  if (count <= 19 && digits < (uint64_t{1} << 53) && exponent >= -22 && exponent <= 22) {
    const double exact = static_cast<double>(digits);
    const double d = exponent < 0 ? exact / kPowers[-exponent] : exact * kPowers[exponent];
    uint64_t bits;
    std::memcpy(&bits, &d, sizeof bits);
    const bool midway = (bits & 0x1fffffff) == 0x10000000;
    if (digits == 0 || (!midway && d >= std::numeric_limits<float>::min() && d < 1e38)) {
      value = static_cast<float>(negative ? -d : d);
      return p;
    }
  }
  float f = 0;
  const auto parsed = std::from_chars(number, p, f);
  if (parsed.ec == std::errc::result_out_of_range) {
    // Too small (then it is 0) or too large: the position of the first digit that counts decides.
    const char* first = std::find_if(number, p, [](char c) { return c != '0' && c != '.'; });
    const char* whole_end = std::find_if_not(number, p, is_digit);
    const int64_t magnitude = whole_end - first + (exponent - point);  // of the decimal exponent, within 1
    f = magnitude < 0 ? 0.0f : std::numeric_limits<float>::infinity();
  }
  if (!std::isfinite(f)) status = Number::kNotFinite;
  value = negative ? -f : f;
  return p;
}

// ---------------------------------------------------------------------------------------------- lines

struct Chunk {
  const char *begin, *end;
  int64_t lines = 0, colons = 0, commas = 0;                  // pass 1
  int64_t first_row = 0, first_label = 0, first_feature = 0;  // where pass 2 writes
  int64_t rows = 0, labels = 0, features = 0;                 // what it wrote
  int64_t first_line = 0;
};

inline void count(Chunk& chunk) {
  const char* p = chunk.begin;
  while (p < chunk.end) {  // blocks of 255 so that byte counters, which the compiler vectorises, can't wrap
    const char* stop = p + std::min<ptrdiff_t>(255, chunk.end - p);
    uint8_t lines = 0, colons = 0, commas = 0;
    for (; p < stop; ++p) {
      lines += *p == '\n';
      colons += *p == ':';
      commas += *p == ',';
    }
    chunk.lines += lines;
    chunk.colons += colons;
    chunk.commas += commas;
  }
  if (chunk.begin < chunk.end && chunk.end[-1] != '\n') ++chunk.lines;
}

inline void sort_features(int32_t* indices, float* values, int64_t& size) {
  std::vector<std::pair<int32_t, float>> row(static_cast<size_t>(size));
  for (size_t i = 0; i < row.size(); ++i) row[i] = {indices[i], values[i]};
  std::stable_sort(row.begin(), row.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  size = 0;
  for (size_t i = 0; i < row.size();) {
    double sum = static_cast<double>(row[i].second);  // not 0, which would take the sign of a -0
    size_t j = i + 1;
    for (; j < row.size() && row[j].first == row[i].first; ++j) sum += static_cast<double>(row[j].second);
    indices[size] = row[i].first;
    values[size++] = static_cast<float>(sum);
    i = j;
  }
}

// One document line [begin, end) -> labels and features at the given places; the counts come back.
inline void parse_line(const char* begin, const char* end, int64_t line, const Options& options,
                       int32_t* labels, int64_t& num_labels, int32_t* indices, float* values,
                       int64_t& num_indices) {
  const char* token = skip_blanks(begin, end);
  const char* p = token;
  const auto fail = [&](std::string rule) { throw ParseError(line, std::move(rule), printable(token, end)); };
  const auto bound = [&](const char* name, const char* size, int64_t limit) {
    fail(std::string(name) + " must be below " +
         (options.header           ? std::string(size) + " = " + std::to_string(limit) + " (the header's)"
          : limit == kMaxDimension ? "2^31 - 1"
                                   : std::string(size) + " = " + std::to_string(limit)));
  };
  int64_t id = 0;
  num_labels = num_indices = 0;
  if (p == end) return;

  // What stands at the first column are labels. In svmlight files blanks may come before them.
  bool sorted = true;
  const char* stop = std::find_if(p, end, [](char c) { return c == ':' || is_blank(c); });
  const bool is_feature = stop < end && *stop == ':';
  const bool is_qid = options.svmlight && end - p >= 4 && std::memcmp(p, "qid:", 4) == 0;
  if (is_feature && !is_qid && token == begin) {
    fail("a line must begin with its labels, or with a blank where it has none");
  }
  const bool has_labels = !is_feature && (options.svmlight || token == begin);
  while (has_labels) {
    const char* after = scan_integer(p, end, id);
    if (after == p || (after < end && *after != ',' && !is_blank(*after))) {
      fail("a label must be a non-negative integer");
    }
    if (id >= options.num_labels) bound("a label", "L", options.num_labels);
    sorted = sorted && (num_labels == 0 || labels[num_labels - 1] < id);
    labels[num_labels++] = static_cast<int32_t>(id);
    p = after;
    if (p == end || is_blank(*p)) break;
    ++p;  // the comma
    if (p < end && !is_blank(*p)) token = p;
  }
  if (!sorted) {
    std::sort(labels, labels + num_labels);
    num_labels = std::unique(labels, labels + num_labels) - labels;
  }

  sorted = true;
  for (bool may_be_qid = options.svmlight;; may_be_qid = false) {
    token = p = skip_blanks(p, end);
    if (p == end) break;
    if (may_be_qid && end - p >= 4 && std::memcmp(p, "qid:", 4) == 0) {
      p = scan_integer(token + 4, end, id);
      if (p == token + 4 || (p < end && !is_blank(*p))) fail("a qid must be a non-negative integer");
      continue;
    }
    const char* colon = scan_integer(p, end, id);
    if (colon == p || (colon < end && *colon != ':' && !is_blank(*colon))) {
      fail("a feature must be idx:value with a non-negative integer idx");
    }
    if (colon == end || *colon != ':') fail("a feature must be idx:value, the colon is missing");
    if (id >= options.num_features) bound("a feature", "D", options.num_features);
    if (colon + 1 == end || is_blank(colon[1])) fail("a feature must be idx:value, the value is missing");
    Number status;
    float value = 0;
    p = scan_float(colon + 1, end, value, status);
    if (status == Number::kNotANumber || (p < end && !is_blank(*p))) fail("a value must be a decimal number");
    if (status == Number::kNotFinite) fail("a value must be finite and fit float32");
    sorted = sorted && (num_indices == 0 || indices[num_indices - 1] < id);
    indices[num_indices] = static_cast<int32_t>(id);
    values[num_indices++] = value;
  }
  if (!sorted) {
    token = end;
    sort_features(indices, values, num_indices);
    for (int64_t i = 0; i < num_indices; ++i) {
      if (!std::isfinite(values[i])) {
        const std::string index = std::to_string(indices[i]);
        throw ParseError(line, "the sum of a feature's values must fit float32", "feature " + index);
      }
    }
  }
}

inline void parse_chunk(Chunk& chunk, const Options& options, Document& out) {
  const char* p = chunk.begin;
  for (int64_t line = chunk.first_line; p < chunk.end; ++line) {
    const auto* newline = static_cast<const char*>(std::memchr(p, '\n', static_cast<size_t>(chunk.end - p)));
    const char* next = newline ? newline + 1 : chunk.end;
    const char* end = newline ? newline : chunk.end;
    if (end - p > kMaxLine) {
      throw ParseError(line, "a line must have at most " + std::to_string(kMaxLine) + " bytes", "more");
    }
    if (options.svmlight) {
      end = std::find(p, end, '#');
      if (skip_blanks(p, end) == end) {
        p = next;
        continue;
      }
    }
    int64_t labels, features;
    parse_line(p, end, line, options, out.labels.indices.data.get() + chunk.first_label + chunk.labels,
               labels, out.features.indices.data.get() + chunk.first_feature + chunk.features,
               out.features.values.data.get() + chunk.first_feature + chunk.features, features);
    chunk.labels += labels;
    chunk.features += features;
    const int64_t row = chunk.first_row + chunk.rows++;  // counts for now, running sums later
    out.labels.indptr.data[row + 1] = labels;
    out.features.indptr.data[row + 1] = features;
    p = next;
  }
}

// ---------------------------------------------------------------------------------------------- texts

// f(0) ... f(n - 1), each on a thread of its own; the lowest one's exception is thrown.
inline void parallel(size_t n, const std::function<void(size_t)>& f) {
  std::vector<std::exception_ptr> errors(n);
  const auto guarded = [&](size_t i) {
    try {
      f(i);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(n);
  for (size_t i = 1; i < n; ++i) {
    try {
      threads.emplace_back(guarded, i);
    } catch (const std::exception&) {  // no more threads, or no memory for one, to be had: do it here
      guarded(i);
    }
  }
  if (n > 0) guarded(0);
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

template <class T>
void close_up(T* data, const std::vector<Chunk>& chunks, int64_t Chunk::* from, int64_t Chunk::* size) {
  int64_t to = 0;
  for (const Chunk& chunk : chunks) {
    if (to != chunk.*from) {
      std::memmove(data + to, data + chunk.*from, static_cast<size_t>(chunk.*size) * sizeof(T));
    }
    to += chunk.*size;
  }
}

struct Header {
  int64_t documents = 0, features = 0, labels = 0;
};

// The text's first line; returns where the next one starts.
inline const char* parse_header(const char* p, const char* end, int64_t line, Header& header) {
  const char* line_end = std::find(p, end, '\n');
  std::string got;  // the line, blanks as one
  for (const char* q = skip_blanks(p, line_end); q < line_end && got.size() < 40;
       q = skip_blanks(q, line_end)) {
    got += (got.empty() ? "" : " ") + printable(q, line_end);
    q = std::find_if(q, line_end, is_blank);
  }
  bool good = true;
  for (int64_t* field : {&header.documents, &header.features, &header.labels}) {
    p = skip_blanks(p, line_end);
    const char* after = scan_integer(p, line_end, *field);
    good = good && after > p && (after == line_end || is_blank(*after));
    p = after;
  }
  if (!good || skip_blanks(p, line_end) != line_end) {
    throw ParseError(line, "the header must be three counts 'N D L' (documents, features, labels)", got);
  }
  if (header.features > kMaxDimension || header.labels > kMaxDimension) {
    throw ParseError(line, "the header's D and L must be below 2^31", got);
  }
  return line_end == end ? end : line_end + 1;
}

inline const char* skip_mark(const char* begin, const char* end) {  // of the byte order
  return end - begin >= 3 && std::memcmp(begin, "\xef\xbb\xbf", 3) == 0 ? begin + 3 : begin;
}

inline Document parse(const char* begin, const char* end, Options options) {
  const char* p = options.first_line == 1 ? skip_mark(begin, end) : begin;
  const std::string bytes = std::to_string(end - begin);
  const ParseError empty(0, "the file must not be empty", bytes + " bytes without a document");
  Document out;
  Header header;
  if (options.header) {
    if (std::all_of(p, end, [](char c) { return c == '\n' || is_blank(c); })) throw empty;
    p = parse_header(p, end, options.first_line++, header);
    options.num_features = header.features;
    options.num_labels = header.labels;
  }
  const bool features_open = options.num_features == kOpen, labels_open = options.num_labels == kOpen;
  if (features_open) options.num_features = kMaxDimension;
  if (labels_open) options.num_labels = kMaxDimension;

  // Chunks of about equal size, cut after a line end.
  int64_t threads = options.threads;
  if (threads <= 0) {
    threads = std::min<int64_t>(std::max(1u, std::thread::hardware_concurrency()), (end - p) >> 20);
  }
  threads = std::clamp<int64_t>(threads, 1, 1024);
  std::vector<Chunk> chunks(static_cast<size_t>(threads));
  for (int64_t i = 0; i < threads; ++i) {
    const char* stop = i + 1 == threads ? end : p + (end - p) / (threads - i);
    if (stop < end) stop = std::find(stop, end, '\n');
    if (stop < end) ++stop;
    chunks[static_cast<size_t>(i)].begin = p;
    chunks[static_cast<size_t>(i)].end = stop;
    p = stop;
  }
  parallel(chunks.size(), [&](size_t i) { count(chunks[i]); });

  int64_t lines = 0, labels = 0, features = 0;
  for (Chunk& chunk : chunks) {
    chunk.first_line = options.first_line + lines;
    chunk.first_row = lines;
    chunk.first_label = labels;
    chunk.first_feature = features;
    lines += chunk.lines;
    labels += chunk.lines + chunk.commas;
    features += chunk.colons;
  }
  out.labels.indptr.allocate(lines + 1);
  out.labels.indices.allocate(labels);
  out.features.indptr.allocate(lines + 1);
  out.features.indices.allocate(features);
  out.features.values.allocate(features);
  parallel(chunks.size(), [&](size_t i) { parse_chunk(chunks[i], options, out); });

  close_up(out.labels.indices.data.get(), chunks, &Chunk::first_label, &Chunk::labels);
  close_up(out.features.indices.data.get(), chunks, &Chunk::first_feature, &Chunk::features);
  close_up(out.features.values.data.get(), chunks, &Chunk::first_feature, &Chunk::features);
  for (Csr* csr : {&out.labels, &out.features}) {
    close_up(csr->indptr.data.get() + 1, chunks, &Chunk::first_row, &Chunk::rows);
  }
  for (const Chunk& chunk : chunks) out.rows += chunk.rows;
  if (options.svmlight && out.rows == 0) throw empty;
  for (Csr* csr : {&out.labels, &out.features}) {
    int64_t* indptr = csr->indptr.data.get();
    indptr[0] = 0;
    for (int64_t row = 0; row < out.rows; ++row) indptr[row + 1] += indptr[row];
    csr->indices.size = indptr[out.rows];
  }
  out.features.values.size = out.features.indices.size;

  if (options.header) {
    // An empty line is a document without labels and features, but more of them than promised are just the
    // end of the file.
    const int64_t *l = out.labels.indptr.data.get(), *f = out.features.indptr.data.get();
    while (out.rows > header.documents && l[out.rows] == l[out.rows - 1] && f[out.rows] == f[out.rows - 1])
      --out.rows;
    if (out.rows != header.documents) {
      throw ParseError(
          options.first_line - 1,
          "the header's N = " + std::to_string(header.documents) + " must be the number of documents",
          std::to_string(out.rows) + " documents");
    }
  }
  const auto past_last = [](const Csr& csr) -> int64_t {
    const int32_t* first = csr.indices.data.get();
    return csr.indices.size == 0 ? 0 : *std::max_element(first, first + csr.indices.size) + int64_t{1};
  };
  out.num_features = features_open ? past_last(out.features) : options.num_features;
  out.num_labels = labels_open ? past_last(out.labels) : options.num_labels;
  out.labels.indptr.size = out.features.indptr.size = out.rows + 1;
  return out;
}

// ---------------------------------------------------------------------------------------------- writing

// Rows of two CSR matrices -> document lines; values in the shortest text that reads back as the same
// float32.
inline std::string format(int64_t rows, const int64_t* label_indptr, const int32_t* label_indices,
                          const int64_t* indptr, const int32_t* indices, const float* values) {
  std::string out;
  out.reserve(
      static_cast<size_t>((indptr[rows] - indptr[0]) * 16 + (label_indptr[rows] - label_indptr[0]) * 8));
  char buffer[32];
  const auto append = [&](auto number) {
    out.append(buffer, std::to_chars(buffer, buffer + sizeof buffer, number).ptr);
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = label_indptr[row]; i < label_indptr[row + 1]; ++i) {
      if (i > label_indptr[row]) out += ',';
      append(label_indices[i]);
    }
    for (int64_t i = indptr[row]; i < indptr[row + 1]; ++i) {
      out += ' ';
      append(indices[i]);
      out += ':';
      append(values[i]);
    }
    out += '\n';
  }
  return out;
}

}  // namespace mach::xmc
