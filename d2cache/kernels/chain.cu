// The layers of a model for few rows, in one kernel. sm_90a.
//
// Link i is what lies between the attention of layer i - 1 and that of layer i: output projection,
// norm, gate and up, down, norm, the next q, k, v with their rotation, K and V into the cache. One
// link by itself leaves attention to another kernel; of several, attention is done in between.
//
// Each block has its columns of every matrix. One thread streams weights, another rows, through two
// rings of tiles in shared memory (TMA); GROUPS groups of four warps multiply 64 rows each (wgmma).
// Weights wait for nobody: while the blocks wait for each other between two products, or attend,
// their ring fills with tiles of the next, so that memory is always being read. What one block
// writes and others read goes through the L2 cache. Two blocks are a cluster: of a product with d
// columns each sums one half of the depth, and of attention each has one half of the keys; they
// read each other's shared memory. A norm needs no meeting of its own: what is multiplied is x
// times the gain, and the product is divided by the root of the mean square, which two more warps
// find.
//
// Macros: LAYERS, as many as there is room for; WIDTH d, MLP, HEADS, KV_HEADS, HEAD their width; for each
// product the columns that a block takes, OUT_COLS of d, GATE_COLS of MLP, QKV_COLS; MOST_COLS of
// weights, gate's and up's both, that a place in their ring has room for; GROUPS; W_STAGES and
// X_STAGES of the rings; BIAS. Given as text: products of 64 x 16 by 16 x N, `mma<N>` with both in
// shared memory, `mma_held<N>` with the first in registers, `mma_across<N>` so too, with the second
// stored along N.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;

struct alignas(64) Map { char bytes[128]; };  // CUtensorMap

struct Layer {
  Map out, gate_up, down, qkv;  // weights, in tiles of a block's columns
  const bf16 *norm, *mlp_norm, *bias;
};
struct Model { Layer layers[LAYERS]; };
struct Inputs { Map heads, gained, hidden, k, v, q; };  // tiles of R rows, GROUPS x 64 keys, 64 q
struct Places {
  bf16 *x, *gained, *hidden, *heads;  // (R,d), (R,d), (R,MLP), (R,d)
  float* squares;                     // (2,blocks,GROUPS * 64)
  bf16 *q, *k, *v;                    // of each layer: (R,d), (B,KV_HEADS,T,HEAD)
  float* lse;                         // of each layer: (HEADS,R)
  const bf16 *cos, *sin;              // (R,HEAD/2)
  const long long* index;             // (R,) positions
  int* met;  // for each link (MEETINGS,): blocks that have come to each meeting, zero at first
  u64 q_layer, kv_layer, kv_batch, kv_head, lse_layer;  // elements from one to the next
};
enum Meeting { AFTER_OUT, AFTER_GATE, AFTER_DOWN, AFTER_QKV, AFTER_HEADS, MEETINGS = 8 };
struct Task {
  int rows, per;      // in all, of each row of the batch
  int length;         // T
  int layers, first, last;  // how many are given; links
  float eps, scale;   // of norms; of scores, in powers of two
};

constexpr int DEEP = 64, LINE = 2 * DEEP;  // of K at a time: 128 bytes, a swizzled line
constexpr int X_BYTES = GROUPS * 64 * LINE, W_BYTES = MOST_COLS * LINE;  // of a place in a ring
constexpr int WORKERS = GROUPS * 128;
constexpr int HALF = HEAD / 2, QKV = (HEADS + 2 * KV_HEADS) * HEAD;
constexpr int KEYS = GROUPS * 64, PIECES = HEAD / DEEP;  // of a tile of keys; tiles of a head
constexpr int SPAN = 64;  // keys, and rows, that a group meets at a time
constexpr int PAIRS = 16;  // of lanes that turn together, in each tile of q, k, v
constexpr u64 STREAM = 0x12F0000000000000ull, KEEP = 0x14F0000000000000ull;  // L2: evict first, last

// Read anew where it is used: else places worked out of it would be kept in registers all along.
__device__ __forceinline__ int thread() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

