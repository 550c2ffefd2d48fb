/* Attention over the cache, written over lanes as kernels.h is, which includes this. engine.h draws
   the cache. Each token's numbers are the same whether it goes alone or abreast of others. */

INLINE F16 line_of(const void *from, size_t at, int bits) {
    return bits == 8 ? f16_bytes((const int8_t *)from + at) : f16_load((const float *)from + at);
}

/* Scores of 16 * blocks positions for `tokens` queries; both counts are constants where it is used. */
INLINE void score_tile(const Attention *a, int bits, int token, int tokens, int block, int blocks) {
    const size_t width = (size_t)a->head_dim * ROWS;
    const float *query = a->query + (size_t)token * a->stride;
    F16 dot[16];
    UNROLL for (int i = 0; i < tokens * blocks; i++) dot[i] = f16_zero();
    for (int c = 0; c < a->head_dim; c++)
        UNROLL for (int b = 0; b < blocks; b++) {
            F16 line = line_of(a->keys, (size_t)(block + b) * width + (size_t)c * ROWS, bits);
            UNROLL for (int t = 0; t < tokens; t++)
                dot[t * blocks + b] =
                    f16_fma(dot[t * blocks + b], line, query[(size_t)t * a->stride + c]);
        }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int b = 0; b < blocks; b++)
            f16_store(a->scores + (size_t)(token + t) * a->room + (size_t)(block + b) * ROWS,
                      dot[t * blocks + b]);
}

/* 16 * lanes channels of the values of `count` positions, mixed by their shares. */
INLINE void mix_tile(const Attention *a, int bits, int token, int tokens, int count, int lane,
                     int lanes) {
    const float *shares = a->scores + (size_t)token * a->room;
    F16 sum[16];
    UNROLL for (int i = 0; i < tokens * lanes; i++) sum[i] = f16_zero();
    for (int j = 0; j < count; j++)
        UNROLL for (int l = 0; l < lanes; l++) {
            F16 line = line_of(a->values, (size_t)j * a->head_dim + (size_t)(lane + l) * ROWS, bits);
            UNROLL for (int t = 0; t < tokens; t++)
                sum[t * lanes + l] =
                    f16_fma(sum[t * lanes + l], line, shares[(size_t)t * a->room + j]);
        }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int l = 0; l < lanes; l++)
            f16_store(a->y + (size_t)(token + t) * a->stride + (size_t)(lane + l) * ROWS,
                      sum[t * lanes + l]);
}

/* Scores to shares: of the positions that `token` sees, and 0 from there to `end`. */
static void share_out(const Attention *a, int token, int end) {
    const int count = a->count + token;
    const float scale = 1.0f / sqrtf((float)a->head_dim);
    float *x = a->scores + (size_t)token * a->room, most = -INFINITY, sum = 0;
    for (int j = 0; a->key_scales && j < count; j++) x[j] *= a->key_scales[j];
    const float own = x[count - 1] * scale;
    for (int j = 0; j < count; j++) x[j] = a->mask[j] ? x[j] * scale : -INFINITY;
    x[count - 1] = own;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < count; j++) most = larger(most, x[j]);
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < count; j++) {
        const float share = x[j] == -INFINITY ? 0.0f : exponential(x[j] - most);
        x[j] = share;
        sum += share;
    }
    const float part = 1.0f / sum;
    for (int j = 0; j < count; j++) x[j] *= part;
    for (int j = 0; a->value_scales && j < count; j++) x[j] *= a->value_scales[j];
    for (int j = count; j < end; j++) x[j] = 0;
}

/* In pieces of as many blocks, or lanes, as the registers hold sums for; the last one is smaller, as
   one sum alone would wait for itself at every step. */
INLINE int piece(int left, int most) { return left < most ? left : most; }

INLINE void attend_abreast(const Attention *a, int bits, int token, int tokens) {
    const int end = a->count + token + tokens - 1, wide = tokens == 1 ? 4 : 2;
    const int blocks = (end + ROWS - 1) / ROWS, lanes = a->head_dim / ROWS;
    for (int b = 0, n; b < blocks; b += n) {
        n = piece(blocks - b, wide);
        if (n == 4) score_tile(a, bits, token, tokens, b, 4);
        if (n == 3) score_tile(a, bits, token, tokens, b, 3);
        if (n == 2) score_tile(a, bits, token, tokens, b, 2);
        if (n == 1) score_tile(a, bits, token, tokens, b, 1);
    }
    for (int t = 0; t < tokens; t++) share_out(a, token + t, end);
    for (int l = 0, n; l < lanes; l += n) {
        n = piece(lanes - l, wide);
        if (n == 4) mix_tile(a, bits, token, tokens, end, l, 4);
        if (n == 3) mix_tile(a, bits, token, tokens, end, l, 3);
        if (n == 2) mix_tile(a, bits, token, tokens, end, l, 2);
        if (n == 1) mix_tile(a, bits, token, tokens, end, l, 1);
    }
}

INLINE void attend_all(const Attention *a, int bits) {
    if (a->tokens == ABREAST) attend_abreast(a, bits, 0, ABREAST);
    for (int t = 0; a->tokens < ABREAST && t < a->tokens; t++) attend_abreast(a, bits, t, 1);
}

static void attend(const Attention *a) {
    if (a->key_scales) attend_all(a, 8);
    else attend_all(a, 32);
}
