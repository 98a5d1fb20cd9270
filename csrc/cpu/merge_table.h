// Memory for the large tables of merge_topk's scan and direct path.
#pragma once

#include <cstdint>
#include <memory>

#include "label_index.h"
#include "memory.h"

namespace mach {

constexpr int64_t kWidth = 64;             // documents in a scan
constexpr int64_t kTableBytes = 12 << 20;  // of byte tables, for scans that go through the codes together

// The number of rows to allocate for a table of `rows` rows, B for each repetition, so that any code stays
// inside.
constexpr int64_t table_rows(int64_t rows, int64_t B) { return rows + (B < kMaxCodes ? kMaxCodes - B : 0); }

// Memory that is read at random places. It lies on huge pages if the system has them, so that address
// translation is cheap. It is kept for the next use, so that the pages are made once. Rows that are never
// touched (table_rows()) take no physical memory.
class Table {
 public:
  uint8_t* of(int64_t bytes);
  void release_large();

 private:
  std::unique_ptr<uint8_t, Free> memory_;
  int64_t size_ = 0;
};

// The table of the calling thread. It is kept from call to call unless it is large.
Table& own_table();

}  // namespace mach
