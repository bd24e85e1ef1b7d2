#include "evaluation/choice.h"

#include <string.h>

#include "common/alloc.h"
#include "evaluation/metrics.h"

/* One question as token ids: choice i's ids are wholes[i], of which the first `shared` are the same for all. */
typedef struct encoded {
    rt_tokens wholes[EV_CHOICES];
    int characters[EV_CHOICES];
    size_t shared;
} encoded;

typedef struct chooser {
    const ev_task *task;
    const rt_tokenizer *tokenizer;
    ev_lane *lane;
    int vocab;
    int32_t begin;      /* the token before a text without a prefix; -1: none */
    rt_tokens computed; /* what the lane holds */
} chooser;

static void free_encoded(encoded *e) {
    for (int i = 0; i < EV_CHOICES; i++) rt_tokens_free(&e->wholes[i]);
    *e = (encoded){0};
}

/* The token that the tokenizer puts before a text, found by asking it. What it puts after one is left out here. */
static bis_status find_begin(chooser *c, bis_error *error) {
    rt_tokens around = {0};
    bis_status status = rt_tokenizer_encode(c->tokenizer, "", 0, RT_ENCODE_ADD_SPECIAL, &around, error);
    int32_t bos = rt_tokenizer_bos(c->tokenizer);
    bool begins = !status && around.count && bos >= 0 && around.ids[0] == bos;
    c->begin = begins && ev_lane_prefix_count(c->lane) == 0 ? bos : -1;
    rt_tokens_free(&around);
    return status;
}

static bis_status encode_text(const chooser *c, const bis_buf *text, rt_tokens *out, bis_error *error) {
    if (text->failed || (c->begin >= 0 && !rt_tokens_append(out, c->begin))) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a question");
    }
    bis_status status = rt_tokenizer_encode(c->tokenizer, bis_buf_cstr(text), text->length, 0, out, error);
    for (size_t i = 0; i < out->count && !status; i++) {
        if (out->ids[i] < c->vocab) continue;
        status =
            bis_fail(error, BIS_ERR_FORMAT, "the tokenizer gives id %d, but vocab_size is %d", out->ids[i], c->vocab);
    }
    return status;
}

static size_t count_shared(const rt_tokens *a, const rt_tokens *b, size_t most) {
    size_t n = 0;
    while (n < most && n < a->count && n < b->count && a->ids[n] == b->ids[n]) n++;
    return n;
}

static int count_characters(const char *text) {
    int count = 0;
    for (; *text; text++) count += (*text & 0xc0) != 0x80; /* bytes that begin a character */
    return count ? count : 1;
}

static bis_status encode_question(const chooser *c, const ev_question *question, int shots, encoded *out,
                                  bis_error *error) {
    bis_buf text = {0};
    rt_tokens context = {0};
    ev_task_context(c->task, question, shots, &text);
    size_t context_length = text.length;
    bis_status status = encode_text(c, &text, &context, error);
    out->shared = context.count;
    for (int i = 0; i < EV_CHOICES && !status; i++) {
        text.length = context_length;
        ev_task_choice(c->task, question, i, &text);
        status = encode_text(c, &text, &out->wholes[i], error);
        out->shared = count_shared(&context, &out->wholes[i], out->shared);
        out->characters[i] = count_characters(bis_buf_cstr(&text) + context_length + 1);
    }
    for (int i = 0; i < EV_CHOICES && !status; i++) {
        if (out->shared && out->wholes[i].count > out->shared) continue;
        status =
            bis_fail(error, BIS_ERR_FORMAT, "a question or a choice has no tokens of its own: '%.80s'", question->text);
    }
    rt_tokens_free(&context);
    bis_buf_free(&text);
    return status;
}

/* Rows that the longest choice needs: its last token is not read. */
static size_t rows_needed(const encoded *e) {
    size_t longest = 0;
    for (int i = 0; i < EV_CHOICES; i++) longest = e->wholes[i].count > longest ? e->wholes[i].count : longest;
    return longest - 1;
}

/* Cuts the beginning off, but for the token that begins every text, so that the rest fits. */
static bis_status shorten(const chooser *c, encoded *e, size_t room, bis_error *error) {
    size_t excess = rows_needed(e) - room, kept = c->begin >= 0;
    if (e->shared < kept + excess + 1) {
        return bis_fail(error, BIS_ERR_LIMIT, "a choice alone does not fit the context, which has room for %zu tokens",
                        room);
    }
    for (int i = 0; i < EV_CHOICES; i++) {
        rt_tokens *whole = &e->wholes[i];
        memmove(whole->ids + kept, whole->ids + kept + excess, (whole->count - kept - excess) * sizeof *whole->ids);
        whole->count -= excess;
    }
    e->shared -= excess;
    return BIS_OK;
}

