/* rope: how fast each pair of a head turns with position (RoFormer, Su et al. 2021, eq. 15), and how files stretch that for longer texts. */
#include "forward.h"

#include <math.h>

/* Llama 3.1: pairs that turn slowly (a wavelength over original / low positions) are slowed by factor, fast ones left, between
 * them a blend. transformers' modeling_rope_utils.py, _compute_llama3_parameters. */
static double llama3(const es_rope_scaling *s, double inv)
{
    double turns = s->original * inv / (2 * M_PI), blend = (turns - s->low) / (s->high - s->low);
    blend = blend < 0 ? 0 : blend > 1 ? 1 : blend;
    return (1 - blend) * inv / s->factor + blend * inv;
}

/* The pair that turns `turns` times within the original context. */
static double yarn_pair(const es_rope_scaling *s, double base, int head_dim, double turns)
{
    return head_dim * log(s->original / (turns * 2 * M_PI)) / (2 * log(base));
}

/* YaRN (Peng et al. 2023, section 3.2): the same with a ramp over the pairs' numbers. */
static double yarn(const es_rope_scaling *s, double base, int head_dim, int pair, double inv)
{
    double low = fmax(floor(yarn_pair(s, base, head_dim, s->high)), 0), high = fmin(ceil(yarn_pair(s, base, head_dim, s->low)), head_dim - 1);
    double slow = (pair - low) / (high > low ? high - low : 0.001);
    slow = slow < 0 ? 0 : slow > 1 ? 1 : slow;
    return slow * inv / s->factor + (1 - slow) * inv;
}

int es_rope_open(es_model *m, const es_rope_scaling *s, es_error *err)
{
    const es_model_info *i = &m->info;
    int half = i->head_dim / 2;
    double window_base = s->window_base > 0 ? s->window_base : i->rope_base;
    m->facts.rope_gain = s->kind != ES_ROPE_YARN ? 1 : s->gain > 0 ? s->gain : 1 + 0.1f * logf(s->factor);
    bool ordered = s->kind < ES_ROPE_LLAMA3 || (s->original >= 1 && s->low > 0 && s->high > s->low);
    if (!(s->factor > 0) || !isfinite(s->factor) || !ordered || !(m->facts.rope_gain > 0) || !isfinite(m->facts.rope_gain) || !isfinite(window_base))
        return es_fail(err, ES_ERR_FORMAT, "%s: the rope scaling makes no sense (factor %g)", i->path, (double)s->factor);
    m->rope_inv = es_calloc(2 * (size_t)half, sizeof *m->rope_inv);
    if (!m->rope_inv)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", i->path);
    for (int k = 0; k < half; k++) {
        double inv = pow(i->rope_base, -2.0 * k / i->head_dim), divisor = s->divisor ? s->divisor[k] : 1;
        if (!(divisor > 0))
            return es_fail(err, ES_ERR_FORMAT, "%s: the tensor rope_freqs.weight holds %g: only positive factors make sense", i->path, divisor);
        switch (s->kind) {
        case ES_ROPE_PLAIN: break;
        case ES_ROPE_LINEAR: inv /= s->factor; break;
        case ES_ROPE_LLAMA3: inv = llama3(s, inv); break;
        case ES_ROPE_YARN: inv = yarn(s, i->rope_base, i->head_dim, k, inv); break;
        }
        m->rope_inv[k] = (float)(inv / divisor);
        m->rope_inv[half + k] = (float)pow(window_base, -2.0 * k / i->head_dim);
    }
    return ES_OK;
}

static void fill(const float *inv, float gain, int n_pos, int half, float *cos_t, float *sin_t)
{
    for (int pos = 0; pos < n_pos; pos++)
        for (int i = 0; i < half; i++) {
            double angle = (double)pos * inv[i];
            cos_t[(size_t)pos * half + i] = gain * (float)cos(angle);
            sin_t[(size_t)pos * half + i] = gain * (float)sin(angle);
        }
}

static bool windowed(const es_model *m)
{
    for (int l = 0; l < m->info.n_layer; l++)
        if (m->layer[l].window > 0)
            return true;
    return false;
}

void es_rope_layout(const es_model *m, size_t n_pos, es_arena *a, es_rope_table rope[2])
{
    size_t n = n_pos * (size_t)(m->info.head_dim / 2);
    for (int i = 0; i < 1 + windowed(m); i++)
        rope[i] = (es_rope_table){es_arena_take(a, n, sizeof(float)), es_arena_take(a, n, sizeof(float))};
}

void es_rope_fill(const es_model *m, int n_pos, es_rope_table rope[2])
{
    int half = m->info.head_dim / 2;
    fill(m->rope_inv, m->facts.rope_gain, n_pos, half, rope[0].cos, rope[0].sin);
    if (windowed(m))
        fill(m->rope_inv + half, 1, n_pos, half, rope[1].cos, rope[1].sin);
}
