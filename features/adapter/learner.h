/* learner: moves an adapter by experiences. Losses, steps, weighting, guards, directions learned beforehand, influence and undoing. */
#ifndef ES_LEARNER_H
#define ES_LEARNER_H

#include "adapters.h"

/* ---- learner --------------------------------------------------------------------------------------------------------------------------------- */

typedef struct es_learner es_learner;

typedef enum es_optimiser { ES_OPTIMISER_ADAM, ES_OPTIMISER_METRIC } es_optimiser; /* metric: form bias, or lora with fixed inputs */

typedef struct es_neutral_text { /* a document; or, with messages, the reply to them */
    const char *text;
    const es_message *message; int n_message;
    bool only_inputs; /* for inputs to be white on and nothing else: nothing is measured on it, no gradient taken */
} es_neutral_text;

typedef struct es_learner_options {
    es_optimiser optimiser;
    double learning_rate;    /* adam: its step. metric: length of the first step as a share of the median |h|: |D dc|, or for lora the
                                root of sum |D^T dM|^2, what is added in mean square where the inputs are white */
    int steps;               /* what a run takes when nobody says otherwise; the learner itself does not look at it */
    double momentum, decay;  /* adam: beta1, beta2 */
    double beta;             /* pair loss -log sigmoid(beta [d mean logp(+) - d mean logp(-)]), d: against the base model */
    double metric_lambda;    /* bias: (D'D + lambda I)^-1 */
    double enough;           /* below this loss a step moves nothing (guard "learned"); 0: never */
    double kappa;            /* guard: mean KL from base on anchors at most this; 0: no guard, and KL is not measured */
    double rho;              /* guard: |D c| at most rho times the median |h| at the layer */
    int batch;               /* experiences a step; 0: all */
    int max_reply, max_prompt; /* tokens kept of each (reply's beginning, prompt's end) */
    int threads;
    uint64_t seed;
    bool exact;              /* products in f32 also where the processor has fast bfloat16 ones, whose noise in the KL is about 1e-4: for checks */
    bool weighting;          /* each experience counts by what is thought of it (es_learner_decision) */
    bool shrink;             /* metric: a feature's part of a step is multiplied by max(0, 1 - 1/snr^2) of the experiences' gradients along it (positive-part James-Stein) */
    double hold_out;         /* share of the experiences kept for the gate (at least 1 when there are 4 or more) */
    const char *const *anchor; int n_anchor; /* neutral texts; NULL: built-in ones */
    double replay;           /* share of a step's weight, in [0,1): a step starts from the gradient of the experiences' mean loss plus replay / (1 - replay)
                                times the mean KL(base || adapted) on a few neutral texts, others each step; what it moves is nobody's influence. 0: off */
    const es_neutral_text *replay_text; int n_replay; /* not those that the KL guard measures on; NULL: built-in ones. Borrowed by es_learner_open only */
} es_learner_options;
es_learner_options es_learner_default(es_form form);
/* For form lora with fixed inputs: the metric step, experiences weighed. */
es_learner_options es_learner_white(void);
enum { ES_WHITE_RANK = 256 };

/* Losses of an experience, m = mean log-probability of a reply's tokens (its end-of-turn included), d from the base model:
 * both replies: -log sigma(beta [d m(+) - d m(-)]) (DPO, Rafailov et al. 2023, on means); preferred only: -m(+); rejected only:
 * -log sigma(-beta d m(-)) (NPO, Zhang et al. 2024: unlikelihood that fades out). A step descends their weighted mean.
 * Works on *a in place (borrowed). Caches each experience's residual below the adapter; says its memory through es_learner_bytes. */
int es_learner_open(es_learner **out, es_model *m, const es_dictionary *s, es_adapter *a, const es_learner_options *o, es_error *err);
void es_learner_free(es_learner *l);
int es_learner_add(es_learner *l, const es_experience *e, const volatile bool *cancel, es_error *err);
/* What reading experiences in the base model gave, kept for learners to come: those of the same model, limits and adapted layers do not read them
 * again, and learn the same to the bit. The 64 newest, about 0.8 MB each. Forms bias and lora; the others read. r outlives l, one learner at a time. */
