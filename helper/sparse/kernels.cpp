// Linear and convolutional layers of which only some weights are there, and BatchNorm beside them, on a CPU.
//
// Activations are stored (blocks, channels, pixels, lanes): `lanes` examples of a block lie side by side, so that one weight
// multiplies a contiguous vector of examples. All sums have an order that depends neither on the number of threads nor on
// chance, so that training can be repeated to the bit.
//
// A plan says what a layer with one set of weights does. Target pixels fall into kinds, by the taps of the kernel that hit
// the image; each kind has its own rows of entries, one row per target channel. An entry is a weight and the distance, in
// pixels over all channels, between what it reads and the source of its run; a run is a piece of an image row of one kind.
// With source and target exchanged, the same plan of the transposed layer gives the gradient of the inputs.

#include <cstdint>  // no more: reading the standard library's headers takes as long as compiling all of this

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define REGISTERS 16  // for sums, of 32
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define REGISTERS 8
#else
#define VECTOR_BYTES 16
#define REGISTERS 8
#endif
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

struct Run {
    int64_t target, source;  // its first pixel, and the pixel from which its entries count
    int32_t pixels, kind;
};

struct Plan {
    const int64_t* starts;   // (kinds, rows + 1): where each row of entries begins
    const int32_t* offsets;  // (entries): distance in pixels
    const int32_t* which;    // (entries): number of the active weight
    const Run* runs;
    const int64_t* bands;    // (bands + 1): where, in `runs`, each band of image rows begins; there, kinds lie side by side
    int64_t n_runs, n_bands, rows, n_entries, n_active;
    int64_t source_size, target_size;  // pixels of all channels
    int64_t target_plane;              // pixels of a channel
};

struct Weights {  // of a layer, as its plan sees them
    int64_t targets, taps, sources, group_targets;  // `sources` of one group
    int64_t target_stride, source_stride;           // in the weight's memory
    const int64_t* tap_places;
};

struct Entries {  // active weights by row, tap and channel, and what one kind of pixels makes of them
    int64_t rows, taps, plane;
    const int64_t* starts;    // (rows * taps + 1)
    const int32_t* channels;  // of what they read
    const int32_t* numbers;   // null: as they come
    const uint8_t* hits;
    const int64_t* distances;
};

