/* Every kernel of NEON against the one in plain C, on the CPU that runs this: `tests/arm64/kernels`
   compiles it for ARM and runs it in the emulator. Prints the largest difference of each. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../runtimes/_native/engine.h"

extern const Kernels kernels_plain, kernels_neon;
int neon_has_dot(void);

enum { TOKENS = 7, BLOCKS = 7, K = 96, HEAD = 48, COUNT = 29, WIDE = 501 };

static int failed;

static float any(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static void fill(float *x, int count, float size) {
    for (int i = 0; i < count; i++) x[i] = size * any();
}

/* The largest difference as a share of the largest number may be `most`. */
static void same(const char *what, const float *wanted, const float *found, int count, double most) {
    double size = 0, apart = 0;
    for (int i = 0; i < count; i++) {
        size = fmax(size, fabs((double)wanted[i]));
        apart = fmax(apart, fabs((double)wanted[i] - (double)found[i]));
    }
    const int good = apart <= most * size && size > 0;
    printf("%-16s %s %.1e\n", what, good ? "ok" : "FAILED", size > 0 ? apart / size : -1.0);
    failed |= !good;
}

static void equal(const char *what, const void *wanted, const void *found, size_t bytes) {
    const int good = !memcmp(wanted, found, bytes);
    printf("%-16s %s\n", what, good ? "ok exactly" : "FAILED");
    failed |= !good;
}

static int8_t q[2][TOKENS * K];
static float scale[2][TOKENS * K / GROUP], x[TOKENS * K];
static int32_t sum[2][TOKENS * K / GROUP];

static Input input(int of) { return (Input){q[of], scale[of], sum[of], x, K}; }

static void rounded(void) {
    Input plain = input(0), neon = input(1);
    fill(x, TOKENS * K, 3);
    kernels_plain.quantize(x, TOKENS, K, &plain);
    kernels_neon.quantize(x, TOKENS, K, &neon);
    equal("quantize", q[0], q[1], sizeof q[0]);
    equal("quantize sums", sum[0], sum[1], sizeof sum[0]);
    same("quantize scales", scale[0], scale[1], TOKENS * K / GROUP, 0);
}

static void products(int bits) {
    static float exact[BLOCKS * ROWS * K], bias[BLOCKS * ROWS], y[2][TOKENS * BLOCKS * ROWS];
    static uint8_t bytes[BLOCKS * ROWS * K];
    static uint16_t halves[BLOCKS * ROWS * K / GROUP];
    fill(exact, BLOCKS * ROWS * K, 1);
    fill(bias, BLOCKS * ROWS, 1);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(1 + rand() % 255);
    for (size_t i = 0; i < sizeof halves / 2; i++) halves[i] = (uint16_t)(0x1c00 + rand() % 2048);
    halves[0] = 3; /* one that is subnormal */
    for (int by_row = 0; by_row < (bits == 32 ? 1 : 2); by_row++) {
        Matrix m = {bits == 32 ? (const uint8_t *)exact : bytes, halves, bias, BLOCKS * ROWS, K, bits,
                    by_row};
        Input in = input(0);
        memset(y, 0, sizeof y);
        kernels_plain.project(&m, &in, TOKENS, 1, BLOCKS, y[0], BLOCKS * ROWS);
        kernels_neon.project(&m, &in, TOKENS, 1, BLOCKS, y[1], BLOCKS * ROWS);
        char what[48];
        snprintf(what, sizeof what, "project %d bit%s", bits, by_row ? ", a scale a row" : "");
        same(what, y[0], y[1], TOKENS * BLOCKS * ROWS, 1e-6);
    }
}

static void norms(void) {
    static float weight[K], bias[K], y[2][TOKENS * K];
    fill(weight, K, 1), fill(bias, K, 1);
    for (int layer_norm = 0; layer_norm < 2; layer_norm++) {
        Norm norm = {weight, layer_norm ? bias : NULL};
        kernels_plain.normalise(x, &norm, TOKENS, K, 1e-5f, y[0]);
        kernels_neon.normalise(x, &norm, TOKENS, K, 1e-5f, y[1]);
        same(layer_norm ? "layer norm" : "rms norm", y[0], y[1], TOKENS * K, 1e-6);
    }
}

