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
// writes and others read goes through the L2 cache.
//
// Macros: LAYERS, as many as are given; WIDTH d, MLP, HEADS, KV_HEADS, HEAD their width; for each
// product the columns that a block takes, OUT_COLS of d, GATE_COLS of MLP, QKV_COLS, MOST_COLS the
// largest; PARTS pieces of depth that d columns are summed in; KEY_PARTS chunks, at most, that the
// keys of a head are cut into; GROUPS; W_STAGES and X_STAGES of the rings; BIAS. Given as text:
// products of 64 x 16 by 16 x N, `mma<N>` with both in shared memory, `mma_held<N>` with the first
// in registers, `mma_across<N>` with the second stored along N.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;

struct alignas(64) Map { char bytes[128]; };  // CUtensorMap

struct Layer {
  Map out, gate_up, down, qkv;  // weights, in tiles of a block's columns
  const bf16 *norm, *mlp_norm, *bias;
};
struct Model { Layer layers[LAYERS]; };
struct Inputs { Map heads, normed, hidden, q, k, v; };  // in tiles of GROUPS x 64 rows or keys
struct Places {
  bf16 *x, *normed, *hidden, *heads;  // (R,d), (R,d), (R,MLP), (R,d)
  float *sums, *parts, *logs;         // (PARTS,R,d), (KEY_PARTS,R,d), (KEY_PARTS,HEADS,R)
  bf16 *q, *k, *v;                    // of each layer: (R,d), (B,KV_HEADS,T,HEAD)
  float* lse;                         // of each layer: (HEADS,R)
  const bf16 *cos, *sin;              // (R,HEAD/2)
  const long long* index;             // (R,) positions
  const bf16* last_norm;              // after the last layer
  int* met;  // for each link (8 + HEADS,): blocks that have come to each meeting, zero at first
  u64 q_layer, kv_layer, kv_batch, kv_head, lse_layer;  // elements from one to the next
};
struct Task {
  int rows, per;      // in all, of each row of the batch
  int length;         // T
  int layers, first, last;  // how many are given; links
  float eps, scale;   // of norms; of scores, in powers of two
};

constexpr int DEEP = 64, LINE = 2 * DEEP;  // of K at a time: 128 bytes, a swizzled line
constexpr int X_BYTES = GROUPS * 64 * LINE, W_BYTES = MOST_COLS * LINE;
constexpr int WORKERS = GROUPS * 128;
constexpr int HALF = HEAD / 2, QKV = (HEADS + 2 * KV_HEADS) * HEAD;
constexpr int KEYS = GROUPS * 64, PIECES = HEAD / DEEP;  // of a tile of keys; tiles of a head
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

// sum (64, TILES * COLS) of each group = x @ w^T over `turns` tiles of x and TILES times as many of w.
template <int COLS, int TILES>
__device__ __forceinline__ void multiply(Weights& w, Rows& x, float (&sum)[TILES * COLS / 2],
                                         int turns) {
#pragma unroll
  for (int i = 0; i < TILES * COLS / 2; i++) sum[i] = 0.f;  // or they count as kept from before
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
  const int me = thread(), lane = me % 32, row = me / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < COLS / 2; i += 2) {
    const int col = first + i / 4 * 8 + lane % 4 * 2, at = row + i % 4 * 4;
    if (at < rows && col < cols) put(i, at, col);
  }
}

