/* eval (internal): sets of sequences and what a variant does to them. */
#ifndef ES_EVAL_INTERNAL_H
#define ES_EVAL_INTERNAL_H

#include "evaluate.h"
#include "pack.h"

typedef struct es_source { /* what a sequence was made from, to make it again behind a prefix; borrowed */
    const es_message *message; int n_message;
    const char *text;          /* the reply; without messages a document */
} es_source;

typedef struct es_set { /* sequences that are measured together */
    es_sequence *seq;
    es_source *from;
    int n, tokens;             /* tokens: that are predicted */
    bool kl;                   /* the base model's rows are kept */
    float *p;                  /* [tokens, n_vocab] its probabilities, when kl */
    double *entropy, *mass;    /* [tokens] sum p log p, sum p */
} es_set;

typedef struct es_harm { double kl, dnll; } es_harm; /* a token, against the base model */

typedef struct es_bench {
    es_model *m;
    const es_kernels *k;
    es_pool *pool;
    int threads, max_prompt, max_reply, max_tokens;
    const volatile bool *cancel;
    es_pack pack;
    es_trainer *trainer;       /* of trainer_model, from trainer_from */
    const es_model *trainer_model;
    int trainer_from;
    int cached;                /* sequences' resid is the residual that enters this layer; 0: none is kept */
    float *rows, *norm, *picked, *resid; /* scratch: [ROWS, n_vocab], [ROWS, d] twice; [max_tokens, d], what left the last layer */
    int resid_first, resid_n;
    es_set **set; int n_set;   /* all that are open, whose caches follow `cached` */
} es_bench;

int es_bench_open(es_bench *b, es_model *m, int max_prompt, int max_reply, int threads, const volatile bool *cancel, es_error *err);
void es_bench_close(es_bench *b);

/* The base model is run over it; with kl its rows are kept. from[n] is copied. Sequences too short to predict anything are left out. */
int es_set_open(es_set *s, es_bench *b, const es_source *from, int n, int max_tokens, bool kl, es_error *err);
void es_set_close(es_set *s, es_bench *b);
/* seq[i].now of every sequence; harm (may be NULL) when the set has kl. */
int es_set_measure(es_set *s, es_bench *b, const es_variant *v, es_harm *harm, es_error *err);

/* Neutral texts of one kind until there are `tokens`; every third is for dev. Documents are cut at 128 tokens, turns as replies are. */
int es_set_neutral(es_set *s, es_bench *b, const es_eval_text *text, int n_text, bool chat, bool dev, int tokens, es_error *err);
/* Preferred and rejected replies by turns. */
int es_set_pairs(es_set *s, es_bench *b, const es_experiences *e, bool kl, es_error *err);
/* Of pairs: mean change of the margin with its standard error, and of the preferred replies' mean log-probability. */
void es_set_margins(const es_set *s, double *margin, double *se, double *gain);

/* Work files: finished runs by key, in `done`. A line that a kill cut is dropped. keep takes the reference of line. */
int es_work_load(json_t *done, const char *path, es_error *err);
int es_work_keep(json_t *done, const char *path, const char *key, json_t *line, es_error *err);

/* Below a table: the rows whose method would not learn (ES_ERR_REFUSED) and its reasons; nothing where there is none. */
void es_eval_refused(json_t *rows, es_buf *out);

bool es_variant_is_base(const es_variant *v, const es_model *base);
/* Replies at temperature 0 to the last of each source's conversations. text: caller frees each. */
int es_bench_replies(es_bench *b, const es_variant *v, const es_source *from, int n, int max_new, char **text, bool *ended, es_error *err);

/* Log-likelihoods: out[n * 8], the sum over each option's tokens after the beginning; option_tokens[n * 8]: how many they are. The variant's
 * prefix is left out: the beginnings are raw text. */
int es_bench_choices(es_bench *b, const es_variant *v, const es_choice *c, int n, double *out, int *option_tokens, es_error *err);

#endif
