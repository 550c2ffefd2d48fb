/* Keys and values of a run: where they lie, and attention over them. engine.h draws it. */
#include "pass.h"

#include <string.h>

/* The first position of a head in the cache. */
size_t cached(const Run *r, int sequence, int layer, int head) {
    const Model *m = r->model;
    return (((size_t)sequence * m->layers + layer) * m->kv_heads + head) * r->room;
}

/* One head of one position to the cache; engine.h draws where it lies. What this thread has rounded
   for the product before is no longer needed, so its bytes serve here. */
void store_key(const Run *r, Thread *t, size_t head, int at, const float *x) {
    const int hd = r->model->head_dim;
    const size_t first = (head + (size_t)(at / ROWS * ROWS)) * hd + at % ROWS;
    if (r->cache_bits == 32) {
        for (int c = 0; c < hd; c++) ((float *)r->keys)[first + (size_t)c * ROWS] = x[c];
        return;
    }
    r->kernels->round8(x, hd, t->desk.input.q, r->key_scales + head + at);
    for (int c = 0; c < hd; c++) ((int8_t *)r->keys)[first + (size_t)c * ROWS] = t->desk.input.q[c];
}

void store_value(const Run *r, size_t head, int at, const float *x) {
    const size_t hd = (size_t)r->model->head_dim, first = (head + (size_t)at) * hd;
    if (r->cache_bits == 32)
        memcpy((float *)r->values + first, x, sizeof(float) * hd);
    else
        r->kernels->round8(x, (int)hd, (int8_t *)r->values + first, r->value_scales + head + at);
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

void attend(const Pass *p, Thread *t, int thread, int layer, const Tile *tile) {
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
