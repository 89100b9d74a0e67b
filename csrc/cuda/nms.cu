// Greedy non-maximum suppression on CUDA, over images and groups at once, without a wait for the device.
//
// Boxes are ranked (valid first, best score first) by torch's stable sort. Panels of up to kMostRanks ranks follow one another: all
// multiprocessors fill a bit matrix of who would suppress whom, then one block an image decides the panel's ranks in order
// and strikes out what they suppress. Memory is bounded by the panel, and ranks beyond the valid boxes cost nothing. The
// IoU is the CPU's, operation for operation.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/launch.h"

namespace maskray {
namespace {

using Word = unsigned long long;  // what 64-bit atomics take

constexpr int kBits = 64;            ///< ranks in a word
constexpr int64_t kMostRanks = 4096;  ///< of a panel: ranks decided between two fillings of the matrix
constexpr int64_t kMostWords = 32 << 20;  ///< of the matrix (256 MiB): larger batches get smaller panels
constexpr int kThreads = 256;
constexpr int kDeciders = 512;       ///< threads of the block that decides
constexpr int kFillBlocks = 4096;    ///< enough to keep every multiprocessor busy
constexpr int64_t kMostBoxes = 262144;  ///< 32 KiB of struck-out bits in shared memory

struct Job {
  const float4* boxes;
  const float* scores;
  const int64_t* groups;
  const bool* valid;
  const int64_t* order;  ///< [images, count]: which box has a rank
  int64_t* keys;         ///< [images, count]: ascending is best first
  int* num_valid;        ///< [images]
  Word* matrix;          ///< [images, panel, words]: whom each rank of the panel would suppress
  Word* gone;            ///< [images, words]: ranks struck out so far
  bool* keep;
  int64_t images, count, words;
  int64_t room;                ///< ranks the matrix has room for, a multiple of 64
  int64_t panel, panel_ranks;  ///< first rank of the panel, and how many it has
  float threshold;
};

/// Sort key of a box: valid first, then the highest score; NaN counts as the highest, as in torch.sort, and -0 as 0.
__device__ int64_t key_of(bool valid, float score) {
  const float plain = score == 0.0f ? 0.0f : score;
  const uint32_t bits = __float_as_uint(plain);
  // Positive numbers descend as their bits are inverted; of negative ones the bits ascend as the number descends.
  const uint32_t descending = score != score ? 0U : ((bits & 0x80000000U) != 0U ? bits : bits ^ 0x7fffffffU);
  return static_cast<int64_t>(descending) | (valid ? 0 : int64_t{1} << 32);
}

__global__ void __launch_bounds__(kThreads) make_keys(const __grid_constant__ Job job) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < job.images * job.count; i += stride) {
    job.keys[i] = key_of(job.valid[i], job.scores[i]);
    if (job.valid[i]) {
      atomicAdd(job.num_valid + i / job.count, 1);  // whole numbers: any order gives the same
    }
  }
}

// std::max and std::min, which fix what NaN does.
__device__ __forceinline__ float larger(float a, float b) { return a < b ? b : a; }
__device__ __forceinline__ float smaller(float a, float b) { return b < a ? b : a; }
__device__ __forceinline__ float area_of(const float4& box) { return (box.z - box.x) * (box.w - box.y); }

__device__ __forceinline__ bool suppresses(const float4& best, const float4& other, float threshold) {
  const float w = larger(0.0f, smaller(best.z, other.z) - larger(best.x, other.x));
  const float h = larger(0.0f, smaller(best.w, other.w) - larger(best.y, other.y));
  const float inter = w * h;
  return inter / (area_of(other) + area_of(best) - inter) > threshold;
}