__device__ __forceinline__ u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void wait(u32 bar, u32 phase) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}" ::"r"(bar), "r"(phase) : "memory");
}

__device__ __forceinline__ float nothing() { return __int_as_float(0xFF800000); }  // -infinity

__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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

// 2 x PAIRS columns of q, k, v, by number: pairs that turn together, from both halves of a head
__device__ __forceinline__ void load_pairs(u32 to, const Map& map, int k, int number, u32 bar) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, 0, %3, 0, %4}], [%5], %6;" ::"r"(to), "l"(&map), "r"(k),
      "r"(number % (HALF / PAIRS)), "r"(number / (HALF / PAIRS)), "r"(bar), "l"(STREAM) : "memory");
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

// The two blocks of a cluster, and where the other's shared memory is.
struct Pair {
  u32 bar, rank;
  int turn;

  static __device__ u32 there(u32 at, u32 rank) {
    u32 place;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(at), "r"(rank));
    return place;
  }

  // All workers of both: what each wrote to its shared memory can be read by the other.
  __device__ void meet() {
    workers_meet();
    if (threadIdx.x < 2)
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                       there(bar, threadIdx.x))
                   : "memory");
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra AGAIN;\n}" ::"r"(bar), "r"(turn & 1) : "memory");
    turn++;
  }
};

__device__ __forceinline__ void tell(int* met) {  // all workers: this block has come
  workers_meet();
  if (threadIdx.x == 0)
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(met) : "memory");
}

__device__ __forceinline__ void all_there(const int* met, int wanted) {  // one thread
  int seen;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(met) : "memory");
  while (seen < wanted);
  // threads wrote it and TMA may read it, threads had shared memory that TMA may write
  asm volatile("fence.proxy.async;" ::: "memory");
}

template <int STAGES, int BYTES>
struct Ring {
  u32 base, full, empty;
  int turn;  // tiles so far, of all products

  __device__ u32 at() const { return base + turn % STAGES * BYTES; }
  __device__ u32 filled() const { return full + 8 * (turn % STAGES); }
  __device__ u32 freed() const { return empty + 8 * (turn % STAGES); }

  // the thread that loads
  __device__ void make_room(u32 bytes) {
    if (turn >= STAGES) wait(freed(), (turn / STAGES - 1) & 1);
    expect(filled(), bytes);
  }

