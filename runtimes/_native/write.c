/* The loop: one token of every sequence a step, the whole of it one call. */
#include <stdio.h>

#include "engine.h"

/* What a text goes on from. The caller owns it and every array; runtimes/native.py mirrors it. */
typedef struct {
    int64_t *ids, *positions; /* batch x time: what is read next; afterwards batch x 1 */
    uint8_t *mask;            /* batch x stride, 1 beyond the prompt */
    uint8_t *seen;            /* batch x vocabulary: tokens that occurred; NULL without penalty */
    uint8_t *ended;           /* batch: has met an end token */
    const int64_t *ends;
    int64_t stride;
    int32_t end_count, time, past;
    volatile int32_t cancel; /* set from outside: stop soon */
    Sampling sampling;
} Text;

EXPORT int eg_text_size(void) { return (int)sizeof(Text); }

static int meets(const Text *t, int64_t id) {
    for (int i = 0; i < t->end_count; i++)
        if (t->ends[i] == id) return 1;
    return 0;
}

/* One step; 1, or what `run_pass` returned, or -2 for logits that are not finite. */
static int step(Run *r, Text *t, const double *dice, int32_t *chosen, char said[SAID]) {
    Pass p = {.run = r, .ids = t->ids, .positions = t->positions, .mask = t->mask};
    p.stride = (size_t)t->stride, p.time = t->time, p.past = t->past, p.cancel = &t->cancel;
    p.chosen = chosen, p.seen = t->seen, p.dice = dice;
    p.sampling = t->sampling.temperature == 0 && !t->seen ? NULL : &t->sampling;
    const int done = run_pass(&p, said);
    if (done != 1) return done;
    for (int s = 0; s < r->batch; s++) {
        if (chosen[s] < 0) return -2;
        t->positions[s] = t->positions[(size_t)s * t->time + t->time - 1] + 1;
        t->ids[s] = chosen[s];
        if (t->seen) t->seen[(size_t)s * r->model->vocabulary + chosen[s]] = 1;
    }
    t->past += t->time;
    t->time = 1;
    return 1;
}

/* Up to `steps` tokens of every sequence into `out` (steps x batch), a sequence that has ended
   repeating its last; fewer when all have, when `tell` returns other than 0, or when cancelled.
   Returns how many steps were made; -1 and why in `said`, or -2 for logits that are not finite.
   `dice` (steps x batch) are random numbers in [0, 1), NULL where nothing is drawn. */
EXPORT int eg_write(Run *r, Text *t, int steps, const double *dice, int64_t *out, int32_t *chosen,
                    int (*tell)(int step), char said[SAID]) {
    for (int i = 0; i < steps; i++) {
        const int done = step(r, t, dice ? dice + (size_t)i * r->batch : NULL, chosen, said);
        if (done == -1) return i; /* cancelled */
        if (done != 1) return done == 0 ? -1 : -2;
        int live = 0;
        for (int s = 0; s < r->batch; s++) {
            int64_t *here = out + (size_t)i * r->batch + s;
            *here = i && t->ended[s] ? here[-r->batch] : chosen[s];
            t->ended[s] |= (uint8_t)meets(t, *here);
            live |= !t->ended[s];
        }
        if ((tell && tell(i)) || !live || t->cancel) return i + 1;
    }
    return steps;
}
