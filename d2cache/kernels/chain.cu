// What a layer does between its attention and that of the next layer, for few rows, in one kernel:
// output projection, norm, gate and up, down, norm, the next q, k, v. sm_90a.
//
// Each block has its columns of every matrix. One thread streams weights, another rows, through two
// rings of tiles in shared memory (TMA); GROUPS groups of four warps multiply 64 rows each (wgmma).
// Weights wait for nobody: while the blocks wait for each other between two products, their ring
// fills with tiles of the next, so that memory is always being read. What one block writes and
// others read (rows of d and of MLP elements, sums in parts) goes through the L2 cache.
//
// Macros: WIDTH d, MLP, QKV columns of q, k, v; for each product the columns that a block takes,
// OUT_COLS of d, GATE_COLS of MLP, QKV_COLS, MOST_COLS the largest; PARTS pieces of depth that d
// columns are summed in; GROUPS; W_STAGES and X_STAGES of the rings; BIAS. `mma<N>`, a product of
// 64 x 16 by 16 x N, is given as text.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;

struct alignas(64) Map { char bytes[128]; };  // CUtensorMap

struct Matrices { Map out, gate_up, down, qkv; };  // weights, in tiles of a block's columns
struct Inputs { Map heads, normed, hidden; };      // rows, in tiles of GROUPS x 64
struct Places {
  bf16 *x, *normed, *hidden, *qkv;  // (R,d), (R,d), (R,MLP), (R,QKV)
  float* sums;                      // (PARTS,R,d)
  const bf16 *norm, *next_norm, *bias;
  int* met;  // (5,): blocks that have come to each meeting, zero before the kernel
};

constexpr int DEEP = 64, LINE = 2 * DEEP;  // of K at a time: 128 bytes, a swizzled line
constexpr int X_BYTES = GROUPS * 64 * LINE, W_BYTES = MOST_COLS * LINE;
constexpr int WORKERS = GROUPS * 128;
constexpr u64 STREAM = 0x12F0000000000000ull, KEEP = 0x14F0000000000000ull;  // L2: evict first, last

__device__ __forceinline__ u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void wait(u32 bar, u32 phase) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}" ::"r"(bar), "r"(phase) : "memory");
}

__device__ __forceinline__ void init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}

__device__ __forceinline__ void expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void load(u32 to, const Map& map, int k, int row, u32 bar, u64 keep) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(&map), "r"(k), "r"(row), "r"(bar), "l"(keep)
      : "memory");
}

// A tile of swizzled lines as wgmma wants it described: where, eight lines, the kind of swizzle.
__device__ __forceinline__ u64 tile(u32 at) {
  return (u64)((at & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

__device__ __forceinline__ u32 narrow(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xFFFF0000u); }
__device__ __forceinline__ float rounded(float x) { return low(narrow(x, 0.f)); }

__device__ __forceinline__ void workers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory");
}

__device__ __forceinline__ void tell(int* met) {  // all workers: this block has come
  workers_meet();
  if (threadIdx.x == 0)
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(met) : "memory");
}

__device__ __forceinline__ void all_there(const int* met, int wanted) {  // one thread
  int seen;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(met) : "memory");
  while (seen < wanted);
  asm volatile("fence.proxy.async;" ::: "memory");  // threads wrote it, TMA may read it
}

template <int STAGES, int BYTES>
struct Ring {
  u32 base, full, empty;
  int turn;  // tiles so far, of all products

  __device__ u32 at() const { return base + turn % STAGES * BYTES; }
  __device__ u32 filled() const { return full + 8 * (turn % STAGES); }
  __device__ u32 freed() const { return empty + 8 * (turn % STAGES); }

  // the thread that loads
  __device__ void fill(const Map& map, int k, int row, u32 bytes, u64 keep) {
    if (turn >= STAGES) wait(freed(), (turn / STAGES - 1) & 1);
    expect(filled(), bytes);
    load(at(), map, k, row, filled(), keep);
    turn++;
  }

  // the threads that multiply
  __device__ u64 take() {
    wait(filled(), turn / STAGES & 1);
    return tile(at());
  }
};
using Weights = Ring<W_STAGES, W_BYTES>;
using Rows = Ring<X_STAGES, X_BYTES>;