  __device__ void fill(const Map& map, int k, int row, u32 bytes, u64 keep) {
    make_room(bytes);
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

// sum (64, COLS) of each group = x @ w^T over `turns` tiles of x and of w, of which a place in their
// ring holds several.
template <int COLS>
__device__ __forceinline__ void multiply(Weights& w, Rows& x, float (&sum)[COLS / 2], int turns) {
  constexpr int EACH = COLS * LINE, FIT = W_BYTES / EACH;
  constexpr int PARTS = COLS > 256 ? 2 : 1, PART = COLS / PARTS;  // of one instruction
#pragma unroll
  for (int i = 0; i < COLS / 2; i++) sum[i] = 0.f;  // or they count as kept from before
  u64 cols = 0;
  u32 x_used = 0, w_used = 0;
  for (int turn = 0; turn < turns; turn++) {
    const bool fresh = turn % FIT == 0;
    if (fresh) cols = w.take();
    const u64 rows = x.take() + threadIdx.x / 128 * (64 * LINE / 16);
    const u32 x_now = x.freed(), w_now = w.freed();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < DEEP / 16; k++)  // 32 bytes further along the line
#pragma unroll
      for (int n = 0; n < PARTS; n++)
        mma<PART>(sum + n * (PART / 2), rows + 2 * k, cols + n * (PART * LINE / 16) + 2 * k,
                  turn + k);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (turn) {  // the turn before has been multiplied
      free_tile(x_used);
      if (fresh) free_tile(w_used);
    }
    x_used = x_now, w_used = w_now, cols += EACH / 16, x.turn++;
    if (turn % FIT == FIT - 1 || turn == turns - 1) w.turn++;
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  if (turns) free_tile(x_used), free_tile(w_used);
}

// A product in halves of its depth, added to x, and x times the gain (if there is one) with a part
// of each row's sum of squares. Of its OUT_COLS columns a block ends up with half. What a thread
// holds of a product is, for each eight columns, two neighbours in two rows.
template <bool ADD>
__device__ __forceinline__ void finish(const float* sum, Pair& pair, u32 space, const Places& to,
                                       int rows, int which, const bf16* gain) {
  constexpr int MINE = OUT_COLS / 4;
  const int me = thread(), lane = me % 32, top = me / 32 * 16 + lane / 4;
  const int first = blockIdx.x * (OUT_COLS / 2) + lane % 4 * 2;
  u32 x[MINE / 2], g[MINE / 4];
  float square[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < MINE / 2; i++) {
    const int row = top + i % 2 * 8, col = first + i / 2 * 8;
    const bool there = row < rows && col < WIDTH;
    x[i] = there ? *(const u32*)(to.x + row * WIDTH + col) : 0;
    if (i % 2 == 0) g[i / 2] = gain && col < WIDTH ? __ldg((const u32*)(gain + col)) : 0;
  }
  if (ADD) {
    float mine[MINE];
    workers_meet();  // none multiplies any more: the space of the tiles is free
#pragma unroll
    for (int i = 0; i < MINE; i += 2) {
      float theirs[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float a = sum[i + j], b = sum[MINE + i + j];
        mine[i + j] = pair.rank ? b : a, theirs[j] = pair.rank ? a : b;
      }
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(space + (i / 2 * WORKERS + me) * 8),
                   "f"(theirs[0]), "f"(theirs[1]) : "memory");
    }
    pair.meet();
    const u32 other = Pair::there(space, pair.rank ^ 1);
    float more[MINE];
#pragma unroll
    for (int i = 0; i < MINE; i += 2)
      asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(more[i]), "=f"(more[i + 1])
                   : "r"(other + (i / 2 * WORKERS + me) * 8));
#pragma unroll
    for (int i = 0; i < MINE / 2; i++)
      x[i] = narrow(low(x[i]) + rounded(mine[2 * i] + more[2 * i]),
                    high(x[i]) + rounded(mine[2 * i + 1] + more[2 * i + 1]));
  }
#pragma unroll
  for (int i = 0; i < MINE / 2; i++) {
    const int row = top + i % 2 * 8, col = first + i / 2 * 8;
    square[i % 2] += low(x[i]) * low(x[i]) + high(x[i]) * high(x[i]);
    if (row >= rows || col >= WIDTH) continue;
    if (ADD) *(u32*)(to.x + row * WIDTH + col) = x[i];
    if (gain)
      *(u32*)(to.gained + row * WIDTH + col) =
          narrow(low(x[i]) * low(g[i / 2]), high(x[i]) * high(g[i / 2]));
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    square[r] += __shfl_xor_sync(~0u, square[r], 1);
    square[r] += __shfl_xor_sync(~0u, square[r], 2);
    if (lane % 4 == 0)
      to.squares[(which * gridDim.x + blockIdx.x) * (GROUPS * 64) + top + 8 * r] = square[r];
  }
}

// 64 threads: what each row of a product is to be multiplied with for the norm of its factor.
__device__ __forceinline__ void find_scales(const Places& to, int which, int parts, float eps,
                                            float* scales) {
#pragma unroll
  for (int r = 0; r < GROUPS; r++) {
    const int row = threadIdx.x % 64 + 64 * r;
    const float* from = to.squares + which * gridDim.x * (GROUPS * 64) + row;
    float all = 0.f;
#pragma unroll 8
    for (int part = 0; part < parts; part++) all += __ldcg(from + part * (GROUPS * 64));
    scales[row] = rsqrtf(all / WIDTH + eps);
  }
  asm volatile("bar.arrive %0, %1;" ::"r"(2 + which), "n"(WORKERS + 64) : "memory");
}

