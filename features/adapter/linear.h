/* linear (internal): the little dense algebra of bases. Row-major. */
#ifndef ES_LINEAR_H
#define ES_LINEAR_H

#include "kernels.h"

/* g[K,K] = rows rows^T for rows[K,d]. */
void es_linear_gram(es_pool *p, const float *rows, int K, int d, float *g);
/* In place: the lower triangle of a[n,n] becomes L with L L^T = a + ridge I. false when a is not positive definite. */
bool es_linear_cholesky(double *a, int n, double ridge);
/* x[n] in place: solves L L^T x = x. */
void es_linear_solve(const double *l, int n, double *x);
/* x[n] in place: solves L x = x, whose squared norm is x^T a^-1 x. */
void es_linear_solve_half(const double *l, int n, double *x);
/* The eigenvalues of the symmetric a[n,n], ascending, into w[n]; a is destroyed. false when an iteration does not converge. */
bool es_linear_eigenvalues(double *a, int n, double *w);

#endif