namespace {

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

template <typename T>
constexpr int WIDTH = VECTOR_BYTES / int(sizeof(T));
template <typename T>
constexpr int SUMS = sizeof(T) == 4 ? REGISTERS : 2;  // vectors at a time; double is for checks, and compiled fast
template <typename T, int W>
struct Vector {
    typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T, int W = WIDTH<T>>
using Vec = typename Vector<T, W>::type;

template <typename T, int W = WIDTH<T>>
INLINE Vec<T, W> load(const T* p) {
    return *reinterpret_cast<const Vec<T, W>*>(p);
}
template <typename T, int W = WIDTH<T>>
INLINE void store(T* p, Vec<T, W> v) {
    *reinterpret_cast<Vec<T, W>*>(p) = v;
}

template <typename T, int W>
INLINE T total(Vec<T, W> v) {
    T kept[W];
    __builtin_memcpy(kept, &v, sizeof v);
    UNROLLED for (int half = W / 2; half; half /= 2)
        UNROLLED for (int i = 0; i < half; i++) kept[i] += kept[i + half];
    return kept[0];
}

// The elements of `v` from `first` on and before `end`, and zeros in place of the others.
template <typename T, int W>
INLINE Vec<T, W> between(int64_t first, int64_t end, Vec<T, W> v) {
    Vec<T, W> place = {};
    UNROLLED for (int i = 0; i < W; i++) place[i] = T(i);
    return ((place >= T(first)) & (place < T(end))) ? v : Vec<T, W>{};
}

// Of two vectors that each hold sums in segments of `S` elements: the same sums in segments half as long, u's and then v's.
template <typename T, int W, int S>
INLINE Vec<T, W> halved(Vec<T, W> u, Vec<T, W> v) {
#if defined(__clang__)
    Vec<T, W> result;
    UNROLLED for (int i = 0; i < W; i++) {
        const int half = S / 2, at = i % (W / 2), place = at / half * S + at % half;
        result[i] = i < W / 2 ? u[place] + u[place + half] : v[place] + v[place + half];
    }
    return result;
#else
    decltype(u < v) left;  // places in u and, behind them, v
    UNROLLED for (int i = 0; i < W; i++) {
        const int half = S / 2, at = i % (W / 2);
        left[i] = at / half * S + at % half + (i < W / 2 ? 0 : W);
    }
    return __builtin_shuffle(u, v, left) + __builtin_shuffle(u, v, left + S / 2);
#endif
}

// What the elements of each of `N` vectors add up to; `results` has room for a whole vector.
template <typename T, int W, int N, int S = W>
INLINE void totals(const Vec<T, W>* vectors, T* results) {
    if constexpr (S == 1) {
        store<T, W>(results, vectors[0]);
    } else {
        constexpr int HALF = (N + 1) / 2;
        Vec<T, W> fewer[HALF];
        UNROLLED for (int i = 0; i < HALF; i++)
            fewer[i] = halved<T, W, S>(vectors[2 * i], vectors[2 * i + 1 < N ? 2 * i + 1 : 2 * i]);
        totals<T, W, HALF, S / 2>(fewer, results);
    }
}

// ---------------------------------------------------------------------------------------------- weighted sums of sources

template <typename T>
struct Rows {  // of one run: what is read, where the sums go
    const int64_t* starts;
    const int32_t* offsets;
    const T* values;
    const T* bias;
    int64_t first, last, lanes, target_plane;
};

// `B` vectors of every row, side by side but for the last, which begins at `last`. They stay in registers over all of a row.
template <typename T, int W, int B>
void sum_rows(const Rows<T>& rows, const T* x, const T* more, T* y, int64_t last) {
    for (int64_t k = rows.first; k < rows.last; k++) {
        Vec<T, W> sums[B];
        const Vec<T, W> begin = Vec<T, W>{} + (rows.bias ? rows.bias[k] : T(0));
        if (more) {
            const T* from = more + k * rows.target_plane * rows.lanes;
            UNROLLED for (int i = 0; i < B - 1; i++) sums[i] = load<T, W>(from + i * W) + begin;
            sums[B - 1] = load<T, W>(from + last) + begin;
        } else {
            UNROLLED for (int i = 0; i < B; i++) sums[i] = begin;
        }
        for (int64_t e = rows.starts[k]; e < rows.starts[k + 1]; e++) {
            const T* from = x + rows.offsets[e] * rows.lanes;
            const T value = rows.values[e];
            UNROLLED for (int i = 0; i < B - 1; i++) sums[i] += value * load<T, W>(from + i * W);
            sums[B - 1] += value * load<T, W>(from + last);
        }
        T* to = y + k * rows.target_plane * rows.lanes;
        UNROLLED for (int i = 0; i < B - 1; i++) store<T, W>(to + i * W, sums[i]);
        store<T, W>(to + last, sums[B - 1]);
    }
}

template <typename T, int W, int B>
void sum_rows_of(int64_t vectors, const Rows<T>& rows, const T* x, const T* more, T* y, int64_t last) {
    if constexpr (B > 1)
        if (vectors < B) return sum_rows_of<T, W, B - 1>(vectors, rows, x, more, y, last);
    sum_rows<T, W, B>(rows, x, more, y, last);
}

// In pieces of about the same size, because one or two vectors alone would wait for each other's sums. Where the length is no
// multiple of a vector's, the last one begins earlier and gives the same sums once more; a short run has shorter vectors.
template <typename T, int W = WIDTH<T>>
void sum_run(const Rows<T>& rows, const T* x, const T* more, T* y, int64_t length) {
    if constexpr (W > 1)
        if (length < W) return sum_run<T, W / 2>(rows, x, more, y, length);
    constexpr int MOST = W == WIDTH<T> ? SUMS<T> : 2;
    const int64_t vectors = (length + W - 1) / W, pieces = (vectors + MOST - 1) / MOST;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t first = vectors * piece / pieces, end = vectors * (piece + 1) / pieces;
        const int64_t begin = first * W, last = smaller(end * W, length) - W - begin;
        sum_rows_of<T, W, MOST>(end - first, rows, x + begin, more ? more + begin : nullptr, y + begin, last);
    }
}

template <typename T>
struct Gather {  // of one plan: y = the sums over what it reads of x, plus `bias` of the row and `more` of the same place
    const Plan& plan;
    const T *x, *values, *bias, *more;  // the last two may be null
    T* y;
    int64_t lanes;

