// A launch, from its checks to its end. Several blocks are there at the same time, two to four of them by the
// seed and by what they take; the scheduler goes from one to the other. Seed 0: one after the other.
// MACH_SHIM_SHARED_KB: a device with less shared memory (64: sm_75, 99: sm_86 and sm_89, 163: sm_80).
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "shim.h"

namespace mach_shim {
namespace {

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

struct Totals {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0;
  uint64_t busy = 0;  // blocks that did some 64 atomic operations, which tells of work
};
std::mutex one_launch;
std::map<std::string, Totals> totals;
std::deque<std::string> events;
std::string last_error;

std::string plain(const char* name) {  // (kernel<T, 3>) -> kernel
  std::string out = name;
  while (!out.empty() && (out[0] == '(' || out[0] == ' ')) out.erase(0, 1);
  return out.substr(0, out.find_first_of("<) "));
}

// The numbers of a launch's blocks, each once: number i is (first + i * step) mod n; seed 0: i.
class Order {
 public:
  explicit Order(uint64_t n) : n_(n), left_(n) {
    if (seed == 0) return;
    at_ = draw_bits() % n;
    do step_ = n > 2 ? 1 + draw_bits() % (n - 1) : 1;
    while (std::gcd(step_, n) != 1);
  }
  bool next(uint64_t& number) {
    if (left_ == 0) return false;
    --left_;
    number = at_;
    at_ = (at_ + step_) % n_;
    return true;
  }

