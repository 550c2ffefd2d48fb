/* From logits to the next token, in double: the same steps in the same order as
   runtimes/loops/_sampling.py, so that the same random numbers draw the same tokens. */
#include <math.h>

#include "engine.h"

/* Values (count) whose heap puts the smallest on top, or with `sign` -1 the largest; of equal ones
   the heap of largest puts the lower token first. */
static int above(const Sieve *s, int a, int b, int sign) {
    const double x = s->x[a] * sign, y = s->x[b] * sign;
    return x < y || (x == y && sign < 0 && a < b);
}

static void sink(const Sieve *s, int32_t *heap, int size, int at, int sign) {
    for (;;) {
        int top = at;
        for (int child = 2 * at + 1; child < 2 * at + 3 && child < size; child++)
            if (above(s, heap[child], heap[top], sign)) top = child;
        if (top == at) return;
        const int32_t moved = heap[at];
        heap[at] = heap[top];
        heap[top] = moved;
        at = top;
    }
}

static void heapify(const Sieve *s, int32_t *heap, int size, int sign) {
    for (int at = size / 2 - 1; at >= 0; at--) sink(s, heap, size, at, sign);
}

/* Keep the k largest, and whatever equals the smallest of them; returns how many. */
static int top_k(Sieve *s, int count, int k) {
    for (int i = 0; i < k; i++) s->heap[i] = i;
    heapify(s, s->heap, k, 1);
    for (int i = k; i < count; i++)
        if (s->x[i] > s->x[s->heap[0]]) {
            s->heap[0] = i;
            sink(s, s->heap, k, 0, 1);
        }
    const double least = s->x[s->heap[0]];
    int kept = 0;
    for (int i = 0; i < count; i++)
        if (s->x[i] >= least) s->id[kept++] = i;
    return kept;
}

/* Keep the fewest most likely whose probabilities sum to at least p; never none. Those whose
   weight is so small that all of their like together are not needed never go into the heap.
   Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1. */
static int top_p(Sieve *s, int count, double p) {
    double total = 0, before = 0;
    for (int i = 0; i < count; i++) total += s->weight[s->id[i]];
    const double needless = (1 - p) * total / count / 2;
    int size = 0, kept = 0;
    for (int i = 0; i < count; i++) {
        s->kept[s->id[i]] = 0;
        if (s->weight[s->id[i]] >= needless) s->heap[size++] = s->id[i];
    }
    heapify(s, s->heap, size, -1);
    do {
        const int32_t most = s->heap[0];
        s->kept[most] = 1;
        before += s->weight[most] / total;
        s->heap[0] = s->heap[--size];
        sink(s, s->heap, size, 0, -1);
    } while (size && before < p - 1e-12);
    for (int i = 0; i < count; i++)
        if (s->kept[s->id[i]]) s->id[kept++] = s->id[i];
    return kept;
}

/* Keep those at least p times as likely as the most likely one, whose weight is 1.
   Source: Nguyen et al. 2024, arXiv:2407.01082, section 3. */
static int min_p(Sieve *s, int count, double p) {
    int kept = 0;
    for (int i = 0; i < count; i++)
        if (s->weight[s->id[i]] >= p) s->id[kept++] = s->id[i];
    return kept;
}

/* The first whose running sum is over the die's share of all. */
static int draw(const Sieve *s, int count, double die) {
    double total = 0, sum = 0;
    for (int i = 0; i < count; i++) total += s->weight[s->id[i]];
    int last = 0;
    for (int i = 0; i < count; i++) {
        const double more = sum + s->weight[s->id[i]];
        if (more > sum) last = i; /* the last token that can happen at all */
        sum = more;
        if (sum > die * total) break;
    }
    return s->id[last];
}

int sample(const Kernels *kernels, const Sampling *how, const float *logits, int count,
           const uint8_t *seen, double die, Sieve *s) {
    for (int i = 0; i < count; i++) s->x[i] = logits[i];
    for (int i = 0; seen && i < count; i++)
        if (seen[i]) s->x[i] = s->x[i] > 0 ? s->x[i] / how->penalty : s->x[i] * how->penalty;
    int best = 0;
    for (int i = 1; i < count; i++)
        if (s->x[i] > s->x[best]) best = i;
    if (how->temperature == 0) return best;
    for (int i = 0; i < count; i++) s->x[i] /= how->temperature;
    kernels->exponentials(s->x, s->x[best], count, s->weight);
    int kept = count;
    if (how->top_k && how->top_k < count)
        kept = top_k(s, count, (int)how->top_k);
    else
        for (int i = 0; i < count; i++) s->id[i] = i;
    if (how->top_p < 1) kept = top_p(s, kept, how->top_p);
    if (how->min_p > 0) kept = min_p(s, kept, how->min_p);
    return draw(s, kept, die);
}