/* Tokens alone and abreast of each other, over positions that do not fill their last block. */
static void attention(void) {
    enum { ROOM = 32 };
    static float query[ABREAST * HEAD], scores[ABREAST * ROOM], y[2][ABREAST * HEAD];
    static float keys[ROOM * HEAD], values[ROOM * HEAD], scales[2][2][ROOM];
    static int8_t keys8[2][ROOM * HEAD], values8[ROOM * HEAD];
    uint8_t mask[ROOM];
    fill(query, ABREAST * HEAD, 2), fill(keys, ROOM * HEAD, 2), fill(values, ROOM * HEAD, 2);
    for (int i = 0; i < ROOM; i++) mask[i] = i > 2;
    for (int i = 0; i < ROOM; i++)
        for (int of = 0; of < 2; of++) {
            const Kernels *k = of ? &kernels_neon : &kernels_plain;
            k->round8(keys + i * HEAD, HEAD, keys8[of] + i * HEAD, scales[of][0] + i);
            k->round8(values + i * HEAD, HEAD, values8 + i * HEAD, scales[of][1] + i);
        }
    equal("round8", keys8[0], keys8[1], sizeof keys8[0]);
    same("round8 scales", scales[0][0], scales[1][0], 2 * ROOM, 0);
    for (int bits = 8; bits <= 32; bits += 24)
        for (int tokens = 1; tokens <= ABREAST; tokens++) {
            for (int of = 0; of < 2; of++) {
                const Attention a = {
                    .query = query, .y = y[of], .stride = HEAD, .mask = mask, .scores = scores,
                    .keys = bits == 8 ? (void *)keys8[0] : keys,
                    .values = bits == 8 ? (void *)values8 : values,
                    .key_scales = bits == 8 ? scales[0][0] : NULL,
                    .value_scales = bits == 8 ? scales[0][1] : NULL,
                    .tokens = tokens, .count = COUNT - ABREAST + 1, .head_dim = HEAD, .room = ROOM,
                };
                (of ? &kernels_neon : &kernels_plain)->attend(&a);
            }
            char what[32];
            snprintf(what, sizeof what, "attend %d, %d bit", tokens, bits);
            same(what, y[0], y[1], tokens * HEAD, 2e-6);
        }
}

static void activations(void) {
    static float up[WIDE], y[2][WIDE];
    fill(up, WIDE, 4), fill(y[0], WIDE, 20);
    memcpy(y[1], y[0], sizeof y[0]);
    kernels_plain.gated(y[0], up, WIDE);
    kernels_neon.gated(y[1], up, WIDE);
    same("gated", y[0], y[1], WIDE, 1e-6);
    fill(y[0], WIDE, 6);
    memcpy(y[1], y[0], sizeof y[0]);
    kernels_plain.gelu(y[0], WIDE);
    kernels_neon.gelu(y[1], WIDE);
    same("gelu", y[0], y[1], WIDE, 1e-6);
}

static void choices(void) {
    static float logits[WIDE], weight[2][WIDE];
    static double wide[WIDE], e[2][WIDE];
    int at[2] = {-1, -1};
    fill(logits, WIDE, 9);
    logits[400] = logits[77] = 10; /* the first of equals */
    const float most[2] = {kernels_plain.largest(logits, WIDE, at),
                           kernels_neon.largest(logits, WIDE, at + 1)};
    equal("largest", most, most + 1, sizeof *most);
    failed |= at[0] != 77 || at[1] != 77;
    for (int i = 0; i < WIDE; i++) wide[i] = logits[i] * 30;
    kernels_plain.exponentials(wide, 300, WIDE, e[0]);
    kernels_neon.exponentials(wide, 300, WIDE, e[1]);
    double apart = 0;
    for (int i = 0; i < WIDE; i++) {
        const double wanted = exp(wide[i] - 300);
        apart = fmax(apart, fmax(fabs(e[0][i] - wanted), fabs(e[1][i] - wanted)) / wanted);
        weight[0][i] = (float)e[0][i], weight[1][i] = (float)e[1][i];
    }
    same("exponentials", weight[0], weight[1], WIDE, 1e-7);
    printf("%-16s %s %.1e\n", "  against exp", apart < 1e-13 ? "ok" : "FAILED", apart);
    failed |= apart >= 1e-13;
    logits[300] = NAN;
    const float none = kernels_neon.largest(logits, WIDE, at);
    failed |= none == none;
}

int main(void) {
    if (!neon_has_dot()) {
        puts("no dot-product instructions: the engine takes plain C here");
        return 0;
    }
    rounded();
    products(4), products(8), products(32);
    norms();
    attention();
    activations();
    choices();
    return failed;
}