__device__ __forceinline__ void free_tile(u32 bar) {
  if (threadIdx.x % 32 == 0)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

// sum (64, TILES * COLS) of each group = x @ w^T over `turns` tiles of x and TILES times as many of w.
template <int COLS, int TILES>
__device__ __forceinline__ void multiply(Weights& w, Rows& x, float (&sum)[TILES * COLS / 2],
                                         int turns) {
  u32 used[TILES + 1];
  for (int turn = 0; turn < turns; turn++) {
    u32 now[TILES + 1];
    u64 cols[TILES];
#pragma unroll
    for (int n = 0; n < TILES; n++, w.turn++) cols[n] = w.take(), now[n] = w.freed();
    const u64 rows = x.take() + threadIdx.x / 128 * (64 * LINE / 16);
    now[TILES] = x.freed(), x.turn++;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < DEEP / 16; k++)  // 32 bytes further along the line
#pragma unroll
      for (int n = 0; n < TILES; n++)
        mma<COLS>(sum + n * (COLS / 2), rows + 2 * k, cols[n] + 2 * k, turn + k);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
#pragma unroll
    for (int n = 0; n <= TILES; n++) {
      if (turn) free_tile(used[n]);  // the turn before has been multiplied
      used[n] = now[n];
    }
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  if (turns)
#pragma unroll
    for (int n = 0; n <= TILES; n++) free_tile(used[n]);
}

// What a thread holds of a product: for each eight columns two neighbours in two rows.
template <int COLS, typename Put>
__device__ __forceinline__ void spread(int rows, int first, int cols, Put put) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < COLS / 2; i += 2) {
    const int col = first + i / 4 * 8 + lane % 4 * 2, at = row + i % 4 * 4;
    if (at < rows && col < cols) put(i, at, col);
  }
}

// x + the sums of the last product, and its RMS norm; a block takes whole rows.
template <typename Ready>
__device__ __forceinline__ void add_norm(const Places& to, const bf16* gain, bool add, int rows,
                                         float eps, float* scratch, Ready ready) {
  constexpr int EACH = (WIDTH / 4 + WORKERS - 1) / WORKERS;  // of four elements
  const int row = blockIdx.x;
  if (row >= rows) return;
  uint2* line = (uint2*)(to.x + (u64)row * WIDTH);
  uint2 x[EACH], g[EACH];
  float4 sum[EACH][PARTS];
  auto each = [&](auto act) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int at = i * WORKERS + threadIdx.x;
      if (WIDTH / 4 % WORKERS == 0 || at < WIDTH / 4) act(i, at);
    }
  };
  each([&](int i, int at) { x[i] = line[at], g[i] = ((const uint2*)gain)[at]; });
  ready();
  if (add) {
    each([&](int i, int at) {
#pragma unroll
      for (int part = 0; part < PARTS; part++) {  // past the L1 cache: others wrote this
        const float* from = to.sums + ((u64)part * rows + row) * WIDTH + 4 * at;
        float4& one = sum[i][part];
        asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(one.x), "=f"(one.y), "=f"(one.z), "=f"(one.w) : "l"(from));
      }
    });
    each([&](int i, int at) {
      float4 all = sum[i][0];
#pragma unroll
      for (int part = 1; part < PARTS; part++) {
        const float4 one = sum[i][part];
        all.x += one.x, all.y += one.y, all.z += one.z, all.w += one.w;
      }
      x[i].x = narrow(low(x[i].x) + rounded(all.x), high(x[i].x) + rounded(all.y));
      x[i].y = narrow(low(x[i].y) + rounded(all.z), high(x[i].y) + rounded(all.w));
      line[at] = x[i];
    });
  }
  float square = 0.f;
  each([&](int i, int at) {
    square += low(x[i].x) * low(x[i].x) + high(x[i].x) * high(x[i].x);
    square += low(x[i].y) * low(x[i].y) + high(x[i].y) * high(x[i].y);
  });
#pragma unroll
  for (int step = 16; step; step /= 2) square += __shfl_xor_sync(~0u, square, step);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = square;
  workers_meet();
  square = 0.f;
#pragma unroll
  for (int warp = 0; warp < WORKERS / 32; warp++) square += scratch[warp];
  const float scale = rsqrtf(square / WIDTH + eps);
  each([&](int i, int at) {
    uint2 y;
    y.x = narrow(low(x[i].x) * scale * low(g[i].x), high(x[i].x) * scale * high(g[i].x));
    y.y = narrow(low(x[i].y) * scale * low(g[i].y), high(x[i].y) * scale * high(g[i].y));
    ((uint2*)(to.normed + (u64)row * WIDTH))[at] = y;
  });
}