typedef struct es_readings es_readings;
es_readings *es_readings_new(void); /* NULL: no memory */
void es_readings_free(es_readings *r);
void es_learner_recall(es_learner *l, es_readings *r);
/* Fixed inputs: A becomes L^-1 A, L L^T = C + 0.1 mean(diag C) I, C the second moment of A x on these texts in the base model, their
 * first tokens too, whose norms are a hundred times the others' (without them KL there was ten times larger where outputs are measured as well): a projection that is silent where neutral text is: documents and replies to ordinary questions alike,
 * or it is silent in one and costs in the other (the input half of a Kronecker-factored natural gradient; Martens & Grosse 2015). Before the first
 * experience and while M is zero. At least as many tokens as the rank are needed. */
int es_learner_whiten(es_learner *l, const es_neutral_text *text, int n, const volatile bool *cancel, es_error *err);
/* The second moment over these texts' tokens (without those only for inputs) of the gradient of the log-likelihood by the residual after each
 * of the adapter's layers, targets drawn from the model: out[n_layer][d, d] of an unconstrained adapter's learner. */
int es_learner_fisher(es_learner *l, const es_neutral_text *text, int n, float *out, const volatile bool *cancel, es_error *err);
/* Directions learned beforehand: adapters with the same fixed inputs, band and rank, each with something learned; of another basis, or of none,
 * what this one can do of it counts. A step's
 * preconditioner becomes G^-1 + weight U (U^T G U)^-1 U^T, U their M's, G the metric: the experiences' agreement with a direction moves
 * the adapter along it `weight` times as readily as along anything else. one_sided: never below zero on any of them. Takes over the
 * directions' inputs A, so es_learner_whiten is not needed. Metric step only; before the first experience. */
typedef struct es_direction { const char *name; const es_adapter *adapter; } es_direction;
int es_learner_prior(es_learner *l, const es_direction *direction, int n, double weight, bool one_sided, es_error *err);
int es_learner_directions(const es_learner *l);
const char *es_learner_direction(const es_learner *l, int i);
/* Where the adapter stands along each, [es_learner_directions]: length of what is added in mean square, as a share of the median |h|. */
void es_learner_amplitudes(es_learner *l, double *out);

/* What was made of an experience at the first step that took it, with weighting: weight = trust(source) * agreement, clipped at 1.
 * surprise: base nats a token of the preferred reply; over 4, and over 1.5 times the median of those that came in together, it is taken for gibberish. agreement: cosine in the metric of what the
 * experience asks for with the prior's direction that the experiences concern most (a sign per direction when it is one-sided, else that
 * of the majority), or without a prior with the sum of the others, which is told but not used (whole gradients do not find swaps, docs/research.md); trust: Beta mean of how often its source agreed. */
typedef struct es_decision { double weight, agreement, surprise, trust; char reason[200]; } es_decision;
const es_decision *es_learner_decision(const es_learner *l, int experience); /* NULL for held-out ones */

/* Fixed inputs as a thing of their own, for every adapter of a model and a band of layers. */
typedef struct es_inputs es_inputs;
/* White on these texts (NULL: the program's own few, which are enough for small ranks only), for the band of es_adapter_default. */
int es_inputs_make(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const es_neutral_text *text, int n, uint64_t seed, int threads,
                   const volatile bool *cancel, es_error *err);
void es_inputs_free(es_inputs *x);
int es_inputs_rank(const es_inputs *x);
/* SHA-256 of the file of texts that they are white on, kept with them; "" until it was set. */
const char *es_inputs_texts(const es_inputs *x);
void es_inputs_set_texts(es_inputs *x, const char hash[65]);
/* a's rank at most theirs, its band within theirs, nothing learned yet: A is theirs from now on. */
int es_adapter_set_inputs(es_adapter *a, const es_inputs *x, es_error *err);
/* From now on steps, lengths and directions are measured by what neutral text makes of the outputs too (the Fisher information kept with the
 * inputs, each layer's): the output half of that natural gradient. Metric step of form lora; before directions, sparing and experiences. */
int es_learner_natural(es_learner *l, const es_inputs *x, es_error *err);
/* From now on a step is kept from what to first order raises the loss of the neutral texts that the inputs were made with (documents and replies
 * each; A-GEM, Chaudhry et al. 2019, with the gradients taken once at the base model). Metric step of form lora. */
int es_learner_spare(es_learner *l, const es_inputs *x, es_error *err);
/* One safetensors file, f16; a shape or a model that does not fit is refused. */
int es_inputs_save(const es_inputs *x, const char *path, es_error *err);
int es_inputs_load(es_inputs **out, es_model *m, const char *path, es_error *err);

