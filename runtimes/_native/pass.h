/* One pass of tokens through the decoder: what engine.c, layers.c and cache.c share. Every function
   is called by each thread of the crew, for its part. */
#ifndef EDGEGEN_PASS_H
#define EDGEGEN_PASS_H

#include "engine.h"

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

/* A thread's part of `count`: [from, to). */
static inline void share(int count, int thread, int threads, int *from, int *to) {
    *from = (int)((long)count * thread / threads);
    *to = (int)((long)count * (thread + 1) / threads);
}

/* layers.c. `layers` leaves the tile none but the tokens whose logits are wanted. */
Own own_of(Run *, int thread, int tokens);
void normalise(const Run *, const Thread *, const Own *, const Norm *);
void project_share(const Run *, const Own *, int thread, const Matrix *, const float *x, int tokens,
                   float *y);
void begin(const Pass *, Thread *, const Own *, const Tile *);
void layers(const Pass *, Thread *, Own *, int thread, Tile *);

/* cache.c. `head` counts those of all sequences and layers: see `cached`. */
size_t cached(const Run *, int sequence, int layer, int head);
void store_key(const Run *, Thread *, size_t head, int at, const float *x);
void store_value(const Run *, size_t head, int at, const float *x);
void attend(const Pass *, Thread *, int thread, int layer, const Tile *);

#endif