    void rows(int64_t block, const Run& run, int64_t first, int64_t last) const {
        const Rows<T> rows = {plan.starts + run.kind * (plan.rows + 1), plan.offsets, values, bias, first, last, lanes,
                              plan.target_plane};
        const int64_t to = (block * plan.target_size + run.target) * lanes;
        sum_run<T>(rows, x + (block * plan.source_size + run.source) * lanes, more ? more + to : nullptr, y + to,
                   run.pixels * lanes);
    }
};

template <typename T>
void gather(const Gather<T>& g, int64_t blocks, int threads) {
    const int64_t n_runs = g.plan.n_runs, pieces = blocks * n_runs, wanted = 4 * int64_t(threads), n_rows = g.plan.rows;
    const int64_t parts = pieces ? larger(1, smaller(n_rows, (wanted + pieces - 1) / pieces)) : 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < pieces * parts; task++) {
        const int64_t part = task % parts, piece = task / parts;
        g.rows(piece / n_runs, g.plan.runs[piece % n_runs], n_rows * part / parts, n_rows * (part + 1) / parts);
    }
}

// Without `active`, the weight is that of the active ones alone, and there is nothing to compact.
template <typename T>
void fill(const Plan& plan, const T* weight, const int64_t* active, T* compact, T* values, int threads) {
    const T* from = active ? compact : weight;
#pragma omp parallel num_threads(threads)
    {
        if (active) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < plan.n_active; i++) compact[i] = weight[active[i]];
        }
#pragma omp for schedule(static)
        for (int64_t e = 0; e < plan.n_entries; e++) values[e] = from[plan.which[e]];
    }
}

// -------------------------------------------------------------------------------------------- gradients of active weights

// Adds to `sums` the inner products of `g` with what `N` entries read, over runs of one kind with at least `W` elements each.
template <typename T, int W, int N>
void products(const Run* run, const Run* end, const T* g, const T* x, const int32_t* offsets, const int32_t* which,
              int64_t lanes, T* sums) {
    constexpr int U = W < WIDTH<T> ? 1 : N >= 4 ? 2 : N >= 2 ? 4 : 8;  // enough sums at a time that none waits for another
    Vec<T, W> parts[N][U] = {}, all[N];
    const T* from[N];
    UNROLLED for (int i = 0; i < N; i++) from[i] = x + offsets[i] * lanes;
    for (; run < end; run++) {
        const T* with = g + run->target * lanes;
        const int64_t source = run->source * lanes, length = run->pixels * lanes;
        int64_t j = 0;
        for (; j + U * W <= length; j += U * W)
            UNROLLED for (int u = 0; u < U; u++) {
                const Vec<T, W> shared = load<T, W>(with + j + u * W);
                UNROLLED for (int i = 0; i < N; i++) parts[i][u] += shared * load<T, W>(from[i] + source + j + u * W);
            }
        for (; j + W <= length; j += W) {
            const Vec<T, W> shared = load<T, W>(with + j);
            UNROLLED for (int i = 0; i < N; i++) parts[i][0] += shared * load<T, W>(from[i] + source + j);
        }
        if (j < length) {  // the last vector begins with elements that have been added already
            const int64_t at = length - W;
            const Vec<T, W> shared = load<T, W>(with + at);
            UNROLLED for (int i = 0; i < N; i++)
                parts[i][0] += between<T, W>(j - at, W, shared * load<T, W>(from[i] + source + at));
        }
    }
    UNROLLED for (int i = 0; i < N; i++) {
        all[i] = parts[i][0];
        UNROLLED for (int u = 1; u < U; u++) all[i] += parts[i][u];
    }
    T found[W];
    totals<T, W, N>(all, found);
    UNROLLED for (int i = 0; i < N; i++) sums[which[i]] += found[i];
}

