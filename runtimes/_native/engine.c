/* The decoder: what the device loads. engine.h draws the layout; kernels.h does the arithmetic.

   A file is never trusted: every size is computed here from the configuration and compared with
   what came, and every number that could spoil a sum is looked at once. */
#include "engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { SAID = 200 };

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avxvnni, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
int neon_has_dot(void);
#endif

typedef struct {
    float *x, *normed, *part, *scores, *turn; /* see `thread_new` */
    Input input;
} Thread;

typedef struct {
    const Model *model;
    const Kernels *kernels;
    Crew *crew;
    int batch, capacity;
    float *keys, *values;            /* batch, layers, kv_heads, capacity, head_dim */
    float *query, *attended, *added; /* TILE x heads * head_dim, the same, TILE x hidden */
    float *inner;                    /* TILE x padded intermediate */
    float *logits;                   /* TILE x padded vocabulary */
    Thread *thread;
    float (*best)[TILE];
    int32_t (*where)[TILE];
} Run;

static int padded(int size, int to) { return (size + to - 1) / to * to; }

/* The kernels that this CPU can run, best first; NULL for a name that it cannot. */
static const Kernels *kernels_named(const char *name) {
    const Kernels *have[4];
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        have[count++] = &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
        if (__builtin_cpu_supports("avxvnni")) have[count++] = &kernels_avxvnni;
        have[count++] = &kernels_avx2;
    }
#elif defined(__aarch64__)
    if (neon_has_dot()) have[count++] = &kernels_neon;
#endif
    have[count++] = &kernels_plain;
    for (int i = 0; i < count; i++)
        if (!name || !*name || !strcmp(have[i]->name, name)) return have[i];
    return NULL;
}

EXPORT const char *eg_kernels(const char *name) {
    const Kernels *found = kernels_named(name);
    return found ? found->name : NULL;
}

/* --- the model ------------------------------------------------------------------------------ */

static void shape(Matrix *m, int rows, int k, int bits) {
    m->rows = rows;
    m->k = k;
    m->bits = bits;
}

/* sizes: hidden, heads, kv_heads, head_dim, intermediate, layers, vocabulary, positions, rotary,
   bits, bits of embedding and head. NULL where they make no model that this engine takes. */
EXPORT Model *eg_model_new(const int32_t sizes[11], float epsilon, char said[SAID]) {
    const int d = sizes[0], h = sizes[1], kv = sizes[2], hd = sizes[3], f = sizes[4];
    const int bits = sizes[9], outer = sizes[10];
    for (int i = 0; i < 8; i++)
        if (sizes[i] < 1 || sizes[i] > (i == 6 ? 1 << 22 : MAX_WIDTH)) {
            snprintf(said, SAID, "size %d of the configuration is %d", i, sizes[i]);
            return NULL;
        }
    if (d % GROUP || hd % ROWS || (long)h * hd % GROUP || h % kv || (long)h * hd > MAX_WIDTH ||
        sizes[5] > MAX_LAYERS || !(epsilon > 0 && epsilon < 1)) {
        snprintf(said, SAID, "hidden size %d, %d heads of %d channels, %d key/value heads, %d layers",
                 d, h, hd, kv, sizes[5]);
        return NULL;
    }
    for (int i = 9; i < 11; i++)
        if (sizes[i] != 4 && sizes[i] != 8 && sizes[i] != 32) {
            snprintf(said, SAID, "%d bits a weight, wanted 4, 8 or 32", sizes[i]);
            return NULL;
        }
    Model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    memcpy(m, sizes, 9 * sizeof(int32_t));
    m->epsilon = epsilon;
    shape(&m->embedding, padded(sizes[6], ROWS), d, outer);
    shape(&m->head, padded(sizes[6], ROWS), d, outer);
    for (Layer *l = m->layer; l < m->layer + m->layers; l++) {
        shape(&l->qkv, (h + 2 * kv) * hd, d, bits);
        shape(&l->out, d, h * hd, bits);
        shape(&l->gate, padded(f, GROUP), d, bits);
        shape(&l->up, padded(f, GROUP), d, bits);
        shape(&l->down, d, padded(f, GROUP), bits);
    }
    return m;
}

EXPORT void eg_model_free(Model *m) { free(m); }