/// Fill the matrix: a block takes 64 ranks of the panel against 64 ranks at a time, a thread one rank. blockIdx.y: image.
__global__ void __launch_bounds__(kBits) fill_matrix(const __grid_constant__ Job job) {
  __shared__ float4 boxes[kBits];
  __shared__ int64_t groups[kBits];
  const int64_t image = blockIdx.y, first = image * job.count;
  const int64_t valid = job.num_valid[image];
  const int64_t columns = (valid + kBits - 1) / kBits;
  const int64_t first_row = job.panel / kBits;
  const int64_t last_row = min((job.panel + job.panel_ranks + kBits - 1) / kBits, columns);
  const int64_t tiles = last_row > first_row ? (last_row - first_row) * columns : 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t row = first_row + tile / columns, column = tile % columns;
    if (column < row) {
      continue;  // lower ranks are decided already
    }
    __syncthreads();  // the tile before is read
    const int64_t other = column * kBits + threadIdx.x;
    if (other < valid) {
      const int64_t box = first + job.order[first + other];
      boxes[threadIdx.x] = job.boxes[box];
      groups[threadIdx.x] = job.groups[box];
    }
    __syncthreads();
    const int64_t rank = row * kBits + threadIdx.x;
    if (rank >= valid) {
      continue;
    }
    const int64_t own = first + job.order[first + rank];
    const float4 best = job.boxes[own];
    const int64_t group = job.groups[own];
    Word word = 0;
    const int end = static_cast<int>(min(static_cast<int64_t>(kBits), valid - column * kBits));
    for (int i = column == row ? threadIdx.x + 1 : 0; i < end; ++i) {
      if (groups[i] == group && suppresses(best, boxes[i], job.threshold)) {
        word |= Word{1} << i;
      }
    }
    job.matrix[(image * job.room + rank - job.panel) * job.words + column] = word;
  }
}