template <typename T, int N>
void products_of(int n, const Run* run, const Run* end, const T* g, const T* x, const int32_t* offsets, const int32_t* which,
                 int64_t lanes, int64_t, T* sums) {
    if constexpr (N > 1)
        if (n < N) return products_of<T, N - 1>(n, run, end, g, x, offsets, which, lanes, 0, sums);
    products<T, WIDTH<T>, N>(run, end, g, x, offsets, which, lanes, sums);
}

// The same, one entry after the other, where the shortest run has less than a vector.
template <typename T, int W>
void short_products(int n, const Run* run, const Run* end, const T* g, const T* x, const int32_t* offsets,
                    const int32_t* which, int64_t lanes, int64_t shortest, T* sums) {
    if constexpr (W > 1)
        if (shortest < W) return short_products<T, W / 2>(n, run, end, g, x, offsets, which, lanes, shortest, sums);
    for (int i = 0; i < n; i++) products<T, W, 1>(run, end, g, x, offsets + i, which + i, lanes, sums);
}

// `parts` and `row_parts` say how the work is divided; sums (parts, active) are zero, and are added up in their order. The
// gradient is laid out like the weight, as in `fill`. Where `inputs` are given, their gradients are computed on the way, of
// each band while its part of `g` is in the cache.
template <typename T>
void weight_gradient(const Plan& plan, const T* x, const T* g, const int64_t* active, T* sums, T* gradient,
                     const Gather<T>* inputs, int64_t blocks, int64_t lanes, int64_t parts, int64_t row_parts, int threads) {
    constexpr int TOGETHER = SUMS<T> / 2;
    const int64_t pieces = blocks * plan.n_bands;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < parts * row_parts; task++) {
            const int64_t part = task / row_parts, row_part = task % row_parts;
            const int64_t first = plan.rows * row_part / row_parts, last = plan.rows * (row_part + 1) / row_parts;
            for (int64_t piece = pieces * part / parts; piece < pieces * (part + 1) / parts; piece++) {
                const int64_t block = piece / plan.n_bands, band = piece % plan.n_bands;
                const T *from = x + block * plan.source_size * lanes, *with = g + block * plan.target_size * lanes;
                const Run *run = plan.runs + plan.bands[band], *end = plan.runs + plan.bands[band + 1];
                while (run < end) {
                    const Run* same = run;
                    int64_t shortest = run->pixels * lanes;
                    for (; same < end && same->kind == run->kind; same++) shortest = smaller(shortest, same->pixels * lanes);
                    const int64_t* starts = plan.starts + run->kind * (plan.rows + 1);
                    const auto add = shortest < WIDTH<T> ? short_products<T, WIDTH<T> / 2> : products_of<T, TOGETHER>;
                    for (int64_t k = first; k < last; k++)
                        for (int64_t e = starts[k]; e < starts[k + 1]; e += TOGETHER)
                            add(int(smaller(TOGETHER, starts[k + 1] - e)), run, same, with + k * plan.target_plane * lanes,
                                from, plan.offsets + e, plan.which + e, lanes, shortest, sums + part * plan.n_active);
                    run = same;
                }
                if (inputs) {
                    const Plan& back = inputs->plan;
                    const int64_t begin = back.bands[back.n_bands * band / plan.n_bands];
                    const int64_t behind = back.bands[back.n_bands * (band + 1) / plan.n_bands];
                    for (int64_t i = begin; i < behind; i++)
                        inputs->rows(block, back.runs[i], back.rows * row_part / row_parts,
                                     back.rows * (row_part + 1) / row_parts);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < plan.n_active; i++) {
            T sum = 0;
            for (int64_t part = 0; part < parts; part++) sum += sums[part * plan.n_active + i];
            gradient[active ? active[i] : i] = sum;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- plans

// The first `n` bools of a piece of a mask, at most 64, as bits.
INLINE uint64_t bits_of(const uint8_t* p, int64_t n) {
    uint64_t bits = 0;
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t bytes = 0;
        __builtin_memcpy(&bytes, p + i, smaller(8, n - i));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        bytes = __builtin_bswap64(bytes);
#endif
        bits |= (bytes * 0x0102040810204080u >> 56) << i;  // the product's highest byte has one bit of each bool
    }
    return bits;
}

// Numbers of the true ones among `length` bools, of every piece of them.
void count_active(const uint8_t* mask, int64_t pieces, int64_t length, int64_t* counts, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t count = 0;
        for (int64_t i = 0; i < length; i += 64)
            count += __builtin_popcountll(bits_of(mask + piece * length + i, smaller(64, length - i)));
        counts[piece] = count;
    }
}

// Active weights by target, tap and source: the source of each, and where it lies in the weight's memory.
void list_active(const Weights& weights, const uint8_t* mask, const int64_t* starts, int32_t* channels, int64_t* places,
                 int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t piece = 0; piece < weights.targets * weights.taps; piece++) {
        const int64_t target = piece / weights.taps, length = weights.sources, at = starts[piece];
        const int64_t first = target / weights.group_targets * length;
        const int64_t place = target * weights.target_stride + weights.tap_places[piece % weights.taps];
        int64_t n = at;
        for (int64_t i = 0; i < length; i += 64)
            for (uint64_t bits = bits_of(mask + piece * length + i, smaller(64, length - i)); bits; bits &= bits - 1) {
                const int64_t source = i + __builtin_ctzll(bits);
                channels[n] = int32_t(first + source);
                places[n++] = place + source * weights.source_stride;
            }
    }
}

