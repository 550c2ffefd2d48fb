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
static const double REST_S = 2e-3;    /* between jobs: a core that slept comes back late */
static const double WINDOW_S = 25e-3; /* of work, or a job, by which time lost to waiting is judged: */
static const double WORTH = 0.8;      /* of what one thread of the crew contributes is too much */
static const double FIRST_S = 20e-3;  /* so long fewer threads work then, */
static const double LONGEST_S = 1.0;  /* doubled each time that the next try loses as much */

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
    _Atomic int quit;
    _Atomic long long lost_ns; /* how long threads slept at meetings of this window */
    int late;
    double worked;          /* seconds of this window that went by in jobs */
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

/* Until `counter` is no longer `seen`; how many seconds it took where `spin` of them did not do, else
   0. */
static double await_change(Crew *crew, Counter *counter, unsigned seen, double spin) {
    double begin = 0;
    for (;;) {
        for (int look = 0; look < LOOKS; look++) {
            if (atomic_load_explicit(&counter->value, memory_order_acquire) != seen) return 0;
            rest_a_moment();
        }
        const double time = now();
        if (begin == 0) begin = time;
        if (time > begin + spin) break;
    }
    pthread_mutex_lock(&crew->lock);
    atomic_fetch_add(&counter->asleep, 1);
    while (atomic_load(&counter->value) == seen) pthread_cond_wait(&crew->changed, &crew->lock);
    atomic_fetch_sub(&counter->asleep, 1);
    pthread_mutex_unlock(&crew->lock);
    return now() - begin;
}

/* Either this sees the sleeper, or the sleeper, who looks again under the lock, sees the change. */
static void change(Crew *crew, Counter *counter) {
    atomic_fetch_add(&counter->value, 1);
    if (!atomic_load(&counter->asleep)) return;
    pthread_mutex_lock(&crew->lock);
    pthread_cond_broadcast(&crew->changed);
    pthread_mutex_unlock(&crew->lock);
}

/* Seconds that were slept through. */
static double meet(Crew *crew) {
    if (crew->active == 1) return 0;
    unsigned seen = atomic_load_explicit(&crew->meetings.value, memory_order_acquire);
    unsigned before = atomic_fetch_add_explicit(&crew->arrived.value, 1, memory_order_acq_rel);
    if (before + 1 < (unsigned)crew->active) return await_change(crew, &crew->meetings, seen, SPIN_S);
    atomic_store_explicit(&crew->arrived.value, 0, memory_order_relaxed);
    change(crew, &crew->meetings);
    return 0;
}

void crew_meet(Crew *crew) {
    const double slept = meet(crew);
    if (slept > 0) atomic_fetch_add(&crew->lost_ns, (long long)(slept * 1e9));
}

void crew_gather(Crew *crew) { meet(crew); }

static void *live(void *argument) {
    Place place = *(Place *)argument;
    free(argument);
    unsigned seen = 0;
    for (;;) {
        await_change(place.crew, &place.crew->jobs[place.number], seen++, REST_S);
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

static void begin_window(Crew *crew) {
    crew->worked = 0;
    atomic_store(&crew->lost_ns, 0);
}

/* One thread fewer after a window in which too much was lost; one more when the pause is over. A core
   that is gone for a moment, now and then, is waited for: with half of the threads everything takes
   twice as long. */
static void pace(Crew *crew, double began) {
    const double time = now(), slept = 1e-9 * (double)atomic_load(&crew->lost_ns);
    crew->worked += time - began;
    const double window = crew->worked > WINDOW_S ? crew->worked : WINDOW_S;
    if (crew->active > 1 && slept / (crew->active - 1) > WORTH * window / crew->active) {
        crew->active--;
        crew->late++;
        crew->until = time + crew->patience;
        crew->patience = crew->patience * 2 < LONGEST_S ? crew->patience * 2 : LONGEST_S;
        begin_window(crew);
    } else if (crew->active < crew->size && time > crew->until) {
        crew->active++;
        crew->until = time + crew->patience; /* the next one, or all is well */
        begin_window(crew);
    } else if (crew->worked > WINDOW_S) {
        if (crew->active == crew->size && time > crew->until) crew->patience = FIRST_S;
        begin_window(crew);
    }
}

void crew_run(Crew *crew, void (*work)(void *, int), void *job) {
    const double began = now();
    crew->work = work;
    crew->job = job;
    for (int number = 1; number < crew->active; number++) change(crew, &crew->jobs[number]);
    work(job, 0);
    meet(crew);
    if (crew->size > 1) pace(crew, began);
}

int crew_size(const Crew *crew) { return crew->active; }

int crew_late(const Crew *crew) { return crew->late; }

void crew_use(Crew *crew, int threads) {
    if (threads >= 1 && threads <= crew->size) crew->active = threads;
}
