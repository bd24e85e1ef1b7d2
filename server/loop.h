/* The event loop: file descriptors, one wake-up for other threads, signals, timers, and a few worker
 * threads for work that would hold up the loop. The only part that knows libuv.
 *
 * All hooks run on the thread that calls srv_loop_run. Only srv_loop_wake may be called from others.
 */
#ifndef BISUP_SERVER_LOOP_H
#define BISUP_SERVER_LOOP_H

#include "common/status.h"

typedef struct srv_loop srv_loop;
typedef void (*srv_loop_fn)(void *user);

enum { SRV_LOOP_FDS_MAX = 4 };

bis_status srv_loop_create(srv_loop **out, bis_error *error);
/* Waits for work that is running in workers, whose `done` is still called. NULL is allowed. */
void srv_loop_destroy(srv_loop *loop);

void srv_loop_run(srv_loop *loop);  /* returns after srv_loop_stop */
void srv_loop_stop(srv_loop *loop); /* from a hook */

/* Calls fn while fd has something to read; at most SRV_LOOP_FDS_MAX descriptors. */
bis_status srv_loop_watch(srv_loop *loop, int fd, srv_loop_fn fn, void *user, bis_error *error);
void srv_loop_unwatch(srv_loop *loop, int fd);

/* srv_loop_wake makes fn run soon; several wake-ups may become one call. */
void srv_loop_on_wake(srv_loop *loop, srv_loop_fn fn, void *user);
void srv_loop_wake(srv_loop *loop);

/* SIGINT and SIGTERM call fn instead of ending the process, until srv_loop_destroy. */
bis_status srv_loop_on_stop_signal(srv_loop *loop, srv_loop_fn fn, void *user, bis_error *error);

/* fn runs each time before the loop goes to sleep. */
void srv_loop_before_sleep(srv_loop *loop, srv_loop_fn fn, void *user);

/* fn runs every `milliseconds`. */
void srv_loop_on_tick(srv_loop *loop, unsigned milliseconds, srv_loop_fn fn, void *user);

/* One alarm: fn runs once after `milliseconds`; setting it again moves it; negative: never. */
void srv_loop_on_alarm(srv_loop *loop, srv_loop_fn fn, void *user);
void srv_loop_set_alarm(srv_loop *loop, long long milliseconds);

/* Runs work(user) on a worker thread, then done(user) on the loop's. BIS_ERR_NOMEM: neither is called. */
bis_status srv_loop_work(srv_loop *loop, srv_loop_fn work, srv_loop_fn done, void *user);

#endif