// The workers: wait for what they find; of both rows of a thread.
__device__ __forceinline__ float2 scales_of(const float* scales, int which) {
  asm volatile("bar.sync %0, %1;" ::"r"(2 + which), "n"(WORKERS + 64) : "memory");
  const int row = thread() / 32 * 16 + thread() % 32 / 4;
  return make_float2(scales[row], scales[row + 8]);
}

// silu(gate) * up, rounded as if gate and up had been in memory.
__device__ __forceinline__ void put_hidden(const float* sum, float2 scale, const Places& to,
                                           int rows, int first) {
  const int me = thread(), lane = me % 32, top = me / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < GATE_COLS / 2; i += 2) {
    const float by = i % 4 ? scale.y : scale.x, *up = sum + GATE_COLS / 2;
    const u32 gate = narrow(sum[i] * by, sum[i + 1] * by), ups = narrow(up[i] * by, up[i + 1] * by);
    const float a = low(gate), b = high(gate);
    u32 y = narrow(__fdividef(a, 1.f + __expf(-a)), __fdividef(b, 1.f + __expf(-b)));
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(y), "r"(ups));
    const int row = top + i % 4 * 4, col = first + i / 4 * 8 + lane % 4 * 2;
    if (row < rows && col < MLP) *(u32*)(to.hidden + row * MLP + col) = y;
  }
}

// What a thread needs to turn and put its part of q, k, v, asked for before they are multiplied.
struct Turn {
  static constexpr int NUMBERS = QKV_COLS / (2 * PAIRS);
  u32 cos[NUMBERS * 4], sin[NUMBERS * 4];  // of each number: eight columns further, eight rows
  u64 place[2];                            // of both rows in a layer's cache

  __device__ __forceinline__ Turn(const Places& to, const Task& task) {
    const int me = thread(), lane = me % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = min(me / 32 * 16 + lane / 4 + 8 * r, task.rows - 1);
      place[r] = row / task.per * to.kv_batch + __ldg(to.index + row) * HEAD + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < NUMBERS * 2; n++) {
        const int number = blockIdx.x * NUMBERS + n / 2;
        const int at = number % (HALF / PAIRS) * PAIRS + n % 2 * 8 + lane % 4 * 2;
        cos[n * 2 + r] = __ldg((const u32*)(to.cos + row * HALF + at));
        sin[n * 2 + r] = __ldg((const u32*)(to.sin + row * HALF + at));
      }
    }
  }
};

// A block's pairs of q, k, v: turned, q put with the queries, K and V into the cache.
__device__ __forceinline__ void turn_and_put(const float* sum, const Turn& turn, float2 scale,
                                             const Places& to, int rows, int layer,
                                             const bf16* bias) {
  const int me = thread(), lane = me % 32;
#pragma unroll
  for (int n = 0; n < Turn::NUMBERS; n++) {
    const int number = blockIdx.x * Turn::NUMBERS + n, head = number / (HALF / PAIRS);
    const int first = number % (HALF / PAIRS) * PAIRS;
    if (head >= HEADS + 2 * KV_HEADS) break;
    const int which = head - HEADS;
    bf16* base = to.q + layer * to.q_layer + head * HEAD;
    if (which >= 0)
      base = (which < KV_HEADS ? to.k : to.v) + layer * to.kv_layer + which % KV_HEADS * to.kv_head;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = me / 32 * 16 + lane / 4 + 8 * r;
      if (row >= rows) continue;
      bf16* place = base + first + (which < 0 ? row * WIDTH + lane % 4 * 2 : turn.place[r]);
#pragma unroll
      for (int eight = 0; eight < 2; eight++) {
        const float* x = sum + n * 16 + eight * 4 + r * 2;  // turns with what is at x + 8
        const float by = r ? scale.y : scale.x;
        float a[2] = {x[0] * by, x[1] * by}, b[2] = {x[8] * by, x[9] * by};
        if (BIAS) {
          const bf16* add = bias + head * HEAD + first + eight * 8 + lane % 4 * 2;
          const u32 one = __ldg((const u32*)add), two = __ldg((const u32*)(add + HALF));
          a[0] += low(one), a[1] += high(one), b[0] += low(two), b[1] += high(two);
        }
        u32 y = narrow(a[0], a[1]), z = narrow(b[0], b[1]);  // as if they had been in memory
        if (which < KV_HEADS) {
          const u32 c = turn.cos[(n * 2 + eight) * 2 + r], s = turn.sin[(n * 2 + eight) * 2 + r];
          const u32 u = y, v = z;
          y = narrow(low(u) * low(c) - low(v) * low(s), high(u) * high(c) - high(v) * high(s));
          z = narrow(low(v) * low(c) + low(u) * low(s), high(v) * high(c) + high(u) * high(s));
        }
        *(u32*)(place + eight * 8) = y, *(u32*)(place + HALF + eight * 8) = z;
      }
    }
  }
}

