/* The thread pool: one job at a time, cut into as many ranges as threads and those into chunks. A thread works through its own
 * range, so that it reads memory in one stream and what it asks for ahead of time is for itself; then it helps the others.
 *
 * Every kernel computes a row (or a fixed block of rows) the same way whoever takes it, so the outcome does not depend on
 * the number of threads or on who took what; chunks taken on demand even out causal attention and busy neighbours.
 * A second caller, from another Python thread or from inside a job, does not wait: it runs its job alone. */
#define _GNU_SOURCE
#include "internal.h"
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define MAX_THREADS 256
#define SPIN 200000        /* nanoseconds of watching before a thread goes to sleep, more than Python takes between two tokens:
                            * a job starts 3 us after its call with a worker that watches, 30 with one to wake (Zen 4) */
#define SPINS 4000         /* turns that the caller waits for a worker before it lets others run */
#define SMALL_JOB 40000    /* cost units (about a quarter nanosecond each) below which waking others costs more than it saves */
#define CHUNKS_PER_THREAD 8

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;   /* held by the caller whose job is running */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* guards sleeping */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int width = 1;              /* threads wanted, the caller included */
static int started;                /* workers that exist; worker i is thread i + 1 */
static int sleeping;

/* job number << 17 | closed << 16 | workers inside: one word, so that a late worker cannot mix two jobs. A worker joins only
 * while the job is open; the caller closes it when no chunk is left and waits for those inside, never for one that has yet
 * to wake up. */
static _Atomic uint64_t gate;
#define CLOSED ((uint64_t)1 << 16)
#define INSIDE ((uint64_t)0xffff)
#define NUMBER(g) ((g) >> 17)

static struct {
    me_task *task;
    const void *args;
    int64_t n, chunk, range;
    uint64_t threads;              /* that may take part, the caller included */
} job;
/* The next item of each range: a cache line each, since all threads write to their own. */
static struct { _Alignas(64) _Atomic int64_t next; } ranges[MAX_THREADS];

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The CPU that the caller was last seen on: a worker that shares it would only keep it from making the next job. */
static _Atomic int caller_cpu;
static int cpu(void) {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;  /* not asked: nobody's */
#endif
}

static int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Chunks of the own range, then of those behind it. */
static void take_chunks(uint64_t self) {
    for (uint64_t k = 0; k < job.threads; k++) {
        uint64_t r = (self + k) % job.threads;
        int64_t last = ((int64_t)r + 1) * job.range < job.n ? ((int64_t)r + 1) * job.range : job.n;
        for (;;) {
            int64_t begin = atomic_fetch_add_explicit(&ranges[r].next, job.chunk, memory_order_relaxed);
            if (begin >= last) break;
            job.task(job.args, begin, begin + job.chunk < last ? begin + job.chunk : last);
        }
    }
}

/* One more inside job `number`, or 0 where it is closed or over. */
static int join_job(uint64_t number) {
    uint64_t now = atomic_load_explicit(&gate, memory_order_acquire);
    while (NUMBER(now) == number && !(now & CLOSED))
        if (atomic_compare_exchange_weak_explicit(&gate, &now, now + 1, memory_order_acq_rel, memory_order_acquire)) return 1;
    return 0;
}

static void *worker(void *number) {
    uint64_t index = (uint64_t)(intptr_t)number, seen = 0;
    for (;;) {
        uint64_t now = NUMBER(atomic_load_explicit(&gate, memory_order_acquire));
        for (int64_t spin = 0, until = 0; now == seen; spin++) {
            if (spin % 64 == 0) {
                int64_t time = nanoseconds();
                if (until == 0) until = time + SPIN;
                else if (time > until) break;
                if (cpu() == atomic_load_explicit(&caller_cpu, memory_order_relaxed)) sched_yield();
            }
            relax();
            now = NUMBER(atomic_load_explicit(&gate, memory_order_acquire));
        }
        if (now == seen) {
            pthread_mutex_lock(&lock);
            sleeping++;
            while ((now = NUMBER(atomic_load(&gate))) == seen) pthread_cond_wait(&wake, &lock);
            sleeping--;
            pthread_mutex_unlock(&lock);
        }
        seen = now;
        if (join_job(now)) {
            if (index < job.threads) take_chunks(index);
            atomic_fetch_sub_explicit(&gate, 1, memory_order_release);
        }
    }
    return NULL;
}

/* The child of a fork has only the thread that forked: forget the workers and whatever locks they held. */
static void after_fork(void) {
    pthread_mutex_init(&busy, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL);
    started = sleeping = 0;
    atomic_store(&gate, CLOSED);
}

static void start_workers(int wanted) {
    static int registered;
    if (!registered) registered = pthread_atfork(NULL, NULL, after_fork) == 0;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    while (started < wanted) {
        pthread_t id;
        if (pthread_create(&id, &attr, worker, (void *)(intptr_t)(started + 1)) != 0) break;
        started++;
    }
    pthread_attr_destroy(&attr);
}

int me_get_threads(void) { return width; }

void me_set_threads(int n) { width = n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n; }

void me_run(me_task *task, const void *args, int64_t n, int64_t grain, int64_t cost) {
    if (n <= 0) return;
    int threads = width;
    /* cost > INT64_MAX / n cannot be multiplied, and is not small */
    if (threads < 2 || n <= grain || (cost <= INT64_MAX / n && n * cost < SMALL_JOB) || pthread_mutex_trylock(&busy) != 0) {
        task(args, 0, n);
        return;
    }
    if (started < threads - 1) start_workers(threads - 1);
    if (threads > started + 1) threads = started + 1;
    int64_t chunk = n / ((int64_t)threads * CHUNKS_PER_THREAD), range = (n + threads - 1) / threads;
    chunk = (chunk + grain - 1) / grain * grain;
    job.task = task;
    job.args = args;
    job.n = n;
    job.chunk = chunk < grain ? grain : chunk;
    job.range = (range + grain - 1) / grain * grain;
    job.threads = (uint64_t)threads;
    atomic_store_explicit(&caller_cpu, cpu() < 0 ? -2 : cpu(), memory_order_relaxed);
    for (int t = 0; t < threads; t++) atomic_store_explicit(&ranges[t].next, t * job.range, memory_order_relaxed);
    /* The gate opens under the lock when somebody sleeps or is about to: no wake-up is lost. */
    pthread_mutex_lock(&lock);
    atomic_store_explicit(&gate, (NUMBER(atomic_load(&gate)) + 1) << 17, memory_order_release);
    if (sleeping) pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    take_chunks(0);
    atomic_fetch_or_explicit(&gate, CLOSED, memory_order_acq_rel);
    for (int spin = 0; atomic_load_explicit(&gate, memory_order_acquire) & INSIDE; spin++) {
        relax();
        if (spin > SPINS) sched_yield();  /* more threads than free CPUs: let the others finish */
    }
    pthread_mutex_unlock(&busy);
}
