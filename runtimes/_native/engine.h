/* A decoder of text for one CPU: what engine.c, threads.c and the kernels share.

   Weights are packed so that one load of 64 bytes and one dot-product instruction serve 16 rows:

       rows 0..15                      rows 16..31
       [ k 0..3 of row 0 | k 0..3 of row 1 | ... | k 0..3 of row 15 ]   64 bytes
       [ k 4..7 of row 0 | ...                                      ]   64 bytes
       ...                                                              K / 4 such lines, then rows 16..31

   at 8 bit an unsigned byte w + 128 each. At 4 bit a line holds eight k: w + 8 of k 0..3 in the low
   halves of the bytes, of k 4..7 in the high ones. 32 neighbours along k share a scale in fp16,
   stored [rows / 16][K / 32][16]. At 32 bit a line is [k][16] floats and there are no scales.

   Inputs are rounded to 8 bit with a scale for each 32 as well, so every sum of 32 products is an
   exact integer, on every kind of CPU the same one. */
#ifndef EDGEGEN_ENGINE_H
#define EDGEGEN_ENGINE_H

#include <stddef.h>
#include <stdint.h>

enum {
    ROWS = 16,        /* rows that are computed together */
    GROUP = 32,       /* values along k that share a scale */
    TILE = 32,        /* tokens that go through a layer together */
    MAX_LAYERS = 512,
    MAX_WIDTH = 65536 /* k at most: 32-bit sums cannot overflow within it, nor can sizes */
};

/* One matrix (rows, k) as it lies in the file. rows and k are padded with zeros to whole blocks. */
typedef struct {
    const uint8_t *weights;
    const uint16_t *scales; /* fp16; NULL at 32 bit */
    const float *bias;      /* rows; NULL for none */
    int32_t rows, k, bits;
} Matrix;

typedef struct {
    const float *weight, *bias; /* bias NULL: RMSNorm, else LayerNorm */
} Norm;

typedef struct {
    Norm before, after; /* attention, MLP */
    Matrix qkv, out, gate, up, down; /* gate.weights NULL: GELU MLP, else SwiGLU */
} Layer;

typedef struct {
    int32_t hidden, heads, kv_heads, head_dim, intermediate, layers, vocabulary, positions;
    int32_t rotary; /* 1: turn pairs of channels; 0: learned positions */
    float epsilon;
    const float *frequencies; /* head_dim / 2, radians a position */
    const float *learned;     /* positions x hidden */
    Matrix embedding;         /* vocabulary x hidden, read a row at a time */
    Matrix head;              /* the same bytes where they are tied */
    Norm last;
    Layer layer[MAX_LAYERS];
} Model;

/* A tile of inputs, rounded: q + scale a group, and the sum of each group for the offset of w. */
typedef struct {
    int8_t *q;            /* TILE x k */
    float *scale;         /* TILE x k / GROUP */
    int32_t *sum;         /* TILE x k / GROUP */
    const float *exact;   /* TILE x k: what is used at 32 bit */
    int32_t k;
} Input;

/* What one kind of CPU computes with. Each fills rows [16 block, 16 end) of y (tokens, stride). */
typedef struct {
    const char *name;
    void (*project)(const Matrix *, const Input *, int tokens, int block, int end, float *y,
                    size_t stride);
    void (*quantize)(const float *x, int tokens, int k, Input *);
    void (*normalise)(const float *x, const Norm *, int tokens, int width, float epsilon, float *y);
    void (*attend)(const float *query, const float *keys, const float *values, const uint8_t *mask,
                   int count, int head_dim, float *scores, float *y);
    void (*gated)(float *gate, const float *up, int count);
    void (*gelu)(float *x, int count);
} Kernels;

/* Threads that work on one job together; they spin a little while they wait, then sleep. */
typedef struct Crew Crew;
Crew *crew_new(int threads);
void crew_free(Crew *);
void crew_run(Crew *, void (*work)(void *job, int thread), void *job);
void crew_meet(Crew *); /* a barrier, called by every thread of the job */
int crew_size(const Crew *);

#endif