static int finite_floats(const float *x, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

static int finite_halves(const uint16_t *x, size_t count) {
    for (size_t i = 0; i < count; i++)
        if ((x[i] & 0x7c00) == 0x7c00) return 0;
    return 1;
}

/* Store `from` where `field` says when it has just `wanted` numbers, all of them finite. */
static int take(const void **field, const void *from, uint64_t bytes, size_t wanted, int width,
                const char *name, char said[SAID]) {
    if (bytes != wanted * (size_t)width) {
        snprintf(said, SAID, "%s has %llu bytes, wanted %zu", name, (unsigned long long)bytes,
                 wanted * (size_t)width);
        return 0;
    }
    if ((width == 4 && !finite_floats(from, wanted)) ||
        (width == 2 && !finite_halves(from, wanted))) {
        snprintf(said, SAID, "%s holds a value that is not finite", name);
        return 0;
    }
    *field = from;
    return 1;
}

static int take_matrix(Matrix *m, const char *part, const void *from, uint64_t bytes,
                       const char *name, char said[SAID]) {
    const size_t count = (size_t)m->rows * (size_t)m->k;
    if (!strcmp(part, "weight"))
        return m->bits == 32
                   ? take((const void **)&m->weights, from, bytes, count, 4, name, said)
                   : take((const void **)&m->weights, from, bytes, count * m->bits / 8, 1, name, said);
    if (!strcmp(part, "scale") && m->bits != 32)
        return take((const void **)&m->scales, from, bytes, count / GROUP, 2, name, said);
    if (!strcmp(part, "bias"))
        return take((const void **)&m->bias, from, bytes, (size_t)m->rows, 4, name, said);
    snprintf(said, SAID, "%s: no such tensor", name);
    return 0;
}

static int take_norm(Norm *n, const char *part, const void *from, uint64_t bytes, int width,
                     const char *name, char said[SAID]) {
    const float **field = !strcmp(part, "bias") ? &n->bias : &n->weight;
    return take((const void **)field, from, bytes, (size_t)width, 4, name, said);
}

/* Give the model one tensor of the file, by its name; 0, and why in `said`, when it does not fit. */
EXPORT int eg_model_set(Model *m, const char *name, const void *from, uint64_t bytes,
                        char said[SAID]) {
    char place[32] = "", part[32] = "";
    int number = -1, end = 0;
    Layer none = {0}, *l = &none;
    if (!strcmp(name, "frequencies"))
        return take((const void **)&m->frequencies, from, bytes, (size_t)m->head_dim / 2, 4, name, said);
    if (!strcmp(name, "positions"))
        return take((const void **)&m->learned, from, bytes, (size_t)m->positions * m->hidden, 4,
                    name, said);
    if (sscanf(name, "layers.%d.%31[a-z].%31[a-z]%n", &number, place, part, &end) == 3) {
        if (number >= 0 && number < m->layers) l = &m->layer[number];
    } else if (sscanf(name, "%31[a-z].%31[a-z]%n", place, part, &end) != 2) {
        *place = 0;
    }
    const struct { const char *name; Matrix *matrix; Norm *norm; } places[] = {
        {"qkv", &l->qkv, 0},   {"out", &l->out, 0},       {"gate", &l->gate, 0},
        {"up", &l->up, 0},     {"down", &l->down, 0},     {"before", 0, &l->before},
        {"after", 0, &l->after}, {"embedding", &m->embedding, 0}, {"head", &m->head, 0},
        {"last", 0, &m->last},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (strcmp(places[i].name, place) || (size_t)end != strlen(name)) continue;
        if ((i < 7) != (l != &none)) break; /* a layer's tensor without a layer, or the reverse */
        return places[i].matrix ? take_matrix(places[i].matrix, part, from, bytes, name, said)
                                : take_norm(places[i].norm, part, from, bytes, m->hidden, name, said);
    }
    snprintf(said, SAID, "%.60s: no such tensor", name);
    return 0;
}

static int whole(const Matrix *m) { return m->weights && (m->bits == 32 || m->scales); }

/* Is everything there? A head that was not given is the embedding. */
EXPORT int eg_model_ready(Model *m, char said[SAID]) {
    if (!m->head.weights) m->head = m->embedding;
    int good = whole(&m->embedding) && whole(&m->head) && m->last.weight &&
               (m->rotary ? m->frequencies != NULL : m->learned != NULL);
    for (int i = 0; good && i < m->layers; i++) {
        const Layer *l = &m->layer[i];
        good = whole(&l->qkv) && whole(&l->out) && whole(&l->up) && whole(&l->down) &&
               l->before.weight && l->after.weight && (!l->gate.weights || whole(&l->gate));
        if (!good) snprintf(said, SAID, "layer %d has not all of its tensors", i);
    }
    if (!good && !*said) snprintf(said, SAID, "embedding, positions or last norm are missing");
    return good;
}

/* --- a run: caches, buffers and threads ------------------------------------------------------ */

static void *floats(size_t count) {
    void *out = NULL;
    size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    return posix_memalign(&out, 64, bytes ? bytes : 64) ? NULL : memset(out, 0, bytes);
}

static int widest(const Model *m) {
    int width = m->hidden > m->heads * m->head_dim ? m->hidden : m->heads * m->head_dim;
    return width > m->layer[0].down.k ? width : m->layer[0].down.k;
}

static int thread_new(Thread *t, const Model *m, int capacity) {
    const size_t width = (size_t)widest(m);
    t->x = floats(TILE * (size_t)m->hidden);         /* the residual stream: each has its own */
    t->normed = floats(TILE * width);
    t->part = floats(TILE * (size_t)(m->layer[0].qkv.rows > (int)width ? m->layer[0].qkv.rows : (int)width));
    t->scores = floats((size_t)capacity);
    t->turn = floats(TILE * (size_t)m->head_dim);    /* cos, then sin, of each pair of channels */
    t->input.q = floats(TILE * width / 4);
    t->input.scale = floats(TILE * width / GROUP);
    t->input.sum = floats(TILE * width / GROUP);
    return t->x && t->normed && t->part && t->scores && t->turn && t->input.q && t->input.scale &&
           t->input.sum;
}

EXPORT void eg_run_free(Run *r) {
    if (!r) return;
    const int threads = r->crew ? crew_size(r->crew) : 0;
    crew_free(r->crew);
    for (int i = 0; r->thread && i < threads; i++) {
        Thread *t = &r->thread[i];
        free(t->x), free(t->normed), free(t->part), free(t->scores), free(t->turn);
        free(t->input.q), free(t->input.scale), free(t->input.sum);
    }
    free(r->thread), free(r->best), free(r->where), free(r->keys), free(r->values);
    free(r->query), free(r->attended), free(r->added), free(r->inner), free(r->logits);
    free(r);
}

EXPORT Run *eg_run_new(const Model *m, int batch, int threads, const char *kernels) {
    if (batch < 1 || batch > 4096) return NULL;
    Run *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->model = m;
    r->batch = batch;
    r->capacity = m->positions;
    r->kernels = kernels_named(kernels);
    r->crew = r->kernels ? crew_new(threads) : NULL;
    const size_t width = (size_t)m->heads * m->head_dim;
    const size_t cache = (size_t)batch * m->layers * m->kv_heads * r->capacity * m->head_dim;
    r->keys = calloc(cache, sizeof(float)); /* pages come when they are first written */
    r->values = calloc(cache, sizeof(float));
    r->query = floats(TILE * width);
    r->attended = floats(TILE * width);
    r->added = floats(TILE * (size_t)m->hidden);
    r->inner = floats(TILE * (size_t)m->layer[0].down.k);
    r->logits = calloc(TILE * (size_t)m->head.rows, sizeof(float));
    r->thread = calloc((size_t)threads, sizeof(Thread));
    r->best = calloc((size_t)threads, sizeof *r->best);
    r->where = calloc((size_t)threads, sizeof *r->where);
    int good = r->crew && r->keys && r->values && r->query && r->attended && r->added && r->inner &&
               r->logits && r->thread && r->best && r->where;
    for (int i = 0; good && i < threads; i++) good = thread_new(&r->thread[i], m, r->capacity);
    if (good) return r;
    eg_run_free(r);
    return NULL;
}

EXPORT float *eg_run_keys(Run *r) { return r->keys; }
EXPORT float *eg_run_values(Run *r) { return r->values; }

/* --- one pass -------------------------------------------------------------------------------- */

/* `time` new tokens of every sequence, after `past` that are in the cache already. */
typedef struct {
    Run *run;
    const int64_t *ids, *positions; /* batch x time */
    const uint8_t *mask;            /* batch x past + time; 0 hides a key */
    int time, past, all;            /* all: logits of every token, else of the last ones */
    float *logits;                  /* (batch x time or batch) x vocabulary; NULL for none */
    int32_t *chosen;                /* batch: the most likely next token; NULL for none */
} Pass;

static void share(int count, int thread, int threads, int *from, int *to) {
    *from = (int)((long)count * thread / threads);
    *to = (int)((long)count * (thread + 1) / threads);
}

static float half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, rest = bits & 1023;
    const float size = exponent ? ldexpf((float)(1024 + rest), exponent - 25) : ldexpf((float)rest, -24);
    return bits & 0x8000 ? -size : size;
}

