/* The decoder: tokens in, logits or tokens out. engine.h draws the layout; kernels.h does the
   arithmetic. */
#include "pass.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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