// x + the sums of the last product, and its RMS norm; a block takes whole rows.
template <typename Ready>
__device__ __forceinline__ void add_norm(const Places& to, const bf16* gain, bool add,
                                         const Task& task, float* scratch, Ready ready) {
  constexpr int EACH = (WIDTH / 4 + WORKERS - 1) / WORKERS;  // of four elements
  const int row = blockIdx.x, rows = task.rows, me = thread();
  if (row >= rows) return;
  uint2* line = (uint2*)(to.x + (u64)row * WIDTH);
  uint2 x[EACH], g[EACH];
  float4 sum[EACH][PARTS];
  auto each = [&](auto act) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int at = i * WORKERS + me;
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
  if (me % 32 == 0) scratch[me / 32] = square;
  workers_meet();
  square = 0.f;
#pragma unroll
  for (int warp = 0; warp < WORKERS / 32; warp++) square += scratch[warp];
  const float scale = rsqrtf(square / WIDTH + task.eps);
  each([&](int i, int at) {
    uint2 y;
    y.x = narrow(low(x[i].x) * scale * low(g[i].x), high(x[i].x) * scale * high(g[i].x));
    y.y = narrow(low(x[i].y) * scale * low(g[i].y), high(x[i].y) * scale * high(g[i].y));
    ((uint2*)(to.normed + (u64)row * WIDTH))[at] = y;
  });
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
__device__ __forceinline__ void turn_and_put(const float* sum, const Turn& turn, const Places& to,
                                             int rows, int layer, const bf16* bias) {
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
        float a[2] = {x[0], x[1]}, b[2] = {x[8], x[9]};
        if (BIAS) {
          const bf16* add = bias + head * HEAD + first + eight * 8 + lane % 4 * 2;
          const u32 one = __ldg((const u32*)add), two = __ldg((const u32*)(add + HALF));
          a[0] += low(one), a[1] += high(one), b[0] += low(two), b[1] += high(two);
        }
        u32 y = narrow(a[0], a[1]), z = narrow(b[0], b[1]);  // rounded as if they had been in memory
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

// All rows of one head over one chunk of its keys; then, with the other chunks' blocks, joined.
__device__ __forceinline__ void attend(Rows& x, const Places& to, const Task& task, int layer,
                                       int head, int part, int parts, int from, int until, int* met) {
  const int me = thread(), lane = me % 32, top = me / 32 * 16 + lane / 4, rows = task.rows;
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
  for (int key = from; key < until; key += KEYS) {
    float score[KEYS / 2];
    u64 tiles[PIECES];
    u32 used[PIECES];
    auto take = [&] {
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++, x.turn++)
        tiles[piece] = x.take(), used[piece] = x.freed();
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
      mma_held<KEYS>(score, query[k], tiles[k / 4] + 2 * (k % 4), k);
    done();
    settle(score);
    if (key + KEYS > until)
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++)
        if (key + i / 4 * 8 + lane % 4 * 2 + i % 2 >= until) score[i] = nothing();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float high = highest[r], mass = 0.f;
#pragma unroll
      for (int i = 2 * r; i < KEYS / 2; i += 4) high = fmaxf(high, fmaxf(score[i], score[i + 1]));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
      const float shrink = power_of_2((highest[r] - high) * task.scale);
      const float shift = high * task.scale;
#pragma unroll
      for (int i = 2 * r; i < KEYS / 2; i += 4)
#pragma unroll
        for (int j = i; j < i + 2; j++)
          score[j] = power_of_2(score[j] * task.scale - shift), mass += score[j];
      highest[r] = high, total[r] = total[r] * shrink + mass;
#pragma unroll
      for (int i = 2 * r; i < HEAD / 2; i += 4) sum[i] *= shrink, sum[i + 1] *= shrink;
    }
    u32 weight[KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++)
      weight[i / 4][i % 4] = narrow(score[2 * i], score[2 * i + 1]);
    settle(weight), settle(sum);
    take();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)  // 16 lines further
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++)
        mma_across<DEEP>(sum + piece * (DEEP / 2), weight[k], tiles[piece] + k * LINE, 1);
    done();
    settle(sum);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float all = total[r];
    all += __shfl_xor_sync(~0u, all, 1);
    all += __shfl_xor_sync(~0u, all, 2);
    const int row = top + 8 * r;
    if (row >= rows) continue;
    float* line = to.parts + ((u64)part * rows + row) * WIDTH + head * HEAD + lane % 4 * 2;
    const float share = __fdividef(1.f, all);