/* One row of a packed matrix, as floats. */
static void unpack_row(const Matrix *m, int row, float *x) {
    const int block = row / ROWS, lane = row % ROWS;
    for (int k = 0; k < m->k; k++) {
        const size_t line = (size_t)block * m->k;
        if (m->bits == 32) {
            x[k] = ((const float *)m->weights)[(line + k) * ROWS + lane];
            continue;
        }
        const float scale = half(m->scales[((size_t)block * (m->k / GROUP) + k / GROUP) * ROWS + lane]);
        if (m->bits == 8) {
            x[k] = scale * ((int)m->weights[line * ROWS + (size_t)(k / 4) * 64 + lane * 4 + k % 4] - 128);
        } else {
            uint8_t two = m->weights[line * ROWS / 2 + (size_t)(k / 8) * 64 + lane * 4 + k % 4];
            x[k] = scale * ((k % 8 < 4 ? two & 15 : two >> 4) - 8);
        }
    }
}

static void project(const Run *r, Thread *t, const Matrix *m, const float *x, int tokens, int block,
                    int end, float *y, size_t stride) {
    t->input.k = m->k;
    t->input.exact = x;
    r->kernels->project(m, &t->input, tokens, block, end, y, stride);
}

static void rounded(const Run *r, Thread *t, const Matrix *m, const float *x, int tokens) {
    if (m->bits != 32) r->kernels->quantize(x, tokens, m->k, &t->input);
}

