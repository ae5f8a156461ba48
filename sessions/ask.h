/* ask: questions to a language model that answers in text, whichever it is: an endpoint over HTTP (endpoint.c) or the model that is open here
 * (ask_local.c). Answers are kept in a work file, so that a run that was cut, cancelled or killed asks nothing twice; what is spent stays in a budget. */
#ifndef ES_ASK_H
#define ES_ASK_H

#include "engine.h"

typedef struct es_question {
    json_t *messages;   /* [{"role","content"}...]; the question's own reference, given up by es_question_clear */
    int max_tokens;     /* of the answer */
    bool logprobs;      /* with the alternatives of each of its tokens, if they can be had */
    int64_t tag;        /* the asker's own, as is user */
    void *user;
} es_question;
void es_question_clear(es_question *q);

typedef struct es_answer {
    const char *text;   /* valid UTF-8; borrowed, as is logprobs */
    bool cut;           /* max_tokens ended it */
    bool kept;          /* from the work file: nothing was spent */
    int64_t prompt_tokens, answer_tokens; /* as the server counts, else estimated */
    json_t *logprobs;   /* a row for each token: {"token": text, "top": [[text, log-probability]...]}; NULL: none came */
} es_answer;

/* Who asks. next: 1 and *out filled; 0: nothing to ask now (answers on their way may change that); negative: ends the run. done: a NULL: no answer came, why
 * says why not; the question is borrowed and is cleared afterwards. What it returns other than 0 ends the run. Both are called by the thread that runs. */
typedef struct es_asking {
    int (*next)(void *user, es_question *out, es_error *err);
    int (*done)(void *user, const es_question *q, const es_answer *a, const es_error *why, es_error *err);
    void *user;
} es_asking;

/* Who answers. run: until next has nothing more and nothing is on its way; ES_ERR_CANCELLED soon after the progress' flag is raised. */
typedef struct es_answerer es_answerer;
struct es_answerer {
    const char *name;     /* of the model, for labels' authors */
    const char *identity; /* what its answers depend on: key of the work file's entries, with the question */
    int (*run)(es_answerer *a, const es_asking *who, const es_progress *progress, es_error *err);
    void (*free)(es_answerer *a);
};
void es_answerer_free(es_answerer *a);

/* ---- endpoint: OpenAI-compatible chat completions, streamed ---- */

typedef struct es_endpoint_options {
    const char *url;      /* base, as "https://host/v1": /chat/completions is added */
    const char *model;
    const char *key;      /* a bearer token, sent to this URL only, over https or to this machine; NULL: none. Never shown, nor written anywhere */
    const char *ca_file;  /* certificates to trust; NULL: the system's */
    int concurrency;      /* requests at once; 0: 4 */
    int tries;            /* of each request, when it may pass; 0: 5 */
    int stall_seconds;    /* without a byte; 0: 60 */
    int seconds;          /* of one whole answer; 0: 300 */
    int max_wait;         /* the longest that a server may ask to wait (Retry-After) before the run ends instead; 0: 120 s */
} es_endpoint_options;
/* All strings are copied. The server is not trusted: redirects are not followed, an answer's length and time are bounded, what is no UTF-8, no JSON or no
 * answer is asked for again and then given up. ES_ERR_USAGE: no such URL or key. */
int es_endpoint_open(es_answerer **out, const es_endpoint_options *o, es_error *err);

/* ---- the model that is open here, greedy ---- */

int es_local_open(es_answerer **out, es_model *m, int threads, int n_ctx /* 0: what the model has, at most 4096 */, es_error *err);

/* ---- budget and work file ---- */

typedef struct es_budget {     /* limits (0: none), and what was spent; prices a million tokens, in whatever money */
    int64_t max_requests, max_tokens;
    double max_money, price_prompt, price_answer;
    int64_t requests, prompt_tokens, answer_tokens; /* spent */
    int64_t kept;              /* questions that the work file answered */
} es_budget;
double es_budget_money(const es_budget *b);
/* As the run itself counts before an answer's own figures are there. */
int64_t es_prompt_tokens(const json_t *messages);

typedef struct es_work es_work; /* answers by question */
/* Opens or makes it. A last line that was cut short, and lines that make no sense, count as not there. One program at a time. */
int es_work_open(es_work **out, const char *path, es_error *err);
void es_work_close(es_work *w);
int64_t es_work_count(const es_work *w);

/* Asks all that who has to ask. work, budget may be NULL. A question that would go over the budget ends the run with ES_ERR_LIMIT, after the answers that
 * are on their way have come. */
int es_ask(es_answerer *a, const es_asking *who, es_work *work, es_budget *budget, const es_progress *progress, es_error *err);

#endif
