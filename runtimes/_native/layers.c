/* The way of a tile of tokens through the layers of a decoder. */
#include "pass.h"

#include <math.h>
#include <string.h>

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

Own own_of(Run *r, int thread, int tokens) {
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

void normalise(const Run *r, const Thread *t, const Own *own, const Norm *norm) {
    const Model *m = r->model;
    const size_t first = (size_t)own->from * m->hidden;
    r->kernels->normalise(t->x + first, norm, own->to - own->from, m->hidden, m->epsilon,
                          own->desk->normed + first);
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

void begin(const Pass *p, Thread *t, const Own *own, const Tile *tile) {
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

/* A thread's share of the rows of y = m x; everybody's are there after the meeting. */
void project_share(const Run *r, const Own *own, int thread, const Matrix *m, const float *x,
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
void layers(const Pass *p, Thread *t, Own *own, int thread, Tile *tile) {
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