static size_t cached(const Run *r, int sequence, int layer, int head) {
    const Model *m = r->model;
    return (((size_t)sequence * m->layers + layer) * m->kv_heads + head) * r->capacity * m->head_dim;
}

/* Turn each pair of channels (c, c + head_dim / 2). Source: Su et al. 2021, arXiv:2104.09864. */
static void turn(float *x, const float *angles, int head_dim) {
    const int pairs = head_dim / 2;
    for (int i = 0; i < pairs; i++) {
        const float a = x[i], b = x[i + pairs], c = angles[i], s = angles[i + pairs];
        x[i] = a * c - b * s;
        x[i + pairs] = b * c + a * s;
    }
}

static void begin(const Pass *p, Thread *t, int first, int tokens) {
    const Model *m = p->run->model;
    const int pairs = m->head_dim / 2;
    for (int n = 0; n < tokens; n++) {
        float *x = t->x + (size_t)n * m->hidden;
        const int64_t position = p->positions[first + n];
        unpack_row(&m->embedding, (int)p->ids[first + n], x);
        if (!m->rotary)
            for (int i = 0; i < m->hidden; i++) x[i] += m->learned[position * m->hidden + i];
        for (int i = 0; m->rotary && i < pairs; i++) {
            const float angle = (float)position * m->frequencies[i];
            t->turn[(size_t)n * m->head_dim + i] = cosf(angle);
            t->turn[(size_t)n * m->head_dim + pairs + i] = sinf(angle);
        }
    }
}