// Registers that a product reads or adds to: nothing may be moved across this point.
template <int N>
__device__ __forceinline__ void settle(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <int N>
__device__ __forceinline__ void settle(u32 (&x)[N][4]) {
#pragma unroll
  for (int i = 0; i < N * 4; i++) asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
}

// 64 rows of one head over a block's keys, each group over its 64 of a tile; then joined with what
// the other group and the other block found.
__device__ __forceinline__ void attend(Rows& x, Pair& pair, const Places& to, const Task& task,
                                       int layer, int head, int row_group, int from, int until) {
  const int me = thread(), lane = me % 32, group = me / 128, top = me % 128 / 32 * 16 + lane / 4;
  u32 q[HEAD / 16][4];
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++, x.turn++) {
    x.take();
#pragma unroll
    for (int i = 0; i < 16; i++) {  // eight rows further, 16 bytes further, 16 columns further
      const int chunk = i / 2 ^ lane / 4;
      const u32 at = x.at() + (top + i % 2 * 8) * LINE + chunk * 16 + lane % 4 * 4;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(q[piece * 4 + i / 4][i % 4]) : "r"(at));
    }
    __syncwarp();
    free_tile(x.freed());
  }
  float sum[HEAD / 2], highest[2] = {nothing(), nothing()}, total[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < HEAD / 2; i++) sum[i] = 0.f;
#pragma unroll 1
  for (int key = from; key < until; key += KEYS) {
    float score[SPAN / 2];
    u64 tiles[PIECES];
    u32 used[PIECES];
    auto take = [&] {
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++, x.turn++)
        tiles[piece] = x.take() + group * (SPAN * LINE / 16), used[piece] = x.freed();
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    };
    auto done = [&] {
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) free_tile(used[piece]);
    };
    u32 query[HEAD / 16][4];
#pragma unroll
    for (int i = 0; i < HEAD / 4; i++)  // plus 0: ptxas 13.0 overwrites what no turn changes
      query[i / 4][i % 4] = q[i / 4][i % 4] + ((u32)key >> 30);
    settle(query);
    take();
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++)
      mma_held<SPAN>(score, query[k], tiles[k / 4] + 2 * (k % 4), k);
    done();
    settle(score);
    const int left = until - key - group * SPAN;
    if (left < SPAN)
#pragma unroll
      for (int i = 0; i < SPAN / 2; i++)
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= left) score[i] = nothing();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float high = highest[r], mass = 0.f;
#pragma unroll
      for (int i = 2 * r; i < SPAN / 2; i += 4) high = fmaxf(high, fmaxf(score[i], score[i + 1]));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
      const float safe = high == nothing() ? 0.f : high;  // a group may have no key at all
      const float shrink = power_of_2((highest[r] - safe) * task.scale);
      const float shift = safe * task.scale;
#pragma unroll
      for (int i = 2 * r; i < SPAN / 2; i += 4)
#pragma unroll
        for (int j = i; j < i + 2; j++)
          score[j] = power_of_2(score[j] * task.scale - shift), mass += score[j];
      highest[r] = high, total[r] = total[r] * shrink + mass;
