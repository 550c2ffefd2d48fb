/* A crew of threads. Between jobs and at meeting points they spin for a bounded time, since the
   next piece of work mostly comes within a microsecond, and then sleep, since a thread that spins
   on while another waits for its core would stop both. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "engine.h"

enum { MAX_THREADS = 64, LOOKS = 32 /* between two looks at the clock */ };
static const double SPIN_S = 100e-6;  /* a wait so long means that a thread has lost its core */
static const double FIRST_S = 20e-3;  /* so long fewer threads work after one was late, */
static const double LONGEST_S = 1.0;  /* doubled each time that the next try is late, too */

/* What is waited for. `asleep` keeps those who change it from the lock when nobody sleeps. */
typedef struct {
    _Atomic unsigned value, asleep;
    char rest[120]; /* alone on its cache lines */
} Counter;

struct Crew {
    Counter arrived, meetings, jobs[MAX_THREADS]; /* jobs: one a thread, so that the rest sleep on */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread[MAX_THREADS];
    int size, started, active;
    _Atomic int quit, waited; /* waited: somebody slept at a meeting of this job */
    int late;
    double until, patience; /* seconds: when more threads are tried again, and the pause after that */
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

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Until `counter` is no longer `seen`; 1 when spinning did not do. */
static int await_change(Crew *crew, Counter *counter, unsigned seen) {
    for (double end = 0;;) {
        for (int look = 0; look < LOOKS; look++) {
            if (atomic_load_explicit(&counter->value, memory_order_acquire) != seen) return 0;
            rest_a_moment();
        }
        const double time = now();
        if (end == 0) end = time + SPIN_S;
        if (time > end) break;
    }
    pthread_mutex_lock(&crew->lock);
    atomic_fetch_add(&counter->asleep, 1);
    while (atomic_load(&counter->value) == seen) pthread_cond_wait(&crew->changed, &crew->lock);
    atomic_fetch_sub(&counter->asleep, 1);
    pthread_mutex_unlock(&crew->lock);
    return 1;
}

/* Either this sees the sleeper, or the sleeper, who looks again under the lock, sees the change. */
static void change(Crew *crew, Counter *counter) {
    atomic_fetch_add(&counter->value, 1);
    if (!atomic_load(&counter->asleep)) return;
    pthread_mutex_lock(&crew->lock);
    pthread_cond_broadcast(&crew->changed);
    pthread_mutex_unlock(&crew->lock);
}

static int meet(Crew *crew) {
    if (crew->active == 1) return 0;
    unsigned seen = atomic_load_explicit(&crew->meetings.value, memory_order_acquire);
    unsigned before = atomic_fetch_add_explicit(&crew->arrived.value, 1, memory_order_acq_rel);
    if (before + 1 < (unsigned)crew->active) return await_change(crew, &crew->meetings, seen);
    atomic_store_explicit(&crew->arrived.value, 0, memory_order_relaxed);
    change(crew, &crew->meetings);
    return 0;
}

void crew_meet(Crew *crew) {
    if (meet(crew)) atomic_store_explicit(&crew->waited, 1, memory_order_relaxed);
}

void crew_gather(Crew *crew) { meet(crew); }

static void *live(void *argument) {
    Place place = *(Place *)argument;
    free(argument);
    unsigned seen = 0;
    for (;;) {
        await_change(place.crew, &place.crew->jobs[place.number], seen++);
        if (atomic_load(&place.crew->quit)) return NULL;
        place.crew->work(place.crew->job, place.number);
        meet(place.crew);
    }
}

Crew *crew_new(int threads) {
    if (threads < 1 || threads > MAX_THREADS) return NULL;
    Crew *crew = calloc(1, sizeof *crew);
    if (!crew) return NULL;
    crew->size = crew->active = threads;
    crew->patience = FIRST_S;
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
    for (int number = 1; number <= crew->started; number++) change(crew, &crew->jobs[number]);
    for (int number = 1; number <= crew->started; number++) pthread_join(crew->thread[number], NULL);
    pthread_mutex_destroy(&crew->lock);
    pthread_cond_destroy(&crew->changed);
    free(crew);
}

/* One thread fewer after a job in which one was late; one more when the pause is over. */
static void pace(Crew *crew) {
    const double time = now();
    if (atomic_load_explicit(&crew->waited, memory_order_relaxed)) {
        crew->active -= crew->active > 1;
        crew->late++;
        crew->until = time + crew->patience;
        crew->patience = crew->patience * 2 < LONGEST_S ? crew->patience * 2 : LONGEST_S;
    } else if (crew->active < crew->size && time > crew->until) {
        crew->active++;
        crew->until = time + crew->patience; /* the next one, or all is well */
    } else if (crew->active == crew->size && time > crew->until) {
        crew->patience = FIRST_S;
    }
}

void crew_run(Crew *crew, void (*work)(void *, int), void *job) {
    crew->work = work;
    crew->job = job;
    atomic_store_explicit(&crew->waited, 0, memory_order_relaxed);
    for (int number = 1; number < crew->active; number++) change(crew, &crew->jobs[number]);
    work(job, 0);
    meet(crew);
    if (crew->size > 1) pace(crew);
}

int crew_size(const Crew *crew) { return crew->active; }

int crew_late(const Crew *crew) { return crew->late; }

void crew_use(Crew *crew, int threads) {
    if (threads >= 1 && threads <= crew->size) crew->active = threads;
}