// The same weights by source, tap and target: the target of each, and its number in the order of `list_active`. `next`,
// (threads, sources * taps), is zero: where each thread's part of the targets goes on.
void transpose(int64_t targets, int64_t taps, int64_t sources, const int64_t* starts, const int32_t* channels,
               int64_t* back_starts, int32_t* back_channels, int32_t* numbers, int64_t* next, int threads) {
    const int64_t keys = sources * taps;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        int64_t* counts = next + part * keys;
        for (int64_t piece = targets * part / threads * taps; piece < targets * (part + 1) / threads * taps; piece++)
            for (int64_t e = starts[piece]; e < starts[piece + 1]; e++) counts[channels[e] * taps + piece % taps]++;
    }
    int64_t sum = 0;
    for (int64_t key = 0; key < keys; key++) {
        back_starts[key] = sum;
        for (int part = 0; part < threads; part++) {
            const int64_t count = next[part * keys + key];
            next[part * keys + key] = sum;
            sum += count;
        }
    }
    back_starts[keys] = sum;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        int64_t* to = next + part * keys;
        for (int64_t piece = targets * part / threads * taps; piece < targets * (part + 1) / threads * taps; piece++)
            for (int64_t e = starts[piece]; e < starts[piece + 1]; e++) {
                const int64_t at = to[channels[e] * taps + piece % taps]++;
                back_channels[at] = int32_t(piece / taps);
                numbers[at] = int32_t(e);
            }
    }
}

