#include "server/loop.h"

#include <signal.h>
#include <stdbool.h>
#include <uv.h>

#include "common/alloc.h"

typedef struct hook {
    srv_loop_fn fn;
    void *user;
} hook;

typedef struct fd_watch {
    uv_poll_t poll;
    hook hook;
    int fd;
    bool open;
} fd_watch;

typedef struct task {
    uv_work_t request;
    srv_loop_fn work, done;
    void *user;
} task;

struct srv_loop {
    uv_loop_t uv;
    uv_async_t wake;
    uv_signal_t signals[2];
    uv_prepare_t prepare;
    uv_timer_t tick, alarm;
    hook on_wake, on_signal, on_prepare, on_tick, on_alarm;
    fd_watch watches[SRV_LOOP_FDS_MAX];
};

static void call(const hook *h) {
    if (h->fn) h->fn(h->user);
}

static void wake_fired(uv_async_t *handle) { call(&((srv_loop *)handle->data)->on_wake); }
static void prepare_fired(uv_prepare_t *handle) { call(&((srv_loop *)handle->data)->on_prepare); }
static void tick_fired(uv_timer_t *handle) { call(&((srv_loop *)handle->data)->on_tick); }
static void alarm_fired(uv_timer_t *handle) { call(&((srv_loop *)handle->data)->on_alarm); }

static void signal_fired(uv_signal_t *handle, int number) {
    (void)number;
    call(&((srv_loop *)handle->data)->on_signal);
}

static void poll_fired(uv_poll_t *handle, int status, int events) {
    (void)status;
    (void)events;
    call(&((fd_watch *)handle->data)->hook);
}

bis_status srv_loop_create(srv_loop **out, bis_error *error) {
    srv_loop *loop = bis_calloc(1, sizeof *loop);
    if (!loop) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the event loop");
    int failure = uv_loop_init(&loop->uv);
    if (failure) {
        bis_free(loop);
        return bis_fail(error, BIS_ERR_IO, "cannot start the event loop: %s", uv_strerror(failure));
    }
    failure = uv_async_init(&loop->uv, &loop->wake, wake_fired);
    if (failure) {
        uv_loop_close(&loop->uv);
        bis_free(loop);
        return bis_fail(error, BIS_ERR_IO, "cannot start the event loop: %s", uv_strerror(failure));
    }
    uv_signal_init(&loop->uv, &loop->signals[0]);
    uv_signal_init(&loop->uv, &loop->signals[1]);
    uv_prepare_init(&loop->uv, &loop->prepare);
    uv_timer_init(&loop->uv, &loop->tick);
    uv_timer_init(&loop->uv, &loop->alarm);
    loop->wake.data = loop->signals[0].data = loop->signals[1].data = loop;
    loop->prepare.data = loop->tick.data = loop->alarm.data = loop;
    *out = loop;
    return BIS_OK;
}

static void close_handle(uv_handle_t *handle, void *unused) {
    (void)unused;
    if (!uv_is_closing(handle)) uv_close(handle, NULL);
}

void srv_loop_destroy(srv_loop *loop) {
    if (!loop) return;
    uv_walk(&loop->uv, close_handle, NULL);
    while (uv_loop_close(&loop->uv) == UV_EBUSY) uv_run(&loop->uv, UV_RUN_ONCE); /* also waits for the workers */
    bis_free(loop);
}

void srv_loop_run(srv_loop *loop) { uv_run(&loop->uv, UV_RUN_DEFAULT); }
void srv_loop_stop(srv_loop *loop) { uv_stop(&loop->uv); }

static fd_watch *find_watch(srv_loop *loop, int fd, bool open) {
    for (int i = 0; i < SRV_LOOP_FDS_MAX; i++) {
        fd_watch *w = &loop->watches[i];
        /* A closed watch cannot be used again: libuv may still hold its handle. */
        if (open ? w->open && w->fd == fd : !w->open && !w->poll.data) return w;
    }
    return NULL;
}

bis_status srv_loop_watch(srv_loop *loop, int fd, srv_loop_fn fn, void *user, bis_error *error) {
    fd_watch *w = find_watch(loop, fd, false);
    if (!w) return bis_fail(error, BIS_ERR_INTERNAL, "the event loop watches too many descriptors");
    int failure = uv_poll_init(&loop->uv, &w->poll, fd);
    if (failure) return bis_fail(error, BIS_ERR_IO, "cannot watch a descriptor: %s", uv_strerror(failure));
    *w = (fd_watch){.poll = w->poll, .hook = {fn, user}, .fd = fd, .open = true};
    w->poll.data = w;
    failure = uv_poll_start(&w->poll, UV_READABLE, poll_fired);
    if (failure) return bis_fail(error, BIS_ERR_IO, "cannot watch a descriptor: %s", uv_strerror(failure));
    return BIS_OK;
}

void srv_loop_unwatch(srv_loop *loop, int fd) {
    fd_watch *w = find_watch(loop, fd, true);
    if (!w) return;
    w->open = false;
    uv_close((uv_handle_t *)&w->poll, NULL);
}

void srv_loop_on_wake(srv_loop *loop, srv_loop_fn fn, void *user) { loop->on_wake = (hook){fn, user}; }
void srv_loop_wake(srv_loop *loop) { uv_async_send(&loop->wake); }

bis_status srv_loop_on_stop_signal(srv_loop *loop, srv_loop_fn fn, void *user, bis_error *error) {
    static const int numbers[2] = {SIGINT, SIGTERM};
    loop->on_signal = (hook){fn, user};
    for (int i = 0; i < 2; i++) {
        int failure = uv_signal_start(&loop->signals[i], signal_fired, numbers[i]);
        if (failure) return bis_fail(error, BIS_ERR_IO, "cannot handle signals: %s", uv_strerror(failure));
    }
    return BIS_OK;
}

void srv_loop_before_sleep(srv_loop *loop, srv_loop_fn fn, void *user) {
    loop->on_prepare = (hook){fn, user};
    uv_prepare_start(&loop->prepare, prepare_fired);
}

void srv_loop_on_tick(srv_loop *loop, unsigned milliseconds, srv_loop_fn fn, void *user) {
    loop->on_tick = (hook){fn, user};
    uv_timer_start(&loop->tick, tick_fired, milliseconds, milliseconds);
}

void srv_loop_on_alarm(srv_loop *loop, srv_loop_fn fn, void *user) { loop->on_alarm = (hook){fn, user}; }

void srv_loop_set_alarm(srv_loop *loop, long long milliseconds) {
    if (milliseconds < 0) uv_timer_stop(&loop->alarm);
    else uv_timer_start(&loop->alarm, alarm_fired, (uint64_t)milliseconds, 0);
}

static void run_task(uv_work_t *request) {
    task *t = request->data;
    t->work(t->user);
}

static void finish_task(uv_work_t *request, int status) {
    (void)status; /* tasks are never cancelled */
    task *t = request->data;
    srv_loop_fn done = t->done;
    void *user = t->user;
    bis_free(t);
    done(user);
}

bis_status srv_loop_work(srv_loop *loop, srv_loop_fn work, srv_loop_fn done, void *user) {
    task *t = bis_calloc(1, sizeof *t);
    if (!t) return BIS_ERR_NOMEM;
    *t = (task){.work = work, .done = done, .user = user};
    t->request.data = t;
    if (uv_queue_work(&loop->uv, &t->request, run_task, finish_task)) {
        bis_free(t);
        return BIS_ERR_NOMEM;
    }
    return BIS_OK;
}