 private:
  uint64_t n_, left_, at_ = 0, step_ = 1;
};

// How many blocks are there at the same time: their threads and shared memory are those of a multiprocessor,
// or of two where a block takes more than half of one.
unsigned draw_resident() {
  if (seed == 0) return 1;
  unsigned most = kMaxResident;
  while (most > 2 && (most * launch_.num_threads > 1024 || most * launch_.shared_size > kMaxShared)) --most;
  return 2 + draw(most - 1);
}

void open_block(Block& block, uint64_t number) {
  here = &block;
  block.index = {static_cast<unsigned>(number % gridDim.x),
                 static_cast<unsigned>(number / gridDim.x % gridDim.y),
                 static_cast<unsigned>(number / gridDim.x / gridDim.y)};
  block.number = static_cast<uint32_t>(number);
  block.ready_begin = block.ready_size = block.num_preemptions = 0;
  block.barrier.arrived = 0;
  block.barrier.total = 0;
  for (unsigned w = 0; w <= (launch_.num_threads - 1) / 32; ++w)
    block.warps[w].open = block.warps[w].used = 0;
  for (unsigned t = 0; t < launch_.num_threads; ++t) {
    block.threads[t].ended = false;
    block.ready[t] = t;
  }
  block.ready_size = launch_.num_threads;
  block.num_alive = launch_.num_threads;
  open_shared(block);
  if (kRaces) races_begin_block();
  block.live = true;
  ++launch_.num_live;
}

// All blocks, until they are done or there is a fault.
void run_blocks(uint64_t n) {
  Order order(n);
  const unsigned resident = draw_resident();
  for (unsigned b = 0; b < resident; ++b)
    for (unsigned t = 0; t < launch_.num_threads; ++t) {
      Thread& thread = blocks[b].threads[t];
      thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
      thread.copies.forget();
    }
  uint64_t number;
  for (unsigned b = 0; b < resident && order.next(number); ++b) open_block(blocks[b], number);
  while (launch_.num_live > 0) {
    choose_next();
    resume();  // until a block is done or can't go on
    if (!launch_.fault.empty()) return;
    Block& block = *here;
    if (block.num_alive > 0) launch_.fault = stuck();
    if (launch_.fault.empty()) close_shared(block);
    if (!launch_.fault.empty()) return;
    block.live = false;
    --launch_.num_live;
    if (order.next(number)) open_block(block, number);
    for (Block& other : blocks)
      if (!here->live && other.live) here = &other;
  }
}

}  // namespace

uint64_t seed = setting("MACH_SHIM_SEED", 0);
const size_t shared_limit = std::min<size_t>(setting("MACH_SHIM_SHARED_KB", 227) << 10, kMaxShared);

void draw_preemption() { until_preempted = seed ? 1 + draw(16) : 64; }

namespace {
thread_local uintptr_t stream_now = 0;
}

cudaStream_t current_stream() { return reinterpret_cast<cudaStream_t>(stream_now); }
void change_stream() { stream_now += 16; }
void use_stream(cudaStream_t stream) {
  if (stream != current_stream())
    throw std::runtime_error("cuda shim: work goes to a stream that is not the current one");
}

void note(const char* event) {
  if (events.size() == 1000) events.pop_front();
  events.push_back(event);
}

cudaError_t run(const char* name_, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
                void* data) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const std::string name = plain(name_);
  const uint64_t per_block = uint64_t{block.x} * block.y * block.z;
  const auto refuse = [&](cudaError_t error, const char* why) {
    last_error = "cuda shim: kernel " + name + ", grid " + text(grid) + " x block " + text(block) + ", " +
                 std::to_string(shared_bytes) + " bytes of shared memory: " + why;
    return error;
  };
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || per_block == 0)
    return refuse(cudaErrorInvalidConfiguration, "invalid configuration: an extent is 0");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse(cudaErrorInvalidConfiguration,
                  "invalid configuration: grid beyond (2^31 - 1, 65535, 65535)");
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || per_block > kMaxThreads)
    return refuse(cudaErrorInvalidConfiguration, "invalid configuration: more than 1024 threads a block");
  if (shared_bytes > shared_limit)
    return refuse(cudaErrorInvalidValue, "invalid value: more shared memory than a block can have");

  gridDim = grid;
  blockDim = block;
  launch_.kernel = name.c_str();
  launch_.body = body;
  launch_.data = data;
  launch_.num_threads = static_cast<unsigned>(per_block);
  launch_.shared_size = shared_bytes;
  launch_.switches = 0;
  launch_.busy.clear();
  note(launch_.kernel);
  uint64_t& random = launch_.random = seed;
  for (char c : name) random = random * 31 + static_cast<unsigned char>(c);
  random = random * 31 + grid.x;
  random = random * 31 + block.x;
  draw_preemption();
  if (kRaces) races_begin_launch();
  const uint64_t n = uint64_t{grid.x} * grid.y * grid.z;
  {
    const Signals signals;
    run_blocks(n);
  }
  if (!launch_.fault.empty()) {  // fibers that will not go on start anew
    for (Block& b : blocks) {
      if (b.live) give_fibers_back(b);
      b.live = false;
    }
    launch_.num_live = 0;
    const std::string what = std::move(launch_.fault);
    launch_.fault.clear();
    throw std::runtime_error(what);
  }
  Totals& total = totals[name];
  ++total.launches;
  total.blocks += n;
  total.threads += n * launch_.num_threads;
  total.switches += launch_.switches;
  total.busy += launch_.busy.size();
  return cudaSuccess;
}

}  // namespace mach_shim

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return mach_shim::last_error.c_str(); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 4, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(mach_shim::shared_limit), cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = 2048, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = 50 << 20, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

// For Python, by ctypes.
#define MACH_SHIM_API extern "C" __attribute__((visibility("default")))
MACH_SHIM_API void mach_shim_set_seed(uint64_t seed) { mach_shim::seed = seed; }

// "kernel launches blocks threads switches busy" a line; the text stays valid until the next call.
MACH_SHIM_API const char* mach_shim_totals() {
  static std::string out;
  out.clear();
  for (const auto& [name, t] : mach_shim::totals)
    out += name + " " + std::to_string(t.launches) + " " + std::to_string(t.blocks) + " " +
           std::to_string(t.threads) + " " + std::to_string(t.switches) + " " + std::to_string(t.busy) + "\n";
  return out.c_str();
}

// The last launches and waits since the last call, one a line.
MACH_SHIM_API const char* mach_shim_events() {
  static std::string out;
  out.clear();
  for (const std::string& event : mach_shim::events) out += event + "\n";
  mach_shim::events.clear();
  return out.c_str();
}
