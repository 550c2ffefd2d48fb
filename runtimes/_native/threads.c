/* A crew of threads. Between jobs and at meeting points they spin for a bounded time, since the
   next piece of work mostly comes within a microsecond, and then sleep, since a thread that spins
   on while another waits for its core would stop both. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "engine.h"

enum { SPINS = 4000, MAX_THREADS = 64 };

typedef struct {
    _Atomic unsigned value;
    char rest[124]; /* alone on its cache lines */
} Counter;

struct Crew {
    Counter jobs, arrived, meetings;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread[MAX_THREADS];
    int size, started;
    _Atomic int quit;
    void (*work)(void *, int);
    void *job;
};

typedef struct {
    Crew *crew;
    int number;
} Place;

static inline void rest_a_moment(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Until `counter` is no longer `seen`. */
static void await_change(Crew *crew, Counter *counter, unsigned seen) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&counter->value, memory_order_acquire) != seen) return;
        rest_a_moment();
    }
    pthread_mutex_lock(&crew->lock);
    while (atomic_load_explicit(&counter->value, memory_order_acquire) == seen)
        pthread_cond_wait(&crew->changed, &crew->lock);
    pthread_mutex_unlock(&crew->lock);
}

static void change(Crew *crew, Counter *counter) {
    /* Under the lock, or a thread that is just going to sleep would miss it. */
    pthread_mutex_lock(&crew->lock);
    atomic_fetch_add_explicit(&counter->value, 1, memory_order_release);
    pthread_cond_broadcast(&crew->changed);
    pthread_mutex_unlock(&crew->lock);
}

void crew_meet(Crew *crew) {
    if (crew->size == 1) return;
    unsigned seen = atomic_load_explicit(&crew->meetings.value, memory_order_acquire);
    unsigned before = atomic_fetch_add_explicit(&crew->arrived.value, 1, memory_order_acq_rel);
    if (before + 1 < (unsigned)crew->size) {
        await_change(crew, &crew->meetings, seen);
        return;
    }
    atomic_store_explicit(&crew->arrived.value, 0, memory_order_relaxed);
    change(crew, &crew->meetings);
}

static void *live(void *argument) {
    Place place = *(Place *)argument;
    free(argument);
    unsigned seen = 0;
    for (;;) {
        await_change(place.crew, &place.crew->jobs, seen++);
        if (atomic_load(&place.crew->quit)) return NULL;
        place.crew->work(place.crew->job, place.number);
        crew_meet(place.crew);
    }
}

Crew *crew_new(int threads) {
    if (threads < 1 || threads > MAX_THREADS) return NULL;
    Crew *crew = calloc(1, sizeof *crew);
    if (!crew) return NULL;
    crew->size = threads;
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->changed, NULL);
    for (int number = 1; number < threads; number++) {
        Place *place = malloc(sizeof *place);
        if (!place) break;
        *place = (Place){crew, number};
        if (pthread_create(&crew->thread[number], NULL, live, place)) {
            free(place);
            break;
        }
        crew->started++;
    }
    if (crew->started == threads - 1) return crew;
    crew_free(crew);
    return NULL;
}

void crew_free(Crew *crew) {
    if (!crew) return;
    atomic_store(&crew->quit, 1);
    change(crew, &crew->jobs);
    for (int number = 1; number <= crew->started; number++) pthread_join(crew->thread[number], NULL);
    pthread_mutex_destroy(&crew->lock);
    pthread_cond_destroy(&crew->changed);
    free(crew);
}

void crew_run(Crew *crew, void (*work)(void *, int), void *job) {
    crew->work = work;
    crew->job = job;
    if (crew->size > 1) change(crew, &crew->jobs);
    work(job, 0);
    crew_meet(crew);
}

int crew_size(const Crew *crew) { return crew->size; }
