/* The decoder: tokens in, logits or tokens out. engine.h draws the layout; kernels.h does the
   arithmetic. */
#include "engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avxvnni, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
int neon_has_dot(void);
#endif

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

/* Without a touch: its pages come when something is drawn. */
static int sieve_new(Sieve *s, int count) {
    s->x = malloc(sizeof(double) * (size_t)count);
    s->weight = malloc(sizeof(double) * (size_t)count);
    s->id = malloc(sizeof(int32_t) * (size_t)count);
    s->heap = malloc(sizeof(int32_t) * (size_t)count);
    s->kept = malloc((size_t)count);
    return s->x && s->weight && s->id && s->heap && s->kept;
}

static int desk_new(Desk *d, const Model *m, size_t tokens) {
    const size_t width = (size_t)widest(m);
    d->normed = floats(tokens * width);
    d->turn = floats(tokens * (size_t)m->head_dim);
    d->input.q = floats(tokens * width / 4);
    d->input.scale = floats(tokens * width / GROUP);
    d->input.sum = floats(tokens * width / GROUP);
    return d->normed && d->turn && d->input.q && d->input.scale && d->input.sum;
}

static void desk_free(Desk *d) {
    free(d->normed), free(d->turn), free(d->input.q), free(d->input.scale), free(d->input.sum);
}

static int thread_new(Thread *t, const Model *m, int room) {
    const int width = widest(m), rows = m->layer[0].qkv.rows;
    t->x = floats(TILE * (size_t)m->hidden); /* the residual stream, of its own tokens */
    t->part = floats(TILE * (size_t)(rows > width ? rows : width));
    t->scores = floats(ABREAST * (size_t)room);
    const int good = desk_new(&t->desk, m, TOGETHER) && sieve_new(&t->sieve, m->vocabulary);
    return good && t->x && t->part && t->scores;
}

EXPORT void eg_run_free(Run *r) {
    if (!r) return;
    crew_free(r->crew);
    for (int i = 0; r->thread && i < r->threads; i++) {
        Thread *t = &r->thread[i];
        free(t->x), free(t->part), free(t->scores);
        desk_free(&t->desk);
        free(t->sieve.x), free(t->sieve.weight), free(t->sieve.id), free(t->sieve.heap);
        free(t->sieve.kept);
    }
    desk_free(&r->desk);
    free(r->thread), free(r->best), free(r->where), free(r->keys), free(r->values);
    free(r->key_scales), free(r->value_scales);
    free(r->query), free(r->attended), free(r->added), free(r->inner), free(r->logits);
    free(r);
}

/* cache_bits: 32 for keys and values as they are, 8 rounded with a scale a head and position. */
EXPORT Run *eg_run_new(const Model *m, int batch, int threads, int cache_bits, const char *kernels) {
    if (batch < 1 || batch > 4096 || (cache_bits != 8 && cache_bits != 32)) return NULL;
    Run *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->model = m;
    r->batch = batch;
    r->capacity = m->positions;
    r->room = (m->positions + ROWS - 1) / ROWS * ROWS;
    r->kernels = kernels_named(kernels);
    r->crew = r->kernels ? crew_new(threads) : NULL;
    const size_t width = (size_t)m->heads * m->head_dim;
    r->threads = threads;
    r->cache_bits = cache_bits;
    const size_t cached = (size_t)batch * m->layers * m->kv_heads * r->room;
    const size_t bytes = cached * m->head_dim * (size_t)cache_bits / 8;
    r->keys = calloc(bytes, 1); /* pages come when they are first written */
    r->values = calloc(bytes, 1);
    r->key_scales = calloc(cached, cache_bits == 8 ? sizeof(float) : 0);
    r->value_scales = calloc(cached, cache_bits == 8 ? sizeof(float) : 0);
    r->query = floats(TILE * width);
    r->attended = floats(TILE * width);
    r->added = floats(TILE * (size_t)m->hidden);
    r->inner = floats(TILE * (size_t)m->layer[0].down.k);
    r->logits = calloc(TILE * (size_t)m->head.rows, sizeof(float));
    r->thread = calloc((size_t)threads, sizeof(Thread));
    r->best = calloc((size_t)threads, sizeof *r->best);
    r->where = calloc((size_t)threads, sizeof *r->where);
    int good = r->crew && r->keys && r->values &&
               (cache_bits == 32 || (r->key_scales && r->value_scales)) && r->query &&
               r->attended && r->added && r->inner && r->logits && r->thread && r->best &&
               r->where && desk_new(&r->desk, m, TILE);
    for (int i = 0; good && i < threads; i++) good = thread_new(&r->thread[i], m, r->room);
    if (good) return r;
    eg_run_free(r);
    return NULL;
}