#pragma unroll
    for (int i = 2 * r; i < HEAD / 2; i += 4)
      *(float2*)(line + i / 4 * 8) = make_float2(sum[i] * share, sum[i + 1] * share);
    if (lane % 4 == 0)
      to.logs[(part * HEADS + head) * rows + row] = highest[r] * task.scale + log2f(all);
  }
  tell(met + 8 + head);
  if (threadIdx.x == 0) all_there(met + 8 + head, parts);
  workers_meet();
  constexpr int LANES = HEAD / 4, ROWS = WORKERS / LANES, BATCH = 4;
  const int end = rows * (part + 1) / parts, four = me % LANES * 4;
  for (int first = rows * part / parts + me / LANES; first < end; first += ROWS * BATCH) {
    float log[BATCH][KEY_PARTS];
    float4 some[BATCH][KEY_PARTS];
#pragma unroll
    for (int b = 0; b < BATCH; b++)
#pragma unroll
      for (int i = 0; i < KEY_PARTS; i++) {
        const int row = min(first + b * ROWS, end - 1);
        log[b][i] = nothing(), some[b][i] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (i >= parts) continue;
        log[b][i] = __ldcg(to.logs + (i * HEADS + head) * rows + row);
        const float* from = to.parts + ((u64)i * rows + row) * WIDTH + head * HEAD + four;
        some[b][i] = __ldcg((const float4*)from);
      }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const int row = first + b * ROWS;
      if (row >= end) break;
      float high = nothing(), mass = 0.f;
      float4 all = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int i = 0; i < KEY_PARTS; i++) high = fmaxf(high, log[b][i]);
#pragma unroll
      for (int i = 0; i < KEY_PARTS; i++) {
        const float share = power_of_2(log[b][i] - high);
        mass += share, all.x += share * some[b][i].x, all.y += share * some[b][i].y;
        all.z += share * some[b][i].z, all.w += share * some[b][i].w;
      }
      const float share = __fdividef(1.f, mass);
      uint2 both;
      both.x = narrow(all.x * share, all.y * share), both.y = narrow(all.z * share, all.w * share);
      *(uint2*)(to.heads + (u64)row * WIDTH + head * HEAD + four) = both;
      if (four == 0) to.lse[layer * to.lse_layer + head * rows + row] = high + log2f(mass);
    }
  }
}

extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1)
chain(const __grid_constant__ Model model, const __grid_constant__ Inputs in,
      const __grid_constant__ Places to, const __grid_constant__ Task task) {
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
  const int out_first = block % OUT_TILES * OUT_COLS, gate_first = block * GATE_COLS;
  const bool sums = part < PARTS, gates = block < GATE_TILES, heads = block < QKV_TILES;
  const int out_from = DEPTH * part / PARTS, out_to = sums ? DEPTH * (part + 1) / PARTS : out_from;
  const int down_from = MLP_DEPTH * part / PARTS;
  const int down_to = sums ? MLP_DEPTH * (part + 1) / PARTS : down_from;
  const int gate_turns = gates ? DEPTH : 0, qkv_turns = heads ? DEPTH : 0;
  // which head, and which of its keys
  const int tiles = (task.length + KEYS - 1) / KEYS;
  const int chunk = (tiles + KEY_PARTS - 1) / KEY_PARTS * KEYS;
  const int key_parts = (task.length + chunk - 1) / chunk;
  const int head = block / KEY_PARTS, key_part = block % KEY_PARTS;
  const bool attends = head < HEADS && key_part < key_parts;
  const int key_from = key_part * chunk, key_to = min(key_from + chunk, task.length);
  constexpr int MEETINGS = 8 + HEADS;

  if (threadIdx.x >= WORKERS) {
    if (GROUPS == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x == WORKERS) {  // weights
      auto stream = [&](const Map& map, int from, int to, int row, int bytes, int second) {
        for (int turn = from; turn < to; turn++) {
          ws.fill(map, turn * DEEP, row, bytes, STREAM);
          if (second) ws.fill(map, turn * DEEP, second, bytes, STREAM);
        }
      };
      for (int link = task.first; link <= task.last; link++) {
        if (link > 0) {
          const Layer& w = model.layers[link - 1];
          stream(w.out, out_from, out_to, out_first, OUT_COLS * LINE, 0);
          stream(w.gate_up, 0, gate_turns, gate_first, GATE_COLS * LINE, MLP + gate_first);
          stream(w.down, down_from, down_to, out_first, OUT_COLS * LINE, 0);
        }
        if (link < task.layers)
          for (int turn = 0; turn < qkv_turns; turn++, ws.turn++) {
            ws.make_room(QKV_COLS * LINE);
            constexpr int EACH = QKV_COLS / (2 * PAIRS);
#pragma unroll
            for (int i = 0; i < EACH; i++)
              load_pairs(ws.at() + i * 2 * PAIRS * LINE, model.layers[link].qkv, turn * DEEP,
                         block * EACH + i, ws.filled());
          }
      }
    }
    if (threadIdx.x == WORKERS + 32) {  // rows, and what they attend to
      asm volatile("griddepcontrol.wait;" ::: "memory");
      auto stream = [&](const Map& map, int from, int to) {
        for (int turn = from; turn < to; turn++) xs.fill(map, turn * DEEP, 0, X_BYTES, KEEP);
      };
      for (int link = task.first; link <= task.last; link++) {
        int* met = to.met + link * MEETINGS;
        if (link > 0) {
          if (link > task.first) all_there(met - MEETINGS + 6, blocks);
          stream(in.heads, out_from, out_to);
          all_there(met + 1, blocks);
          stream(in.normed, 0, gate_turns);
          all_there(met + 2, blocks);
          stream(in.hidden, down_from, down_to);
        }
        if (link < task.layers) {
          all_there(met + 4, blocks);
          stream(in.normed, 0, qkv_turns);
        }
        if (link < task.last && attends) {
          all_there(met + 5, blocks);
          const int q_row = to.q_layer ? link * task.rows : 0;
          const int line = (link * KV_HEADS + head / (HEADS / KV_HEADS)) * task.length;
          auto pieces = [&](const Map& map, int k, int row, u64 keep) {
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++)
              xs.fill(map, k + piece * DEEP, row, X_BYTES, keep);
          };
          pieces(in.q, head * HEAD, q_row, KEEP);
          for (int key = key_from; key < key_to; key += KEYS)
            pieces(in.k, 0, line + key, STREAM), pieces(in.v, 0, line + key, STREAM);
        }
      }
    }
  } else {
    if (GROUPS == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    for (int link = task.first; link <= task.last; link++) {
      int* met = to.met + link * MEETINGS;
      auto await = [&](int meeting) {
        return [&, meeting]() {
          if (threadIdx.x == 0) all_there(met + meeting, blocks);
          workers_meet();
        };
      };
      auto add_part = [&](int turns) {
        float sum[OUT_COLS / 2];
        multiply<OUT_COLS, 1>(ws, xs, sum, turns);
        if (sums)
          spread<OUT_COLS>(task.rows, out_first, WIDTH, [&](int i, int row, int col) {
            float2* at = (float2*)(to.sums + ((u64)part * task.rows + row) * WIDTH + col);
            *at = make_float2(sum[i], sum[i + 1]);
          });
      };
      const bf16* gain = link < task.layers ? model.layers[link].norm : to.last_norm;
      if (link > 0) {
        add_part(out_to - out_from);
        tell(met);
        add_norm(to, model.layers[link - 1].mlp_norm, true, task, scratch, await(0));
        tell(met + 1);
        {
          float sum[GATE_COLS];
          multiply<GATE_COLS, 2>(ws, xs, sum, gate_turns);
          if (gates)
            spread<GATE_COLS>(task.rows, gate_first, MLP, [&](int i, int row, int col) {
              float y[2];
#pragma unroll
              for (int j = 0; j < 2; j++) {  // rounded as if gate and up had been in memory
                const float gate = rounded(sum[i + j]), up = rounded(sum[i + j + GATE_COLS / 2]);
                y[j] = rounded(__fdividef(gate, 1.f + __expf(-gate))) * up;
              }
              *(u32*)(to.hidden + (u64)row * MLP + col) = narrow(y[0], y[1]);
            });
        }
        tell(met + 2);
        add_part(down_to - down_from);
        tell(met + 3);
        add_norm(to, gain, true, task, scratch, await(3));
      } else {
        add_norm(to, gain, false, task, scratch, [] {});
      }
      if (link < task.layers) {
        tell(met + 4);
        const Turn turn(to, task);
        float sum[QKV_COLS / 2];
        multiply<QKV_COLS, 1>(ws, xs, sum, qkv_turns);
        if (heads) turn_and_put(sum, turn, to, task.rows, link, model.layers[link].bias);
      }
      if (link < task.last) {
        tell(met + 5);
        if (attends) attend(xs, to, task, link, head, key_part, key_parts, key_from, key_to, met);
        tell(met + 6);
      }
    }
  }
}
