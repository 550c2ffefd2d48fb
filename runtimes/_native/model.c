/* The weights of a decoder, as they lie in the file.

   A file is never trusted: every size is computed here from the configuration and compared with
   what came, and every number that could spoil a sum is looked at once. */
#include "engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int padded(int size, int to) { return (size + to - 1) / to * to; }

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
    if (!strcmp(part, "scale") && m->bits != 32) {
        m->by_row = bytes == (size_t)m->rows * 2;
        return take((const void **)&m->scales, from, bytes,
                    m->by_row ? (size_t)m->rows : count / GROUP, 2, name, said);
    }
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