// Rows of entries of one kind of target pixels: of each active weight whose tap hits the source at `distances` from its run.
void list_entries(const Entries& of, const int64_t* row_starts, int32_t* offsets, int32_t* which, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < of.rows; row++) {
        int64_t n = row_starts[row];
        for (int64_t tap = 0; tap < of.taps; tap++) {
            if (!of.hits[tap]) continue;
            for (int64_t e = of.starts[row * of.taps + tap]; e < of.starts[row * of.taps + tap + 1]; e++, n++) {
                offsets[n] = int32_t(of.channels[e] * of.plane + of.distances[tap]);
                which[n] = of.numbers ? of.numbers[e] : int32_t(e);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- BatchNorm

constexpr int64_t SHORT = 2048;  // elements that are added up in their own precision, before the sums are in double

// Calls `f(i, n)` for the vectors of `size` elements from `begin` on, each of which has `n`. Where the size is no multiple of a
// vector's, the last one begins earlier, so that `f` sees some elements twice.
template <typename T, typename F>
INLINE void each(int64_t begin, int64_t size, F f) {
    constexpr int W = WIDTH<T>;
    int64_t i = 0;
    for (; i + W <= size; i += W) f(begin + i, W);
    if (i < size) f(begin + larger(0, size - W), int(smaller(W, size)));
}

// Adds to `sums` those of `term(i, n, vectors)` over `size` elements.
template <typename T, int N, typename Term>
INLINE void add_up(int64_t size, double (&sums)[N], Term term) {
    constexpr int W = WIDTH<T>, U = 4;
    for (int64_t begin = 0; begin < size; begin += SHORT) {
        const int64_t end = smaller(begin + SHORT, size);
        Vec<T> parts[U][N] = {}, terms[N];
        int64_t i = begin;
        for (; i + U * W <= end; i += U * W)
            UNROLLED for (int u = 0; u < U; u++) {
                term(i + u * W, W, terms);
                UNROLLED for (int s = 0; s < N; s++) parts[u][s] += terms[s];
            }
        for (; i < end; i += W) {
            const int64_t at = smaller(i, larger(0, end - W));
            term(at, int(smaller(W, end)), terms);
            UNROLLED for (int s = 0; s < N; s++) parts[0][s] += between<T, WIDTH<T>>(i - at, end - at, terms[s]);
        }
        UNROLLED for (int s = 0; s < N; s++)
            sums[s] += double(total<T, W>((parts[0][s] + parts[1][s]) + (parts[2][s] + parts[3][s])));
    }
}

// The first `n` elements of a vector; what lies behind them in memory is neither read nor written.
template <typename T>
INLINE Vec<T> first(const T* p, int n) {
    if (n == WIDTH<T>) return load<T>(p);
    Vec<T> v = {};
    __builtin_memcpy(&v, p, n * sizeof(T));
    return v;
}
template <typename T>
INLINE void put(T* p, Vec<T> v, int n) {
    if (n == WIDTH<T>) return store<T>(p, v);
    __builtin_memcpy(p, &v, n * sizeof(T));
}
// `v` where `of` is above zero or no number, as PyTorch's ReLU and its gradient have it; zero elsewhere.
template <typename T>
INLINE Vec<T> where_positive(Vec<T> of, Vec<T> v) {
    return of <= Vec<T>{} ? Vec<T>{} : v;
}

template <typename T>
struct Norm {
    int64_t blocks, channels, size;  // elements of a channel in a block
    const T *weight, *bias;          // (channels)
    T *mean, *variance;              // (channels), of this batch or given
    T *running_mean, *running_variance;  // (channels), of which `share` becomes this batch's; null: they stay
    double eps, share;
    int given, relu;
};

template <typename T>
struct Scale {  // of one channel: y = x * factor + shift
    T factor, shift;
    Scale(const Norm<T>& norm, int64_t c)
        : factor(T(norm.weight[c] / __builtin_sqrt(double(norm.variance[c]) + norm.eps))),
          shift(norm.bias[c] - norm.mean[c] * factor) {}
};

// In one pass over memory: pieces that stay in the first cache have moments of their own, put together as Chan et al. (1979) do.
template <typename T>
void moments(const Norm<T>& norm, const T* x, int64_t c) {
    double mean = 0, squares = 0, n = 0;  // of what has been seen; the second is of distances from the mean
    for (int64_t b = 0; b < norm.blocks; b++)
        for (int64_t begin = 0; begin < norm.size; begin += SHORT) {
            const T* from = x + (b * norm.channels + c) * norm.size + begin;
            const int64_t size = smaller(SHORT, norm.size - begin);
            double sum[1] = {}, around[1] = {};
            add_up<T>(size, sum, [=](int64_t i, int k, Vec<T>* terms) { terms[0] = first<T>(from + i, k); });
            const double own = sum[0] / double(size);
            const T centre = T(own);
            add_up<T>(size, around, [=](int64_t i, int k, Vec<T>* terms) {
                const Vec<T> d = first<T>(from + i, k) - centre;
                terms[0] = d * d;
            });
            const double distance = own - mean, off = own - double(centre);
            squares += around[0] - off * off * double(size) + distance * distance * n * double(size) / (n + double(size));
            n += double(size);
            mean += distance * double(size) / n;
        }
    norm.mean[c] = T(mean);
    norm.variance[c] = T(squares / n);
    if (norm.running_mean) {
        const T share = T(norm.share);
        norm.running_mean[c] += share * (T(mean) - norm.running_mean[c]);
        norm.running_variance[c] += share * (T(squares / (n - 1)) - norm.running_variance[c]);
    }
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias, plus `residual` if there is one, and its positive part if asked for.
template <typename T>
void normalise(const Norm<T>& norm, const T* x, const T* residual, T* y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < norm.channels; c++) {
        if (!norm.given) moments<T>(norm, x, c);
        const Scale<T> scale(norm, c);
        for (int64_t b = 0; b < norm.blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * norm.size;
            each<T>(slab, norm.size, [=](int64_t i, int k) {
                Vec<T> v = first<T>(x + i, k) * scale.factor + scale.shift;
                if (residual) v += first<T>(residual + i, k);
                put<T>(y + i, norm.relu ? where_positive<T>(v, v) : v, k);
            });
        }
    }
}

// Gradients of inputs, weight and bias; that of the residual where `g_residual` asks for it. Where a ReLU comes after a
// residual, `y` says what it let through; without a residual that follows from x, which is read in any case.
template <typename T>
void normalise_backward(const Norm<T>& norm, const T* x, const T* y, const T* g, T* gx, T* g_residual, T* g_weight, T* g_bias,
                        int threads) {
    const double n = double(norm.blocks * norm.size);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < norm.channels; c++) {
        const T mean = norm.mean[c];
        const Scale<T> scale(norm, c);
        const double deviations = 1 / __builtin_sqrt(double(norm.variance[c]) + norm.eps);
        const auto before = [=](int64_t i, int k, Vec<T> at) {  // the gradient below the ReLU
            const Vec<T> v = first<T>(g + i, k);
            if (!norm.relu) return v;
            return where_positive<T>(y ? first<T>(y + i, k) : at * scale.factor + scale.shift, v);
        };
        double sums[2] = {};  // of the gradient, and of its products with x - mean
        for (int64_t b = 0; b < norm.blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * norm.size;
            add_up<T>(norm.size, sums, [=](int64_t i, int k, Vec<T>* terms) {
                const Vec<T> at = first<T>(x + slab + i, k);
                terms[0] = before(slab + i, k, at);
                terms[1] = terms[0] * (at - mean);
                if (g_residual) put<T>(g_residual + slab + i, terms[0], k);
            });
        }
        g_bias[c] = T(sums[0]);
        g_weight[c] = T(sums[1] * deviations);
        const T even = norm.given ? T(0) : T(sums[0] / n);
        const T along = norm.given ? T(0) : T(sums[1] / n * deviations * deviations);
        for (int64_t b = 0; b < norm.blocks; b++) {
            const int64_t slab = (b * norm.channels + c) * norm.size;
            each<T>(slab, norm.size, [=](int64_t i, int k) {
                const Vec<T> at = first<T>(x + i, k), v = g_residual ? first<T>(g_residual + i, k) : before(i, k, at);
                put<T>(gx + i, norm.given ? v * scale.factor : (v - even - (at - mean) * along) * scale.factor, k);
            });
        }
    }
}

}  // namespace

#define LAYER(NAME, T)                                                                                                    \
    extern "C" void fill_##NAME(const Plan* plan, const T* weight, const int64_t* active, T* compact, T* values,          \
                                int threads) {                                                                            \
        fill<T>(*plan, weight, active, compact, values, threads);                                                         \
    }                                                                                                                     \
    extern "C" void gather_##NAME(const Plan* plan, const T* x, T* y, const T* values, const T* bias, const T* more,      \
                                  int64_t blocks, int64_t lanes, int threads) {                                           \
        gather<T>({*plan, x, values, bias, more, y, lanes}, blocks, threads);                                             \
    }                                                                                                                     \
    extern "C" void weight_gradient_##NAME(const Plan* plan, const T* x, const T* g, const int64_t* active, T* sums,      \
                                           T* gradient, const Plan* back, const T* values, const T* more, T* of_inputs,   \
                                           int64_t blocks, int64_t lanes, int64_t parts, int64_t row_parts,               \
                                           int threads) {                                                                 \
        const Gather<T> inputs = {back ? *back : *plan, g, values, nullptr, more, of_inputs, lanes};                      \
        weight_gradient<T>(*plan, x, g, active, sums, gradient, back ? &inputs : nullptr, blocks, lanes, parts,           \
                           row_parts, threads);                                                                           \
    }                                                                                                                     \
    extern "C" void normalise_##NAME(const T* x, const T* residual, T* y, const T* weight, const T* bias, T* mean,        \
                                     T* variance, T* running_mean, T* running_variance, int64_t blocks,                   \
                                     int64_t channels, int64_t size, double share, double eps, int given, int relu,       \
                                     int threads) {                                                                       \
        const Norm<T> norm = {blocks, channels, size, weight, bias, mean, variance, running_mean, running_variance,       \
                              eps, share, given, relu};                                                                   \
        normalise<T>(norm, x, residual, y, threads);                                                                      \
    }                                                                                                                     \
    extern "C" void normalise_backward_##NAME(const T* x, const T* y, const T* g, T* gx, T* g_residual, T* g_weight,      \
                                              T* g_bias, const T* weight, const T* bias, T* mean, T* variance,            \
                                              int64_t blocks, int64_t channels, int64_t size, double eps, int given,      \
                                              int relu, int threads) {                                                    \
        const Norm<T> norm = {blocks, channels, size, weight, bias, mean, variance, nullptr, nullptr,                     \
                              eps, 0, given, relu};                                                                       \
        normalise_backward<T>(norm, x, y, g, gx, g_residual, g_weight, g_bias, threads);                                  \
    }
#define LAYER_OF(T) LAYER(T, T)
LAYER_OF(REAL)  // float, or double in a library of its own for checks

extern "C" void plan_counts(const uint8_t* mask, int64_t pieces, int64_t length, int64_t* counts, int threads) {
    count_active(mask, pieces, length, counts, threads);
}
extern "C" void plan_active(const Weights* weights, const uint8_t* mask, const int64_t* starts, int32_t* channels,
                            int64_t* places, int threads) {
    list_active(*weights, mask, starts, channels, places, threads);
}
extern "C" void plan_transpose(int64_t targets, int64_t taps, int64_t sources, const int64_t* starts, const int32_t* channels,
                               int64_t* back_starts, int32_t* back_channels, int32_t* numbers, int64_t* next,
                               int threads) {
    transpose(targets, taps, sources, starts, channels, back_starts, back_channels, numbers, next, threads);
}
extern "C" void plan_entries(const Entries* of, const int64_t* row_starts, int32_t* offsets, int32_t* which, int threads) {
    list_entries(*of, row_starts, offsets, which, threads);
}

extern "C" int vector_bytes() { return VECTOR_BYTES; }
