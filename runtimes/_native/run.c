/* A run: the kernels of this CPU, and caches, buffers and threads for one batch size. */
#include "engine.h"

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