EXPORT void *eg_run_keys(Run *r) { return r->keys; }
EXPORT void *eg_run_values(Run *r) { return r->values; }
EXPORT float *eg_run_key_scales(Run *r) { return r->key_scales; }
EXPORT float *eg_run_value_scales(Run *r) { return r->value_scales; }
EXPORT int eg_run_threads(const Run *r) { return crew_size(r->crew); }
EXPORT int eg_run_late(const Run *r) { return crew_late(r->crew); }
EXPORT void eg_run_use(Run *r, int threads) { crew_use(r->crew, threads); }

/* --- one pass -------------------------------------------------------------------------------- */

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
    const int lane = row % ROWS, groups = m->k / GROUP;
    const size_t before = (size_t)(row / ROWS) * m->k; /* of each of 16 rows */
    if (m->bits == 32) {
        const float *from = (const float *)m->weights + before * ROWS + lane;
        for (int k = 0; k < m->k; k++) x[k] = from[(size_t)k * ROWS];
        return;
    }
    const uint8_t *at = m->weights + before * ROWS * (size_t)m->bits / 8 + lane * 4;
    const uint16_t *scales = m->scales + (m->by_row ? (size_t)row - lane : before / GROUP * ROWS) + lane;
    for (int g = 0; g < groups; g++) {
        const float scale = half(scales[m->by_row ? 0 : g * ROWS]);
        const int lines = GROUP / 32 * m->bits; /* of 64 bytes */
        for (int line = 0; line < lines; line++, at += 64, x += GROUP / lines)
            for (int k = 0; k < 4; k++) {
                if (m->bits == 8) x[k] = scale * (at[k] - 128);
                if (m->bits == 4) x[k] = scale * ((at[k] & 15) - 8), x[k + 4] = scale * ((at[k] >> 4) - 8);
            }
    }
}

/* Tokens that go through a layer together: which they are of batch x time. */
typedef struct {
    int tokens, which[TILE];
} Tile;

/* The tokens that a thread normalises, rounds and keeps the residual stream of: with few all of them,
   each thread for itself, since a meeting takes longer; with many a share, laid on a common desk. */
typedef struct {
    int from, to, together;
    Desk *desk;
} Own;

static Own own_of(Run *r, int thread, int tokens) {
    Own own = {0, tokens, tokens >= TOGETHER, &r->thread[thread].desk};
    if (!own.together) return own;
    own.desk = &r->desk;
    share(tokens, thread, crew_size(r->crew), &own.from, &own.to);
    return own;
}

/* All rows of x as the kernels take them; a thread rounds its own, then waits for the others'. */
static Input rounded(const Run *r, const Own *own, const Matrix *m, const float *x) {
    Input in = own->desk->input;
    const size_t first = (size_t)own->from * m->k;
    in.k = m->k;
    in.exact = x;
    if (m->bits != 32) {
        Input mine = {in.q + first, in.scale + first / GROUP, in.sum + first / GROUP, NULL, m->k};
        r->kernels->quantize(x + first, own->to - own->from, m->k, &mine);
    }
    if (own->together) crew_meet(r->crew);
    return in;
}

