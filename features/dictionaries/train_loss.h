/* The losses that dictionaries are trained with, and their gradients: plain loops in double, the documentation of the fast step (train_step.c).
 *
 * x [B, d] rows, already scaled; enc, dec [F, d]; z = (x - b_dec) enc^T + b_enc; xhat = b_dec + f dec; H the step function.
 *   L = 1/B sum_t |x_t - xhat_t|^2 + penalty + auxiliary
 *   batchtopk   f = z where it is among the batch's B k largest and above 0                 Bussmann, Leask & Nanda 2024, arXiv 2412.06410
 *   topk        f = z where it is among the token's k largest and above 0                   Gao et al. 2024, arXiv 2406.04093
 *   matryoshka  as batchtopk; the first term is summed over prefixes of the features        Bussmann et al. 2024/2025, arXiv 2503.17547
 *   jumprelu    f = z H(z - theta); penalty s/B sum H(z - theta)                            Rajamanoharan et al. 2024, arXiv 2407.14435
 *               straight through: df/dtheta = -theta/eps K((z - theta)/eps), dH/dtheta = -1/eps K((z - theta)/eps), K = [|u| < 1/2];
 *               nothing goes to z through H. theta itself is the parameter, not its logarithm: Adam moves a parameter by a rate's size a
 *               step, and SAELens found that too little for logarithms.
 *   gated       f = H(z) relu(exp(r_mag) (z - b_enc) + b_mag), b_enc being the gate's bias;   Rajamanoharan et al. 2024a, arXiv 2404.16014
 *               penalty s/B sum relu(z) + 1/B sum_t |x_t - b_dec - relu(z_t) dec|^2, that b_dec and dec frozen
 *   standard    f = relu(z); penalty s/B sum f_j |dec_j|                                    Anthropic, April 2024 update
 * The auxiliary loss (Gao et al. 2024): weight/A sum_t |e_t - sum z_j dec_j|^2 over the first A tokens, e = x - xhat frozen, j among the
 * aux_k largest z > 0 of the dead features. */
#ifndef ES_TRAIN_LOSS_H
#define ES_TRAIN_LOSS_H

#include "dictionaries.h"

typedef struct es_sae_numbers { /* parameters, or their gradients. Those that a recipe lacks are not looked at */
    double *enc, *dec;     /* [F, d] */
    double *b_enc, *b_dec; /* [F], [d] */
    double *theta;         /* [F] jumprelu */
    double *r_mag, *b_mag; /* [F] gated */
} es_sae_numbers;

typedef struct es_sae_problem {
    es_recipe recipe;
    int d, F, B, k;
    const double *x;       /* [B, d] */
    double sparsity;       /* s */
    double bandwidth;      /* eps */
    const int *prefix;     /* [n_prefix], rising, the last F; matryoshka */
    int n_prefix;
    const bool *dead;      /* [F]; NULL: no auxiliary loss */
    int aux_k, aux_tokens; /* aux_tokens: A */
    double aux_weight;
} es_sae_problem;

/* The loss of w. frozen: the numbers that stand wherever no gradient goes, NULL: w's own. So, frozen held fixed, *loss is a function of w whose
 * true gradient at w = frozen is *grad (of jumprelu: with H smoothed over eps for theta alone), which finite differences can check.
 * grad: set, not added to; NULL: not wanted. ES_ERR_MEMORY. */
int es_sae_loss(const es_sae_problem *p, const es_sae_numbers *w, const es_sae_numbers *frozen, double *loss, const es_sae_numbers *grad, es_error *err);

#endif
