/* steer: how far a task's behaviour can be moved by adding features' decoder rows to the residual, at a bounded cost elsewhere. */
#ifndef ES_STEER_H
#define ES_STEER_H

#include "evaluate.h"

enum { ES_STEER_FEATURES = 8, ES_STEER_STRENGTHS = 8, ES_STEER_WAYS = 4 };

typedef struct es_steer_options {
    const es_eval_text *neutral; int n_neutral;
    double strength[ES_STEER_STRENGTHS]; int n_strength; /* rising; length of what is added, as a share of the median residual's */
    double kl;         /* a strength is allowed while the mean KL(base || steered) on neutral text is at most this, nats a token ... */
    double degenerate; /* ... and the share of replies that are empty or repeat themselves is at most this above the base model's */
    int train, dev, held;            /* pairs, at most */
    int replies, reply_tokens, neutral_tokens; /* greedy replies to held-out prompts; tokens that KL is measured on */
    int threads;
    uint64_t seed;     /* of the random features */
} es_steer_options;
es_steer_options es_steer_default(void);

typedef struct es_steer_point { double strength, margin, kl, degenerate; bool allowed; } es_steer_point; /* margin: change on the dev pairs */
typedef struct es_steered {
    const char *way; /* static: "feature", "features", "random", "gradient" */
    int feature[ES_STEER_FEATURES], n_feature;
    double weight[ES_STEER_FEATURES]; /* of unit decoder rows in the direction, which is then made a unit vector */
    es_steer_point point[ES_STEER_STRENGTHS]; int n_point; /* stops behind the first that is over the KL bound */
    int chosen;      /* the allowed point with the largest margin above 0; -1: there is none, and the three below are 0 */
    double margin, se, success; /* on held-out pairs at that point: mean change of the margin, its standard error, share of pairs whose margin rose */
} es_steered;

typedef struct es_steering {
    double median;     /* residual length at the layer, over neutral tokens */
    double degenerate; /* of the base model */
    int train, dev, held;
    es_steered way[ES_STEER_WAYS]; int n_way;
} es_steering;

/* margin: mean log-probability a token of the preferred reply less that of the rejected one, and here its change by steering. The loss gradient of the train
 * pairs at the dictionary's layer (es_attribute) picks among the features that fire on their replies: the unit decoder row with the largest product
 * ("feature"), the 8 largest weighted by it ("features"), 8 drawn at random weighted by theirs ("random"), and the gradient itself ("gradient"): what a
 * direction without a dictionary does. What is added sits on every token. Strength is chosen on dev, margins are told of held. */
int es_steer_measure(es_model *m, const es_dictionary *s, const es_task *task, const es_steer_options *o, es_steering *out, const es_progress *progress,
                     es_error *err);

#endif