/* Queries to the tile's buffer, keys and values to the cache: a thread's share of all heads. */
static void project_heads(const Pass *p, Thread *t, int thread, int layer, int first, int tokens) {
    const Run *r = p->run;
    const Model *m = r->model;
    const Matrix *qkv = &m->layer[layer].qkv;
    const int hd = m->head_dim, per_head = hd / ROWS;
    int from, to;
    share(m->heads + 2 * m->kv_heads, thread, crew_size(r->crew), &from, &to);
    rounded(r, t, qkv, t->normed, tokens);
    project(r, t, qkv, t->normed, tokens, from * per_head, to * per_head, t->part, (size_t)qkv->rows);
    for (int n = 0; n < tokens; n++)
        for (int unit = from; unit < to; unit++) {
            float *x = t->part + (size_t)n * qkv->rows + (size_t)unit * hd;
            const int sequence = (first + n) / p->time, at = p->past + (first + n) % p->time;
            const int kv = unit - m->heads;
            if (m->rotary && kv < m->kv_heads) turn(x, t->turn + (size_t)n * hd, hd);
            float *to_where;
            if (kv < 0)
                to_where = r->query + (size_t)n * m->heads * hd + (size_t)unit * hd;
            else if (kv < m->kv_heads)
                to_where = r->keys + cached(r, sequence, layer, kv) + (size_t)at * hd;
            else
                to_where = r->values + cached(r, sequence, layer, kv - m->kv_heads) + (size_t)at * hd;
            memcpy(to_where, x, sizeof(float) * (size_t)hd);
        }
}

static void attend(const Pass *p, Thread *t, int thread, int layer, int first, int tokens) {
    const Run *r = p->run;
    const Model *m = r->model;
    const int hd = m->head_dim, group = m->heads / m->kv_heads;
    int from, to;
    share(tokens * m->heads, thread, crew_size(r->crew), &from, &to);
    for (int unit = from; unit < to; unit++) {
        const int n = unit / m->heads, head = unit % m->heads;
        const int sequence = (first + n) / p->time, at = p->past + (first + n) % p->time;
        const size_t cache = cached(r, sequence, layer, head / group);
        const size_t own = ((size_t)n * m->heads + head) * hd;
        r->kernels->attend(r->query + own, r->keys + cache, r->values + cache,
                           p->mask + (size_t)sequence * (p->past + p->time), at + 1, hd, t->scores,
                           r->attended + own);
    }
}

/* A thread's share of the rows of y = m x; everybody's are there after the meeting. */
static void project_share(const Run *r, Thread *t, int thread, const Matrix *m, const float *x,
                          int tokens, float *y, size_t stride) {
    int from, to;
    share(m->rows / ROWS, thread, crew_size(r->crew), &from, &to);
    rounded(r, t, m, x, tokens);
    project(r, t, m, x, tokens, from, to, y, stride);
}

static void add(float *x, const float *y, size_t count) {
    for (size_t i = 0; i < count; i++) x[i] += y[i];
}

static void mlp(const Run *r, Thread *t, int thread, const Layer *l, int tokens) {
    const int width = l->up.rows;
    int from, to;
    share(width / ROWS, thread, crew_size(r->crew), &from, &to);
    rounded(r, t, &l->up, t->normed, tokens);
    if (l->gate.weights)
        project(r, t, &l->gate, t->normed, tokens, from, to, t->part, (size_t)width);
    project(r, t, &l->up, t->normed, tokens, from, to, r->inner, (size_t)width);
    for (int n = 0; n < tokens; n++) {
        const size_t at = (size_t)n * width + (size_t)from * ROWS;
        const int count = (to - from) * ROWS;
        if (l->gate.weights) {
            r->kernels->gated(t->part + at, r->inner + at, count);
            memcpy(r->inner + at, t->part + at, sizeof(float) * (size_t)count);
        } else {
            r->kernels->gelu(r->inner + at, count);
        }
    }
}

static void layers(const Pass *p, Thread *t, int thread, int first, int tokens) {
    const Run *r = p->run;
    const Model *m = r->model;
    const size_t stream = (size_t)tokens * m->hidden;
    for (int i = 0; i < m->layers; i++) {
        const Layer *l = &m->layer[i];
        r->kernels->normalise(t->x, &l->before, tokens, m->hidden, m->epsilon, t->normed);
        project_heads(p, t, thread, i, first, tokens);
        crew_meet(r->crew);
        attend(p, t, thread, i, first, tokens);
        crew_meet(r->crew);
        project_share(r, t, thread, &l->out, r->attended, tokens, r->added, (size_t)m->hidden);
        crew_meet(r->crew);
        add(t->x, r->added, stream);
        r->kernels->normalise(t->x, &l->after, tokens, m->hidden, m->epsilon, t->normed);
        mlp(r, t, thread, l, tokens);
        crew_meet(r->crew);
        project_share(r, t, thread, &l->down, r->inner, tokens, r->added, (size_t)m->hidden);
        crew_meet(r->crew);
        add(t->x, r->added, stream);
    }
}

