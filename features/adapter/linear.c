#include "linear.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

void es_linear_gram(es_pool *p, const float *rows, int K, int d, float *g)
{
    es_kernels_cpu()->gemm(p, false, true, K, K, d, 1, rows, d, rows, d, 0, g, K);
}

bool es_linear_cholesky(double *a, int n, double ridge)
{
    for (int i = 0; i < n; i++) {
        double *ai = a + (size_t)i * n;
        for (int j = 0; j <= i; j++) {
            const double *aj = a + (size_t)j * n;
            double sum = ai[j] + (i == j ? ridge : 0);
            for (int k = 0; k < j; k++)
                sum -= ai[k] * aj[k];
            if (i != j)
                ai[j] = sum / aj[j];
            else if (sum > 0)
                ai[i] = sqrt(sum);
            else
                return false;
        }
    }
    return true;
}

void es_linear_solve_half(const double *l, int n, double *x)
{
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < i; k++)
            x[i] -= l[(size_t)i * n + k] * x[k];
        x[i] /= l[(size_t)i * n + i];
    }
}

void es_linear_solve(const double *l, int n, double *x)
{
    es_linear_solve_half(l, n, x);
    for (int i = n - 1; i >= 0; i--) {
        for (int k = i + 1; k < n; k++)
            x[i] -= l[(size_t)k * n + i] * x[k];
        x[i] /= l[(size_t)i * n + i];
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Householder reflections to a tridiagonal matrix, then QL with implicit shifts (Golub & Van Loan, Matrix Computations, 8.3).
 * Values only, so no vectors are accumulated. */
bool es_linear_eigenvalues(double *a, int n, double *w)
{
    double *e = es_calloc((size_t)n + 1, sizeof *e), *p = es_calloc((size_t)n + 1, sizeof *p);
    bool ok = e && p;
    for (int k = 0; ok && k < n - 2; k++) { /* column k below the diagonal becomes (e, 0, 0, ...) */
        double *v = w;                      /* the reflection's vector, rows k+1 .. n-1; w[k] is not needed yet */
        double norm = 0, head = a[(size_t)(k + 1) * n + k];
        for (int i = k + 1; i < n; i++)
            norm += a[(size_t)i * n + k] * a[(size_t)i * n + k];
        norm = sqrt(norm);
        e[k] = head > 0 ? -norm : norm;
        if (norm == 0)
            continue;
        for (int i = k + 1; i < n; i++)
            v[i] = a[(size_t)i * n + k];
        v[k + 1] -= e[k];
        double vv = 0, vp = 0;
        for (int i = k + 1; i < n; i++)
            vv += v[i] * v[i];
        if (vv == 0)
            continue;
        for (int i = k + 1; i < n; i++) {
            double sum = 0;
            for (int j = k + 1; j < n; j++)
                sum += a[(size_t)i * n + j] * v[j];
            p[i] = 2 * sum / vv;
            vp += v[i] * p[i];
        }
        for (int i = k + 1; i < n; i++)
            p[i] -= vp / vv * v[i];
        for (int i = k + 1; i < n; i++)
            for (int j = k + 1; j < n; j++)
                a[(size_t)i * n + j] -= v[i] * p[j] + p[i] * v[j];
    }
    if (ok) {
        if (n > 1)
            e[n - 2] = a[(size_t)(n - 1) * n + n - 2];
        e[n - 1] = 0;
        for (int i = 0; i < n; i++)
            w[i] = a[(size_t)i * n + i];
    }
    for (int l = 0; ok && l < n; l++)
        for (int turn = 0;; turn++) {
            int m = l;
            while (m < n - 1 && fabs(e[m]) > DBL_EPSILON * (fabs(w[m]) + fabs(w[m + 1])) && fabs(e[m]) > DBL_MIN)
                m++;
            if (m == l)
                break;
            if (turn == 60) {
                ok = false;
                break;
            }
            double g = (w[l + 1] - w[l]) / (2 * e[l]), r = hypot(g, 1);
            g = w[m] - w[l] + e[l] / (g + copysign(r, g));
            double s = 1, c = 1, q = 0;
            int i = m - 1;
            for (; i >= l; i--) {
                double f = s * e[i], b = c * e[i];
                e[i + 1] = r = hypot(f, g);
                if (r == 0) { /* the matrix splits here */
                    w[i + 1] -= q;
                    e[m] = 0;
                    break;
                }
                s = f / r;
                c = g / r;
                g = w[i + 1] - q;
                r = (w[i] - g) * s + 2 * c * b;
                q = s * r;
                w[i + 1] = g + q;
                g = c * r - b;
            }
            if (i >= l)
                continue;
            w[l] -= q;
            e[l] = g;
            e[m] = 0;
        }
    free(e);
    free(p);
    if (ok)
        qsort(w, (size_t)n, sizeof *w, ascending);
    return ok;
}