#pragma unroll
      for (int i = 2 * r; i < HEAD / 2; i += 4) sum[i] *= shrink, sum[i + 1] *= shrink;
    }
    u32 weight[SPAN / 16][4];
#pragma unroll
    for (int i = 0; i < SPAN / 4; i++)
      weight[i / 4][i % 4] = narrow(score[2 * i], score[2 * i + 1]);
    settle(weight), settle(sum);
    take();
#pragma unroll
    for (int k = 0; k < SPAN / 16; k++)  // 16 lines further
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++)
        mma_across<DEEP>(sum + piece * (DEEP / 2), weight[k], tiles[piece] + k * LINE, 1);
    done();
    settle(sum);
  }

  // into the space of the tiles, once both groups have done with them: outputs, then logs of sums
  constexpr int WIDE = (HEAD + 8) * 4, LOGS = 64 * WIDE, SPACE = LOGS + 64 * 4;  // bytes of a group
  workers_meet();
  const u32 space = x.base + group * SPACE;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float all = total[r];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    const float share = all > 0.f ? __fdividef(1.f, all) : 0.f;
    const u32 line = space + (top + 8 * r) * WIDE + lane % 4 * 8;
#pragma unroll
    for (int i = 2 * r; i < HEAD / 2; i += 4)
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(line + i / 4 * 32), "f"(sum[i] * share),
                   "f"(sum[i + 1] * share) : "memory");
    const float log = all > 0.f ? highest[r] * task.scale + log2f(all) : nothing();
    if (lane % 4 == 0)
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(space + LOGS + (top + 8 * r) * 4), "f"(log)
                   : "memory");
  }
  pair.meet();
  constexpr int PARTS = 2 * GROUPS, LANES = HEAD / 4, ROWS = 128 / LANES, TURNS = 64 / PARTS / ROWS;
  const int own = (pair.rank * GROUPS + group) * (64 / PARTS) + me % 128 / LANES;
  const int four = me % LANES * 4;
  float log[TURNS][PARTS];
  float4 some[TURNS][PARTS];
#pragma unroll
  for (int part = 0; part < PARTS; part++) {
    const u32 there = Pair::there(x.base + part % GROUPS * SPACE, part / GROUPS);
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int row = own + i * ROWS;
      float4& one = some[i][part];
      asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(log[i][part])
                   : "r"(there + LOGS + row * 4));
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(one.x), "=f"(one.y), "=f"(one.z), "=f"(one.w)
                   : "r"(there + row * WIDE + four * 4));
    }
  }
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const int row = row_group * 64 + own + i * ROWS;
    if (row >= task.rows) break;
    float high = nothing(), mass = 0.f;
    float4 all = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int part = 0; part < PARTS; part++) high = fmaxf(high, log[i][part]);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      const float share = power_of_2(log[i][part] - high);
      mass += share, all.x += share * some[i][part].x, all.y += share * some[i][part].y;
      all.z += share * some[i][part].z, all.w += share * some[i][part].w;
    }
    const float share = __fdividef(1.f, mass);
    uint2 both;
    both.x = narrow(all.x * share, all.y * share), both.y = narrow(all.z * share, all.w * share);
    *(uint2*)(to.heads + row * WIDTH + head * HEAD + four) = both;
    if (four == 0) to.lse[layer * to.lse_layer + head * task.rows + row] = high + log2f(mass);
  }
}

extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1) __cluster_dims__(2, 1, 1)
chain(const __grid_constant__ Model model, const __grid_constant__ Inputs in,
      const __grid_constant__ Places to, const __grid_constant__ Task task) {
  extern __shared__ __align__(1024) char memory[];
  __shared__ alignas(8) u64 bars[2 * (W_STAGES + X_STAGES) + 1];
  __shared__ float scales[2][GROUPS * 64];
  const u32 base = (shared(memory) + 1023) & ~1023u, bar = shared(bars);
  Weights ws{base, bar, bar + 8 * W_STAGES, 0};
  Rows xs{base + W_STAGES * W_BYTES, bar + 16 * W_STAGES, bar + 8 * (2 * W_STAGES + X_STAGES), 0};
  Pair pair{bar + 16 * (W_STAGES + X_STAGES), blockIdx.x % 2, 0};
  if (threadIdx.x == 0) {
    for (int s = 0; s < W_STAGES; s++) init(ws.full + 8 * s, 1), init(ws.empty + 8 * s, GROUPS * 4);
    for (int s = 0; s < X_STAGES; s++) init(xs.full + 8 * s, 1), init(xs.empty + 8 * s, GROUPS * 4);
    init(pair.bar, 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");

  // which columns, and for products in halves of depth which half
  constexpr int OUT_TILES = (WIDTH + OUT_COLS - 1) / OUT_COLS;
  constexpr int GATE_TILES = (MLP + GATE_COLS - 1) / GATE_COLS;
  constexpr int QKV_TILES = (QKV + QKV_COLS - 1) / QKV_COLS;
  constexpr int DEPTH = WIDTH / DEEP, MLP_DEPTH = MLP / DEEP;
  const int block = blockIdx.x, blocks = gridDim.x, cluster = block / 2, half = block % 2;
  const int out_first = cluster * OUT_COLS, gate_first = block * GATE_COLS;
  const bool sums = cluster < OUT_TILES, gates = block < GATE_TILES, heads = block < QKV_TILES;
  const int out_from = DEPTH * half / 2, out_to = sums ? DEPTH * (half + 1) / 2 : out_from;
  const int down_from = MLP_DEPTH * half / 2;
  const int down_to = sums ? MLP_DEPTH * (half + 1) / 2 : down_from;
  const int gate_turns = gates ? DEPTH : 0, qkv_turns = heads ? DEPTH : 0;
  // which head, which of its rows, and which keys
  const int head = cluster / GROUPS, row_group = cluster % GROUPS;
  const int chunk = (task.length + 2 * KEYS - 1) / (2 * KEYS) * KEYS;
  const int key_from = half * chunk, key_to = min(key_from + chunk, task.length);
  const bool attends = head < HEADS;

  if (threadIdx.x >= WORKERS) {
    if (GROUPS == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x == WORKERS) {  // weights
      // as many turns at once as a place has room for, `cols` columns each
      auto stream = [&](int from, int to, int cols, auto load_turn) {
        const int fit = MOST_COLS / cols;
        for (int turn = from; turn < to; turn += fit, ws.turn++) {
          const int many = min(fit, to - turn);
          ws.make_room(many * cols * LINE);
          for (int i = 0; i < many; i++) load_turn(ws.at() + i * cols * LINE, (turn + i) * DEEP);
        }
      };
      auto rows_of = [&](const Map& map, int row) {
        return [&, row](u32 at, int k) { load(at, map, k, row, ws.filled(), STREAM); };
      };
      for (int link = task.first; link <= task.last; link++) {
        if (link > 0) {
          const Layer& w = model.layers[link - 1];
          stream(out_from, out_to, OUT_COLS, rows_of(w.out, out_first));
          stream(0, gate_turns, 2 * GATE_COLS, [&](u32 at, int k) {
            load(at, w.gate_up, k, gate_first, ws.filled(), STREAM);
            load(at + GATE_COLS * LINE, w.gate_up, k, MLP + gate_first, ws.filled(), STREAM);
          });
          stream(down_from, down_to, OUT_COLS, rows_of(w.down, out_first));
        }
        if (link < task.layers)
          stream(0, qkv_turns, QKV_COLS, [&](u32 at, int k) {
#pragma unroll
            for (int i = 0; i < Turn::NUMBERS; i++)
              load_pairs(at + i * 2 * PAIRS * LINE, model.layers[link].qkv, k,
                         block * Turn::NUMBERS + i, ws.filled());
          });
      }
    }
    if (threadIdx.x == WORKERS + 32) {  // rows, and what they attend to
      asm volatile("griddepcontrol.wait;" ::: "memory");
      auto stream = [&](const Map& map, int from, int to) {
        for (int turn = from; turn < to; turn++)
          xs.fill(map, turn * DEEP, 0, task.rows * LINE, KEEP);
      };
      for (int link = task.first; link <= task.last; link++) {
        int* met = to.met + link * MEETINGS;
        if (link > 0) {
          if (link > task.first) all_there(met - MEETINGS + AFTER_HEADS, blocks);
          stream(in.heads, out_from, out_to);
          all_there(met + AFTER_OUT, blocks);
          stream(in.gained, 0, gate_turns);
          all_there(met + AFTER_GATE, blocks);
          stream(in.hidden, down_from, down_to);
        }
        if (link < task.layers) {
          all_there(met + AFTER_DOWN, blocks);
          stream(in.gained, 0, qkv_turns);
        }
        if (link < task.last && attends) {
          all_there(met + AFTER_QKV, blocks);
          const int q_row = (to.q_layer ? link * task.rows : 0) + row_group * 64;
          const int line = (link * KV_HEADS + head / (HEADS / KV_HEADS)) * task.length;
          auto pieces = [&](const Map& map, int k, int row, u32 bytes, u64 keep) {
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++)
              xs.fill(map, k + piece * DEEP, row, bytes, keep);
          };
          pieces(in.q, head * HEAD, q_row, 64 * LINE, KEEP);
          for (int key = key_from; key < key_to; key += KEYS) {
            pieces(in.k, 0, line + key, X_BYTES, STREAM);
            pieces(in.v, 0, line + key, X_BYTES, STREAM);
          }
        }
      }
    }
    if (threadIdx.x >= WORKERS + 64) {  // norms
      asm volatile("griddepcontrol.wait;" ::: "memory");
      auto find = [&](const int* met, int which) {
        if (threadIdx.x % 32 == 0) all_there(met, blocks);
        __syncwarp();
        find_scales(to, which, 2 * OUT_TILES, task.eps, scales[which]);
      };
      for (int link = task.first; link <= task.last; link++) {
        const int* met = to.met + link * MEETINGS;
        if (link > 0) find(met + AFTER_OUT, 0);
        if (link < task.layers) find(met + AFTER_DOWN, 1);
      }
    }
  } else {
    if (GROUPS == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    for (int link = task.first; link <= task.last; link++) {
      int* met = to.met + link * MEETINGS;
      const bf16* gain = link < task.layers ? model.layers[link].norm : nullptr;
      if (link > 0) {
        {
          float sum[OUT_COLS / 2];
          multiply<OUT_COLS>(ws, xs, sum, out_to - out_from);
          const bf16* mlp_gain = model.layers[link - 1].mlp_norm;
          if (sums) finish<true>(sum, pair, xs.base, to, task.rows, 0, mlp_gain);
        }
        tell(met + AFTER_OUT);
        {
          float sum[GATE_COLS];
          multiply<2 * GATE_COLS>(ws, xs, sum, gate_turns);
          const float2 scale = scales_of(scales[0], 0);
          if (gates) put_hidden(sum, scale, to, task.rows, gate_first);
        }
        tell(met + AFTER_GATE);
      }
      const Turn turn(to, task);
      if (link > 0) {
        float sum[OUT_COLS / 2];
        multiply<OUT_COLS>(ws, xs, sum, down_to - down_from);
        if (sums) finish<true>(sum, pair, xs.base, to, task.rows, 1, gain);
      } else if (sums) {
        finish<false>(nullptr, pair, xs.base, to, task.rows, 1, gain);
      }
      if (link < task.layers) {
        tell(met + AFTER_DOWN);
        float sum[QKV_COLS / 2];
        multiply<QKV_COLS>(ws, xs, sum, qkv_turns);
        const float2 scale = scales_of(scales[1], 1);
        if (heads) turn_and_put(sum, turn, scale, to, task.rows, link, model.layers[link].bias);
      }
      if (link < task.last) {
        tell(met + AFTER_QKV);
        if (attends) attend(xs, pair, to, task, link, head, row_group, key_from, key_to);
        tell(met + AFTER_HEADS);
      }
    }
    pair.meet();  // the other may still be reading here
  }
}