/* Logits of the tile's tokens that are wanted, and the best of this thread's rows. */
static int head(const Pass *p, Thread *t, int thread, int first, int tokens, int *row) {
    const Run *r = p->run;
    const Model *m = r->model;
    int count = 0;
    for (int n = 0; n < tokens; n++) {
        const int last = (first + n) % p->time == p->time - 1;
        if (!p->all && !last) continue;
        row[count] = p->all ? first + n : (first + n) / p->time;
        r->kernels->normalise(t->x + (size_t)n * m->hidden, &m->last, 1, m->hidden, m->epsilon,
                              t->normed + (size_t)count++ * m->hidden);
    }
    if (!count) return 0;
    project_share(r, t, thread, &m->head, t->normed, count, r->logits, (size_t)m->head.rows);
    int from, to;
    share(m->head.rows / ROWS, thread, crew_size(r->crew), &from, &to);
    from *= ROWS, to *= ROWS;
    if (to > m->vocabulary) to = m->vocabulary;
    for (int n = 0; n < count; n++) {
        const float *y = r->logits + (size_t)n * m->head.rows;
        int best = from;
        for (int i = from; i < to; i++)
            if (y[i] > y[best]) best = i;
        r->best[thread][n] = from < to ? y[best] : -INFINITY;
        r->where[thread][n] = best;
    }
    return count;
}

static void hand_out(const Pass *p, int count, const int *row) {
    const Run *r = p->run;
    const Model *m = r->model;
    for (int n = 0; n < count; n++) {
        if (p->logits)
            memcpy(p->logits + (size_t)row[n] * m->vocabulary, r->logits + (size_t)n * m->head.rows,
                   sizeof(float) * (size_t)m->vocabulary);
        if (!p->chosen || p->all) continue;
        int best = 0;
        for (int i = 1; i < crew_size(r->crew); i++)
            if (r->best[i][n] > r->best[best][n]) best = i;
        p->chosen[row[n]] = isfinite(r->best[best][n]) ? r->where[best][n] : -1;
    }
}

static void pass(void *job, int thread) {
    const Pass *p = job;
    const Run *r = p->run;
    Thread *t = &r->thread[thread];
    const int total = r->batch * p->time;
    int row[TILE];
    for (int first = 0; first < total; first += TILE) {
        const int tokens = total - first < TILE ? total - first : TILE;
        begin(p, t, first, tokens);
        layers(p, t, thread, first, tokens);
        const int count = head(p, t, thread, first, tokens, row);
        if (!count) continue;
        crew_meet(r->crew);
        if (thread == 0) hand_out(p, count, row);
        crew_meet(r->crew);
    }
}

/* Run a pass; 0, and why in `said`, for tokens or positions that are out of range. */
EXPORT int eg_forward(Run *r, const int64_t *ids, const int64_t *positions, const uint8_t *mask,
                      int time, int past, int all, float *logits, int32_t *chosen, char said[SAID]) {
    const Model *m = r->model;
    if (time < 1 || past < 0 || past > r->capacity - time) {
        snprintf(said, SAID, "%d tokens after %d, the cache holds %d", time, past, r->capacity);
        return 0;
    }
    for (int i = 0; i < r->batch * time; i++) {
        if (ids[i] < 0 || ids[i] >= m->vocabulary) {
            snprintf(said, SAID, "token id %lld, they go from 0 to %d", (long long)ids[i], m->vocabulary - 1);
            return 0;
        }
        if (positions[i] < 0 || positions[i] >= m->positions) {
            snprintf(said, SAID, "position %lld, they go from 0 to %d", (long long)positions[i],
                     m->positions - 1);
            return 0;
        }
    }
    Pass p = {r, ids, positions, mask, time, past, all, logits, chosen};
    crew_run(r->crew, pass, &p);
    return 1;
}