/// Decide the ranks of the panel in order. A block is an image; the struck-out bits are in shared memory meanwhile.
__global__ void __launch_bounds__(kDeciders) decide(const __grid_constant__ Job job) {
  extern __shared__ Word gone[];
  __shared__ Word own[kBits];
  __shared__ Word kept;
  const int64_t image = blockIdx.x, first = image * job.count;
  const int64_t valid = job.num_valid[image];
  const int64_t columns = (valid + kBits - 1) / kBits;
  const int64_t end = min(job.panel + job.panel_ranks, valid);
  if (job.panel >= end) {
    return;
  }
  for (int64_t i = threadIdx.x; i < columns; i += kDeciders) {
    gone[i] = job.gone[image * job.words + i];
  }
  const Word* matrix = job.matrix + image * job.room * job.words;
  for (int64_t rank = job.panel; rank < end; rank += kBits) {
    const int64_t column = rank / kBits;
    const Word* rows = matrix + (rank - job.panel) * job.words;
    const int ranks = static_cast<int>(min(static_cast<int64_t>(kBits), end - rank));
    __syncthreads();  // the bits struck out by the ranks before are there
    if (threadIdx.x < ranks) {
      own[threadIdx.x] = rows[threadIdx.x * job.words + column];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const Word all = ranks == kBits ? ~Word{0} : (Word{1} << ranks) - 1;
      Word open = all & ~gone[column];
      Word decided = 0;
      while (open != 0) {
        const int best = __ffsll(static_cast<long long>(open)) - 1;
        decided |= Word{1} << best;
        open &= ~(own[best] | Word{1} << best);
      }
      kept = decided;
    }
    __syncthreads();
    if (threadIdx.x < ranks) {
      job.keep[first + job.order[first + rank + threadIdx.x]] = (kept >> threadIdx.x & 1) != 0;
    }
    // A warp takes every 16th kept rank and strikes out, a lane a word: `or` in any order gives the same.
    for (int i = threadIdx.x / 32; i < ranks; i += kDeciders / 32) {
      if ((kept >> i & 1) != 0) {
        for (int64_t c = column + 1 + threadIdx.x % 32; c < columns; c += 32) {
          const Word word = rows[i * job.words + c];
          if (word != 0) {
            atomicOr(gone + c, word);
          }
        }
      }
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < columns; i += kDeciders) {
    job.gone[image * job.words + i] = gone[i];
  }
}

/// The largest float32 that is not above `threshold`: comparing with it equals comparing with the double.
float round_down(double threshold) {
  const float nearest = static_cast<float>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafterf(nearest, -std::numeric_limits<float>::infinity())
                                                  : nearest;
}

/// Boxes [B, N, 4], scores [B, N], groups [B, N], valid [B, N] -> keep [B, N].
Tensor nms(Tensor boxes, Tensor scores, Tensor groups, Tensor valid, double iou_threshold) {
  using torch::headeronly::ScalarType;
  const OnDeviceOf device(boxes);
  boxes = torch::stable::contiguous(boxes);
  if (reinterpret_cast<uintptr_t>(boxes.const_data_ptr()) % sizeof(float4) != 0) {
    boxes = torch::stable::clone(boxes);  // a slice that starts between two boxes; fresh memory is aligned
  }
  scores = torch::stable::contiguous(scores);
  groups = torch::stable::contiguous(groups);
  valid = torch::stable::contiguous(valid);
  Tensor keep = torch::stable::empty_like(valid);
  const int64_t images = valid.size(0), count = valid.size(1), words = (count + kBits - 1) / kBits;
  check(count <= kMostBoxes && images <= 65535, "nms got ", images, " x ", count, " boxes, CUDA takes at most 65535 x ",
        kMostBoxes, ": drop the lowest scores first");
  const auto fresh = [&boxes](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::empty(shape, type, std::nullopt, boxes.device());
  };
  device.clear(keep.mutable_data_ptr(), images * count);
  if (images == 0 || count == 0) {
    return keep;
  }
  const Tensor keys = fresh({images, count}, ScalarType::Long), num_valid = fresh({images}, ScalarType::Int);
  const Tensor gone = fresh({images, words}, ScalarType::Long);
  const int64_t fitting = std::max<int64_t>(kMostWords / (images * words) / kBits, 1) * kBits;
  const int64_t room = std::min({fitting, kMostRanks, words * kBits});
  const Tensor matrix = fresh({images, room, words}, ScalarType::Long);
  Job job{static_cast<const float4*>(boxes.const_data_ptr()), scores.const_data_ptr<float>(),
          groups.const_data_ptr<int64_t>(), valid.const_data_ptr<bool>(), nullptr, keys.mutable_data_ptr<int64_t>(),
          num_valid.mutable_data_ptr<int32_t>(), static_cast<Word*>(matrix.mutable_data_ptr()),
          static_cast<Word*>(gone.mutable_data_ptr()), keep.mutable_data_ptr<bool>(), images, count, words, room, 0, 0,
          round_down(iou_threshold)};
  device.clear(job.num_valid, images * static_cast<int64_t>(sizeof(int)));
  device.clear(job.gone, images * words * static_cast<int64_t>(sizeof(Word)));
  device.launch(make_keys, blocks_for(images * count, kThreads), kThreads, job);
  const Tensor order = std::get<1>(torch::stable::sort(keys, true, 1, false));
  job.order = order.const_data_ptr<int64_t>();
  for (job.panel = 0; job.panel < count; job.panel += room) {
    job.panel_ranks = std::min(room, count - job.panel);
    const int64_t tiles = (job.panel_ranks + kBits - 1) / kBits * words;
    const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(tiles, kFillBlocks)), static_cast<unsigned>(images));
    device.launch(fill_matrix, blocks, kBits, job);
    device.launch_with(words * static_cast<int64_t>(sizeof(Word)), decide, static_cast<unsigned>(images), kDeciders, job);
  }
  return keep;
}

}  // namespace
}  // namespace maskray

STABLE_TORCH_LIBRARY_IMPL(maskray, CUDA, m) { m.impl("nms", TORCH_BOX(&maskray::nms)); }