typedef struct es_neutral_texts { /* JSONL: {"text"}, or {"messages":[...],"reply"}, each with "inputs": true when it is only_inputs; a line with "about" is passed over */
    json_t *keep; /* holds the texts */
    es_neutral_text *item;
    int n, cap;
} es_neutral_texts;
int es_neutral_load(es_neutral_texts *t, const char *path, es_error *err); /* free also after an error */
void es_neutral_texts_free(es_neutral_texts *t);
/* Of those that are not for inputs alone every third of a kind is for choosing and for inputs too, so that harm is measured on others.
 * kind: zeros before the first text. */
typedef enum es_neutral_use { ES_NEUTRAL_MEASURE, ES_NEUTRAL_CHOOSE, ES_NEUTRAL_INPUTS } es_neutral_use;
es_neutral_use es_neutral_use_of(const es_neutral_text *t, int kind[2]);
int es_neutral_pick(const es_neutral_text *text, int n, es_neutral_use use, es_neutral_text *out); /* those for it into out[n]; how many. INPUTS: CHOOSE too */
/* Inputs that are white on those of these texts that are for it. */
int es_inputs_neutral(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const es_neutral_text *text, int n, int threads, const volatile bool *cancel,
                      es_error *err);
/* The same of the file `neutral`, kept in `folder` under the model's name: made the first time, and when that file has changed; read after that. */
int es_inputs_kept(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const char *neutral, const char *folder, int threads,
                   const volatile bool *cancel, es_error *err);

int es_learner_count(const es_learner *l);
size_t es_learner_bytes(const es_learner *l);

typedef struct es_step_report {
    int step;
    double loss, margin, kl;     /* margin: mean d(preferred - rejected) mean log-probability over learning pairs; kl: on anchors, after guards */
    double norm;                 /* |D c| over the median |h| */
    double replay;               /* mean KL on this step's replayed texts, before it; 0 without */
    double backtracked;          /* 1, or the factor by which guards shortened the step (and, a little, all before it); 0: nothing moved */
    double seconds; int tokens;
    int n_moved; int moved[8]; float by[8]; /* basis positions of the coefficients that moved most in this step */
    const char *guard;           /* which guard acted, or NULL; static string */
} es_step_report;
int es_learner_step(es_learner *l, es_step_report *out, const volatile bool *cancel, es_error *err); /* on error the adapter is as before */

typedef struct es_gate_report {
    bool passed;
    int held_out;
    double gain, kl;             /* on held-out experiences (margin for pairs, mean log-probability otherwise); on anchors */
    char reason[200];
} es_gate_report;
int es_learner_gate(es_learner *l, es_gate_report *out, const volatile bool *cancel, es_error *err);

/* out[(n+1) * K]: contribution of each experience (in es_learner_add's order) to each coefficient since the learner was opened; the last
 * row is what no single experience accounts for (products of two changes, guards that project, a new input set). Columns add up to the
 * change of the coefficients. */
void es_learner_influence(const es_learner *l, float *out);
/* A copy of the adapter without these experiences' part of every step that was taken: exact bookkeeping for what their gradients moved, so
 * the others' parts stay as they are (their gradients were taken with these present; a replay without them would differ by that).
 * Sparing: of their part only what leaves the others where they are: what is orthogonal, in the metric, to each direction but the one that these went
 * along most, and to the others' parts, each (SPARE_EACH) or their sum (SPARE_SUM). What others ask for too then stays.
 * Balancing: sparing the sum, and then what brings the others' mean gains, by the direction they went along most, back to where they were (a few passes over
 * all experiences; a teacher's opinions are in no group). Sparing and balancing: metric step of form lora. */
typedef enum es_undo { ES_UNDO_PLAIN, ES_UNDO_SPARE_EACH, ES_UNDO_SPARE_SUM, ES_UNDO_BALANCE } es_undo;
enum { ES_BALANCE_GROUPS = 33 };
int es_learner_without(es_learner *l, const int *experience, int n, es_undo how, es_adapter **out, const volatile bool *cancel, es_error *err);
/* Per coefficient signal to noise of the experiences' gradients: mean / (sd / sqrt n); NAN for fewer than 2. [K] */
void es_learner_snr(const es_learner *l, float *out);

#endif
