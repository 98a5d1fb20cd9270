// Memory for the large tables of merge_topk's scan and direct path.
#pragma once

#include <cstdint>
#include <memory>

#include "label_index.h"
#include "memory.h"

namespace mach {

constexpr int64_t kWidth = 64;             // documents in a scan
constexpr int64_t kTableBytes = 12 << 20;  // of byte tables, for scans that go through the codes together

// Rows to have memory for behind a table's first row, where it has `rows`, B a repetition.
constexpr int64_t table_rows(int64_t rows, int64_t B) { return rows + (B < kMaxCodes ? kMaxCodes - B : 0); }

// Memory that is read all over: on huge pages where the system has them, so that addresses are cheap to find;
// kept from use to use, so that they are made once. What is never touched (table_rows()) takes no memory.
class Table {
 public:
  uint8_t* of(int64_t bytes);
  void release_large();

 private:
  std::unique_ptr<uint8_t, Free> memory_;
  int64_t size_ = 0;
};

// The calling thread's, kept from call to call unless it is large.
Table& own_table();

}  // namespace mach