// body: whether there is an attention before; next: whether there is one after.
extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1)
chain(const __grid_constant__ Matrices w, const __grid_constant__ Inputs in, const Places to,
      int rows, float eps, int body, int next) {
  extern __shared__ __align__(1024) char memory[];
  __shared__ alignas(8) u64 bars[2 * (W_STAGES + X_STAGES)];
  __shared__ float scratch[WORKERS / 32];
  const u32 base = (shared(memory) + 1023) & ~1023u, bar = shared(bars);
  Weights ws{base, bar, bar + 8 * W_STAGES, 0};
  Rows xs{base + W_STAGES * W_BYTES, bar + 16 * W_STAGES, bar + 8 * (2 * W_STAGES + X_STAGES), 0};
  if (threadIdx.x == 0) {
    for (int s = 0; s < W_STAGES; s++) init(ws.full + 8 * s, 1), init(ws.empty + 8 * s, GROUPS * 4);
    for (int s = 0; s < X_STAGES; s++) init(xs.full + 8 * s, 1), init(xs.empty + 8 * s, GROUPS * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  asm volatile("griddepcontrol.launch_dependents;");

  // which columns, and for products in parts which pieces of depth
  constexpr int OUT_TILES = (WIDTH + OUT_COLS - 1) / OUT_COLS;
  constexpr int GATE_TILES = (MLP + GATE_COLS - 1) / GATE_COLS;
  constexpr int QKV_TILES = (QKV + QKV_COLS - 1) / QKV_COLS;
  constexpr int DEPTH = WIDTH / DEEP, MLP_DEPTH = MLP / DEEP;
  const int block = blockIdx.x, blocks = gridDim.x, part = block / OUT_TILES;
  const int out_first = block % OUT_TILES * OUT_COLS;
  const int gate_first = block * GATE_COLS, qkv_first = block * QKV_COLS;
  const bool sums = part < PARTS, gates = block < GATE_TILES, heads = block < QKV_TILES;
  const int out_from = DEPTH * part / PARTS, out_to = sums ? DEPTH * (part + 1) / PARTS : out_from;
  const int down_from = MLP_DEPTH * part / PARTS;
  const int down_to = sums ? MLP_DEPTH * (part + 1) / PARTS : down_from;
  const int gate_turns = gates ? DEPTH : 0, qkv_turns = heads ? DEPTH : 0;

  if (threadIdx.x >= WORKERS) {
    if (GROUPS == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == WORKERS) {  // weights
      auto stream = [&](const Map& map, int from, int to, int row, int bytes, int second) {
        for (int turn = from; turn < to; turn++) {
          ws.fill(map, turn * DEEP, row, bytes, STREAM);
          if (second) ws.fill(map, turn * DEEP, second, bytes, STREAM);
        }
      };
      if (body) {
        stream(w.out, out_from, out_to, out_first, OUT_COLS * LINE, 0);
        stream(w.gate_up, 0, gate_turns, gate_first, GATE_COLS * LINE, MLP + gate_first);
        stream(w.down, down_from, down_to, out_first, OUT_COLS * LINE, 0);
      }
      if (next) stream(w.qkv, 0, qkv_turns, qkv_first, QKV_COLS * LINE, 0);
    }
    if (threadIdx.x == WORKERS + 32) {  // rows
      asm volatile("griddepcontrol.wait;" ::: "memory");
      auto stream = [&](const Map& map, int from, int to) {
        for (int turn = from; turn < to; turn++) xs.fill(map, turn * DEEP, 0, X_BYTES, KEEP);
      };
      if (body) {
        stream(in.heads, out_from, out_to);
        all_there(to.met + 1, blocks);
        stream(in.normed, 0, gate_turns);
        all_there(to.met + 2, blocks);
        stream(in.hidden, down_from, down_to);
      }
      if (next) {
        all_there(to.met + 4, blocks);
        stream(in.normed, 0, qkv_turns);
      }
    }
  } else {
    if (GROUPS == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    auto await = [&](int meeting) {
      return [&, meeting]() {
        if (threadIdx.x == 0) all_there(to.met + meeting, blocks);
        workers_meet();
      };
    };
    auto add_part = [&](int turns) {
      float sum[OUT_COLS / 2];
      multiply<OUT_COLS, 1>(ws, xs, sum, turns);
      if (sums)
        spread<OUT_COLS>(rows, out_first, WIDTH, [&](int i, int row, int col) {
          float2* at = (float2*)(to.sums + ((u64)part * rows + row) * WIDTH + col);
          *at = make_float2(sum[i], sum[i + 1]);
        });
    };
    if (body) {
      add_part(out_to - out_from);
      tell(to.met);
      add_norm(to, to.norm, true, rows, eps, scratch, await(0));
      tell(to.met + 1);
      {
        float sum[GATE_COLS];
        multiply<GATE_COLS, 2>(ws, xs, sum, gate_turns);
        if (gates)
          spread<GATE_COLS>(rows, gate_first, MLP, [&](int i, int row, int col) {
            float y[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {  // rounded as if gate and up had been in memory
              const float gate = rounded(sum[i + j]), up = rounded(sum[i + j + GATE_COLS / 2]);
              y[j] = rounded(gate / (1.f + __expf(-gate))) * up;
            }
            *(u32*)(to.hidden + (u64)row * MLP + col) = narrow(y[0], y[1]);
          });
      }
      tell(to.met + 2);
      add_part(down_to - down_from);
      tell(to.met + 3);
      add_norm(to, to.next_norm, true, rows, eps, scratch, await(3));
    } else {
      add_norm(to, to.next_norm, false, rows, eps, scratch, [] {});
    }
    if (next) {
      tell(to.met + 4);
      float sum[QKV_COLS / 2];
      multiply<QKV_COLS, 1>(ws, xs, sum, qkv_turns);
      if (heads)
        spread<QKV_COLS>(rows, qkv_first, QKV, [&](int i, int row, int col) {
          float a = sum[i], b = sum[i + 1];
          if (BIAS) {
            const u32 both = *(const u32*)(to.bias + col);
            a += low(both), b += high(both);
          }
          *(u32*)(to.qkv + (u64)row * QKV + col) = narrow(a, b);
        });
    }
  }
}