static void normalise(const Run *r, const Thread *t, const Own *own, const Norm *norm) {
    const Model *m = r->model;
    const size_t first = (size_t)own->from * m->hidden;
    r->kernels->normalise(t->x + first, norm, own->to - own->from, m->hidden, m->epsilon,
                          own->desk->normed + first);
}

/* The first position of a head in the cache. */
static size_t cached(const Run *r, int sequence, int layer, int head) {
    const Model *m = r->model;
    return (((size_t)sequence * m->layers + layer) * m->kv_heads + head) * r->room;
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

/* How far the channels of each token are turned. */
static void set_turns(const Pass *p, const Own *own, const Tile *tile) {
    const Model *m = p->run->model;
    const int pairs = m->head_dim / 2;
    for (int n = own->from; m->rotary && n < own->to; n++) {
        float *turn = own->desk->turn + (size_t)n * m->head_dim;
        for (int i = 0; i < pairs; i++) {
            const float angle = (float)p->positions[tile->which[n]] * m->frequencies[i];
            turn[i] = cosf(angle);
            turn[pairs + i] = sinf(angle);
        }
    }
}

static void begin(const Pass *p, Thread *t, const Own *own, const Tile *tile) {
    const Model *m = p->run->model;
    for (int n = own->from; n < own->to; n++) {
        float *x = t->x + (size_t)n * m->hidden;
        const int64_t position = p->positions[tile->which[n]];
        unpack_row(&m->embedding, (int)p->ids[tile->which[n]], x);
        if (!m->rotary)
            for (int i = 0; i < m->hidden; i++) x[i] += m->learned[position * m->hidden + i];
    }
    set_turns(p, own, tile);
}

/* One head of one position to the cache; engine.h draws where it lies. What this thread has rounded
   for the product before is no longer needed, so its bytes serve here. */
static void store_key(const Run *r, Thread *t, size_t head, int at, const float *x) {
    const int hd = r->model->head_dim;
    const size_t first = (head + (size_t)(at / ROWS * ROWS)) * hd + at % ROWS;
    if (r->cache_bits == 32) {
        for (int c = 0; c < hd; c++) ((float *)r->keys)[first + (size_t)c * ROWS] = x[c];
        return;
    }
    r->kernels->round8(x, hd, t->desk.input.q, r->key_scales + head + at);
    for (int c = 0; c < hd; c++) ((int8_t *)r->keys)[first + (size_t)c * ROWS] = t->desk.input.q[c];
}

static void store_value(const Run *r, size_t head, int at, const float *x) {
    const size_t hd = (size_t)r->model->head_dim, first = (head + (size_t)at) * hd;
    if (r->cache_bits == 32)
        memcpy((float *)r->values + first, x, sizeof(float) * hd);
    else
        r->kernels->round8(x, (int)hd, (int8_t *)r->values + first, r->value_scales + head + at);
}

/* Queries to the tile's buffer, keys and values to the cache: a thread's share of the heads from
   `begin` to `end`, queries first. */
static void project_heads(const Pass *p, Thread *t, const Own *own, int thread, int layer,
                          const Tile *tile, int begin, int end) {
    const Run *r = p->run;
    const Model *m = r->model;
    const Matrix *qkv = &m->layer[layer].qkv;
    const int hd = m->head_dim, per_head = hd / ROWS;
    int from, to;
    share(end - begin, thread, crew_size(r->crew), &from, &to);
    from += begin, to += begin;
    normalise(r, t, own, &m->layer[layer].before);
    const Input in = rounded(r, own, qkv, own->desk->normed);
    r->kernels->project(qkv, &in, tile->tokens, from * per_head, to * per_head, t->part,
                        (size_t)qkv->rows);
    for (int n = 0; n < tile->tokens; n++)
        for (int unit = from; unit < to; unit++) {
            float *x = t->part + (size_t)n * qkv->rows + (size_t)unit * hd;
            const int sequence = tile->which[n] / p->time, at = p->past + tile->which[n] % p->time;
            const int kv = unit - m->heads;
            if (m->rotary && kv < m->kv_heads) turn(x, own->desk->turn + (size_t)n * hd, hd);
            if (kv < 0)
                memcpy(r->query + ((size_t)n * m->heads + unit) * hd, x, sizeof(float) * (size_t)hd);
            else if (kv < m->kv_heads)
                store_key(r, t, cached(r, sequence, layer, kv), at, x);
            else
                store_value(r, cached(r, sequence, layer, kv - m->kv_heads), at, x);
        }
}

/* Where the tile's runs of tokens begin that go over the cache together: neighbours of one sequence.
   Returns how many there are; start[that] is the tile's end. */
static int runs_of(const Pass *p, const Tile *tile, int start[TILE + 1]) {
    int runs = 0;
    for (int n = 0, length; n < tile->tokens; n += length, runs++) {
        start[runs] = n;
        for (length = 1; length < ABREAST && n + length < tile->tokens; length++) {
            const int next = tile->which[n + length];
            if (next != tile->which[n] + length || next % p->time == 0) break;
        }
    }
    start[runs] = tile->tokens;
    return runs;
}

static void attend(const Pass *p, Thread *t, int thread, int layer, const Tile *tile) {
    const Run *r = p->run;
    const Model *m = r->model;
    const int hd = m->head_dim, group = m->heads / m->kv_heads;
    int start[TILE + 1], from, to;
    const int runs = runs_of(p, tile, start);
    share(runs * m->heads, thread, crew_size(r->crew), &from, &to);
    for (int unit = from; unit < to; unit++) {
        const int head = unit / runs, n = start[unit % runs];
        const int sequence = tile->which[n] / p->time;
        const size_t cache = cached(r, sequence, layer, head / group);
        const size_t at = cache * hd * (size_t)r->cache_bits / 8;
        const size_t own = ((size_t)n * m->heads + head) * hd;
        const Attention a = {
            .query = r->query + own,
            .y = r->attended + own,
            .stride = (size_t)m->heads * hd,
            .keys = (const char *)r->keys + at,
            .values = (const char *)r->values + at,
            .key_scales = r->cache_bits == 8 ? r->key_scales + cache : NULL,
            .value_scales = r->cache_bits == 8 ? r->value_scales + cache : NULL,
            .mask = p->mask + (size_t)sequence * p->stride,
            .scores = t->scores,
            .tokens = start[unit % runs + 1] - n,
            .count = p->past + tile->which[n] % p->time + 1,
            .head_dim = hd,
            .room = r->room,
        };
        r->kernels->attend(&a);
    }
}

/* A thread's share of the rows of y = m x; everybody's are there after the meeting. */
static void project_share(const Run *r, const Own *own, int thread, const Matrix *m, const float *x,
                          int tokens, float *y) {
    int from, to;
    share(m->rows / ROWS, thread, crew_size(r->crew), &from, &to);
    const Input in = rounded(r, own, m, x);
    r->kernels->project(m, &in, tokens, from, to, y, (size_t)m->rows);
}

/* What the layer adds to the residual stream, after the meeting that completes it. */
static void add(const Run *r, const Thread *t, const Own *own) {
    const size_t width = (size_t)r->model->hidden;
    for (size_t i = own->from * width; i < own->to * width; i++) t->x[i] += r->added[i];
}

static void mlp(const Run *r, Thread *t, const Own *own, int thread, const Layer *l, int tokens) {
    const int width = l->up.rows;
    int from, to;
    share(width / ROWS, thread, crew_size(r->crew), &from, &to);
    const Input in = rounded(r, own, &l->up, own->desk->normed);
    if (l->gate.weights)
        r->kernels->project(&l->gate, &in, tokens, from, to, t->part, (size_t)width);
    r->kernels->project(&l->up, &in, tokens, from, to, r->inner, (size_t)width);
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

/* What a layer makes of the tile's tokens, whose queries, keys and values are there. */
static void rest_of_layer(const Pass *p, Thread *t, const Own *own, int thread, int layer,
                          const Tile *tile) {
    const Run *r = p->run;
    const Layer *l = &r->model->layer[layer];
    attend(p, t, thread, layer, tile);
    crew_meet(r->crew);
    project_share(r, own, thread, &l->out, r->attended, tile->tokens, r->added);
    crew_meet(r->crew);
    add(r, t, own);
    normalise(r, t, own, &l->after);
    mlp(r, t, own, thread, l, tile->tokens);
    crew_meet(r->crew);
    project_share(r, own, thread, &l->down, r->inner, tile->tokens, r->added);
    crew_meet(r->crew);
    add(r, t, own);
}

/* Whether the logits of a token are wanted: of the last ones, or of all. */
static int wanted(const Pass *p, int which) { return p->all || which % p->time == p->time - 1; }

/* Go on with the tokens alone whose logits are wanted: nobody reads of the others what comes after
   their last keys and values. Everything else of the last layer is for these few. */
static void narrow(const Pass *p, Thread *t, Own *own, int thread, Tile *tile) {
    Run *r = p->run;
    const size_t width = (size_t)r->model->hidden;
    const Own before = *own;
    float *stream = before.together ? r->added : t->x; /* others may keep those tokens from now on */
    int kept = 0;
    for (int n = 0; n < tile->tokens; n++) {
        if (!wanted(p, tile->which[n])) continue;
        if (n >= before.from && n < before.to)
            memmove(stream + kept * width, t->x + n * width, sizeof(float) * width);
        tile->which[kept++] = tile->which[n];
    }
    tile->tokens = kept;
    *own = own_of(r, thread, kept);
    crew_meet(r->crew);
    if (before.together && own->to > own->from)
        memcpy(t->x + own->from * width, r->added + own->from * width,
               sizeof(float) * width * (size_t)(own->to - own->from));
    set_turns(p, own, tile);
}

static int all_wanted(const Pass *p, const Tile *tile) {
    for (int n = 0; n < tile->tokens; n++)
        if (!wanted(p, tile->which[n])) return 0;
    return 1;
}

/* Afterwards the tile has none but the tokens whose logits are wanted. */
static void layers(const Pass *p, Thread *t, Own *own, int thread, Tile *tile) {
    const Run *r = p->run;
    const Model *m = r->model;
    const int last = m->layers - 1, every = m->heads + 2 * m->kv_heads;
    for (int i = 0; i <= last; i++) {
        if (i < last || all_wanted(p, tile)) {
            project_heads(p, t, own, thread, i, tile, 0, every);
            crew_meet(r->crew);
        } else {
            project_heads(p, t, own, thread, i, tile, m->heads, every);
            narrow(p, t, own, thread, tile);
            if (!tile->tokens) return;
            project_heads(p, t, own, thread, i, tile, 0, m->heads);
            crew_meet(r->crew);
        }
        rest_of_layer(p, t, own, thread, i, tile);
    }
}

/* The tile's logits, and the best of this thread's rows. */
static void head(const Pass *p, const Thread *t, const Own *own, int thread, const Tile *tile) {
    const Run *r = p->run;
    const Model *m = r->model;
    normalise(r, t, own, &m->last);
    project_share(r, own, thread, &m->head, own->desk->normed, tile->tokens, r->logits);
    int from, to;
    share(m->head.rows / ROWS, thread, crew_size(r->crew), &from, &to);
    from *= ROWS, to *= ROWS;
    if (to > m->vocabulary) to = m->vocabulary;
    for (int n = 0; n < tile->tokens; n++) {
        int best = 0;
        r->best[thread][n] = from < to ? r->kernels->largest(r->logits + (size_t)n * m->head.rows + from,
                                                             to - from, &best)
                                       : -INFINITY;
        r->where[thread][n] = from + best;
    }
}

/* The next token of the tile's row `n`; -1 where a logit is not finite. */
static int choose(const Pass *p, Thread *t, int n, int row) {
    const Run *r = p->run;
    int best = 0;
    for (int i = 0; i < crew_size(r->crew); i++) {
        if (r->best[i][n] != r->best[i][n]) return -1;
        if (r->best[i][n] > r->best[best][n]) best = i;
    }
    if (!isfinite(r->best[best][n])) return -1;
    if (!p->sampling) return r->where[best][n];
    const int count = r->model->vocabulary;
    return sample(r->kernels, p->sampling, r->logits + (size_t)n * r->model->head.rows, count,
                  p->seen ? p->seen + (size_t)row * count : NULL, p->dice ? p->dice[row] : 0,
                  &t->sieve);
}

/* Every thread does some of the tokens. */
static void hand_out(const Pass *p, Thread *t, int thread, const Tile *tile) {
    const Run *r = p->run;
    const size_t vocabulary = (size_t)r->model->vocabulary;
    for (int n = thread; n < tile->tokens; n += crew_size(r->crew)) {
        const int row = p->all ? tile->which[n] : tile->which[n] / p->time;
        if (p->logits)
            memcpy(p->logits + (size_t)row * vocabulary,
                   r->logits + (size_t)n * r->model->head.rows, sizeof(float) * vocabulary);
        if (p->chosen && !p->all) p->chosen[row] = choose(p, t, n, row);
    }
}

static void pass(void *job, int thread) {
    const Pass *p = job;
    Run *r = p->run;
    Thread *t = &r->thread[thread];
    const int total = r->batch * p->time;
    for (int first = 0, turn = 0; first < total; first += TILE, turn ^= 1) {
        Tile tile = {.tokens = total - first < TILE ? total - first : TILE};
        for (int n = 0; n < tile.tokens; n++) tile.which[n] = first + n;
        if (thread == 0) r->stop[turn] = p->cancel && *p->cancel;
        Own own = own_of(r, thread, tile.tokens);
        begin(p, t, &own, &tile);
        layers(p, t, &own, thread, &tile);
        if (r->stop[turn]) return;
        if (!tile.tokens) continue;
        head(p, t, &own, thread, &tile);
        crew_gather(r->crew);
        hand_out(p, t, thread, &tile);
        crew_gather(r->crew);
    }
}

int run_pass(Pass *p, char said[SAID]) {
    Run *r = p->run;
    const Model *m = r->model;
    if (p->time < 1 || p->past < 0 || p->past > r->capacity - p->time) {
        snprintf(said, SAID, "%d tokens after %d, the cache holds %d", p->time, p->past, r->capacity);
        return 0;
    }
    for (int i = 0; i < r->batch * p->time; i++) {
        if (p->ids[i] < 0 || p->ids[i] >= m->vocabulary) {
            snprintf(said, SAID, "token id %lld, they go from 0 to %d", (long long)p->ids[i],
                     m->vocabulary - 1);
            return 0;
        }
        if (p->positions[i] < 0 || p->positions[i] >= m->positions) {
            snprintf(said, SAID, "position %lld, they go from 0 to %d", (long long)p->positions[i],
                     m->positions - 1);
            return 0;
        }
    }
    r->stop[0] = r->stop[1] = 0;
    crew_run(r->crew, pass, p);
    return r->stop[0] || r->stop[1] ? -1 : 1;
}

/* Run a pass; 0, and why in `said`, for tokens or positions that are out of range. */
EXPORT int eg_forward(Run *r, const int64_t *ids, const int64_t *positions, const uint8_t *mask,
                      int time, int past, int all, float *logits, char said[SAID]) {
    Pass p = {.run = r, .ids = ids, .positions = positions, .mask = mask, .time = time};
    p.stride = (size_t)past + (size_t)time, p.past = past, p.all = all, p.logits = logits;
    return run_pass(&p, said);
}
