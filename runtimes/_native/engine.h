/* A decoder of text for one CPU: what engine.c, threads.c and the kernels share.

   Weights are packed so that one load of 64 bytes and one dot-product instruction serve 16 rows:

       rows 0..15                      rows 16..31
       [ k 0..3 of row 0 | k 0..3 of row 1 | ... | k 0..3 of row 15 ]   64 bytes
       [ k 4..7 of row 0 | ...                                      ]   64 bytes
       ...                                                              K / 4 such lines, then rows 16..31

   at 8 bit an unsigned byte w + 128 each. At 4 bit a line holds eight k: w + 8 of k 0..3 in the low
   halves of the bytes, of k 4..7 in the high ones. 32 neighbours along k share a scale in fp16,
   stored [rows / 16][K / 32][16], or all of a row do: [rows / 16][16]. At 32 bit a line is [k][16]
   floats and there are no scales.

   Inputs are rounded to 8 bit with a scale for each 32 as well, so every sum of 32 products is an
   exact integer, on every kind of CPU the same one. */
#ifndef EDGEGEN_ENGINE_H
#define EDGEGEN_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    ROWS = 16,        /* rows that are computed together */
    GROUP = 32,       /* values along k that share a scale */
    TILE = 32,        /* tokens that go through a layer together */
    ABREAST = 4,      /* tokens that go over the cache together */
    TOGETHER = 8,     /* so many tokens, and threads share out what is done to each of them */
    MAX_LAYERS = 512,
    MAX_WIDTH = 65536, /* k at most: 32-bit sums cannot overflow within it, nor can sizes */
    SAID = 200        /* bytes of a message that says what is wrong */
};

/* One matrix (rows, k) as it lies in the file. rows and k are padded with zeros to whole blocks. */
typedef struct {
    const uint8_t *weights;
    const uint16_t *scales; /* fp16; NULL at 32 bit */
    const float *bias;      /* rows; NULL for none */
    int32_t rows, k, bits;
    int32_t by_row;         /* a scale a row, not one a group */
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

/* Neighbouring tokens of one sequence in one head, over what the cache holds of it. Keys lie in
   blocks of 16 positions, so that one load serves 16 scores with no horizontal sums; values as they
   came:

       keys      [ channel 0 of positions 0..15 | channel 1 of positions 0..15 | ... ]  16..31  ...
       values    [ position 0: channel 0 | channel 1 | ... ]  position 1  ... */
typedef struct {
    const float *query;    /* token t at query + t * stride */
    float *y;              /* what it gets, alike */
    size_t stride;
    const void *keys, *values; /* floats, or int8 with a scale for each position */
    const float *key_scales, *value_scales; /* NULL for floats */
    const uint8_t *mask;   /* 0 hides a position, but never a token from itself */
    float *scores;         /* ABREAST x room */
    int tokens, count;     /* the first token sees `count` positions, each next one more */
    int head_dim, room;    /* room: positions, in whole blocks */
} Attention;

/* What one kind of CPU computes with. Each fills rows [16 block, 16 end) of y (tokens, stride). */
typedef struct {
    const char *name;
    void (*project)(const Matrix *, const Input *, int tokens, int block, int end, float *y,
                    size_t stride);
    void (*quantize)(const float *x, int tokens, int k, Input *);
    void (*normalise)(const float *x, const Norm *, int tokens, int width, float epsilon, float *y);
    void (*attend)(const Attention *);
    void (*round8)(const float *x, int head_dim, int8_t *q, float *scale);
    void (*gated)(float *gate, const float *up, int count);
    void (*gelu)(float *x, int count);
    float (*largest)(const float *x, int count, int *where); /* NaN where one of x is no number */
    void (*exponentials)(const double *x, double most, int count, double *y); /* e^(x - most) */
} Kernels;

/* Threads that work on one job together. They spin a little while they wait, then sleep. Where much of
   the time is spent asleep, as a core is busy with something else, a thread is left out for a while:
   the next jobs are done by fewer. */
typedef struct Crew Crew;
Crew *crew_new(int threads);
void crew_free(Crew *);
void crew_run(Crew *, void (*work)(void *job, int thread), void *job);
void crew_meet(Crew *);   /* a barrier after equal shares, called by every thread of the job */
void crew_gather(Crew *); /* the same after unequal ones: nobody is late */
int crew_size(const Crew *); /* threads of this job */
int crew_late(const Crew *); /* how often there were fewer since */
void crew_use(Crew *, int threads); /* so many from now on */

/* How the next token is drawn; temperature 0 takes the most likely one. */
typedef struct {
    double temperature, top_p, min_p, penalty;
    int64_t top_k;
} Sampling;

/* Room for `sample`: a vocabulary each. */
typedef struct {
    double *x, *weight;
    int32_t *id, *heap;
    uint8_t *kept;
} Sieve;

/* The next token of one sequence. `seen` marks tokens that occurred before, NULL for no penalty;
   `die` is a random number in [0, 1). */
int sample(const Kernels *, const Sampling *, const float *logits, int count, const uint8_t *seen,
           double die, Sieve *);

/* What is known of a tile's tokens before a product with a matrix. */
typedef struct {
    float *normed; /* tokens x width */
    float *turn;   /* tokens x head_dim: cos, then sin, of each pair of channels */
    Input input;
} Desk;

typedef struct {
    float *x, *part, *scores; /* see `thread_new` */
    Desk desk;
    Sieve sieve;
} Thread;

/* Caches, buffers and threads for one batch size. */
typedef struct {
    const Model *model;
    const Kernels *kernels;
    Crew *crew;
    int batch, capacity, room, threads, cache_bits; /* room: the capacity in whole blocks */
    void *keys, *values; /* batch, layers, kv_heads, room x head_dim: float, or int8 with */
    float *key_scales, *value_scales; /* batch, layers, kv_heads, room; NULL at 32 bit */
    float *query, *attended, *added;  /* TILE x heads * head_dim, the same, TILE x hidden */
    float *inner;                     /* TILE x padded intermediate */
    float *logits;                    /* TILE x padded vocabulary */
    Desk desk;                        /* of TILE tokens, for all threads */
    Thread *thread;
    float (*best)[TILE];
    int32_t (*where)[TILE];
    int stop[2]; /* what thread 0 read of `cancel`, by turns: a slow thread still reads the other */
} Run;

/* `time` new tokens of every sequence, after `past` that are in the cache already. */
typedef struct {
    Run *run;
    const int64_t *ids, *positions; /* batch x time */
    const uint8_t *mask;            /* batch x stride, past + time of them used; 0 hides a key */
    size_t stride;
    int time, past, all; /* all: logits of every token, else of the last ones */
    float *logits;       /* (batch x time or batch) x vocabulary; NULL for none */
    int32_t *chosen;     /* batch: the next token, -1 where logits are not finite; NULL for none */
    const Sampling *sampling; /* NULL: the most likely one */
    const uint8_t *seen;      /* batch x vocabulary; NULL */
    const double *dice;       /* batch; NULL */
    volatile const int32_t *cancel; /* not 0: stop before the next tile; NULL */
} Pass;

int run_pass(Pass *, char said[SAID]); /* 0, and why in `said`; -1 where it was cancelled */

#endif