/* The question in a form that fits, with as many examples as possible. */
static bis_status fit_question(const chooser *c, const ev_question *question, encoded *out, ev_choice_result *result,
                               bis_error *error) {
    size_t room = (size_t)ev_lane_room(c->lane);
    int all = c->task->groups[question->group].shot_count;
    for (int shots = all;; shots--) {
        bis_status status = encode_question(c, question, shots, out, error);
        if (status) return status;
        if (rows_needed(out) <= room) {
            result->fewer_shots += shots < all;
            return BIS_OK;
        }
        if (shots == 0) break;
        free_encoded(out);
    }
    result->fewer_shots += all > 0;
    result->shortened++;
    return shorten(c, out, room, error);
}

/* Computes the shared tokens, but for those that the lane holds from the question before; logits of the last. */
static const float *run_shared(chooser *c, const encoded *e) {
    const int32_t *ids = e->wholes[0].ids;
    int shared = (int)e->shared;
    int first = (int)count_shared(&c->computed, &e->wholes[0], e->shared - 1);
    const float *logits = NULL;
    while (first < shared) {
        int rest = shared - first, count = rest < EV_ROWS ? rest : EV_ROWS;
        logits = ev_lane_run(c->lane, ids + first, first, count, count == rest ? count - 1 : count);
        first += count;
    }
    return logits;
}

/* Adds the log-likelihoods of a choice's tokens after its first. */
static double run_choice(const chooser *c, const rt_tokens *whole, size_t shared) {
    double sum = 0;
    int last = (int)whole->count - 1;
    for (int first = (int)shared; first < last; first += EV_ROWS) {
        int rest = last - first, count = rest < EV_ROWS ? rest : EV_ROWS;
        const float *logits = ev_lane_run(c->lane, whole->ids + first, first, count, 0);
        for (int i = 0; i < count; i++, logits += c->vocab) {
            sum += (double)logits[whole->ids[first + i + 1]] - ev_log_sum(logits, c->vocab);
        }
    }
    return sum;
}

static bool remember(chooser *c, const encoded *e) {
    c->computed.count = 0;
    for (size_t i = 0; i < e->shared; i++) {
        if (!rt_tokens_append(&c->computed, e->wholes[0].ids[i])) return false;
    }
    return true;
}

void ev_choice_best(const double *sums, const int *characters, int count, int *best, int *best_norm) {
    *best = *best_norm = 0;
    for (int i = 1; i < count; i++) {
        if (sums[i] > sums[*best]) *best = i;
        if (sums[i] / characters[i] > sums[*best_norm] / characters[*best_norm]) *best_norm = i;
    }
}

static bis_status score_question(chooser *c, const ev_question *question, ev_choice_result *out, bis_error *error) {
    encoded e = {0};
    bis_status status = fit_question(c, question, &e, out, error);
    if (!status) {
        double sums[EV_CHOICES];
        const float *logits = run_shared(c, &e);
        double sum = ev_log_sum(logits, c->vocab);
        for (int i = 0; i < EV_CHOICES; i++) sums[i] = (double)logits[e.wholes[i].ids[e.shared]] - sum;
        for (int i = 0; i < EV_CHOICES; i++) sums[i] += run_choice(c, &e.wholes[i], e.shared);
        int best, best_norm;
        ev_choice_best(sums, e.characters, EV_CHOICES, &best, &best_norm);
        ev_score *scores[] = {&out->total, &out->groups[question->group]};
        for (int i = 0; i < 2; i++) {
            scores[i]->questions++;
            scores[i]->right += best == question->answer;
            scores[i]->right_norm += best_norm == question->answer;
        }
        if (sum != sum) status = bis_fail(error, BIS_ERR_FORMAT, "the model's logits are not numbers");
        else if (!remember(c, &e)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for a question");
    }
    free_encoded(&e);
    return status;
}

bis_status ev_choice_run(const ev_task *task, const rt_tokenizer *tokenizer, ev_lane *lane, ev_choice_result *out,
                         bis_progress *progress, size_t progress_base, bis_error *error) {
    chooser c = {.task = task, .tokenizer = tokenizer, .lane = lane};
    c.vocab = ev_runner_vocab(ev_lane_runner(lane));
    bis_status status = find_begin(&c, error);
    for (size_t i = 0; i < task->count && !status; i++) {
        status = score_question(&c, &task->questions[i], out, error);
        if (progress) bis_progress_update(progress, progress_base + i + 1);
    }
    rt_tokens_free(&c.computed);
    return status;
}
