/* xoshiro256** by Blackman and Vigna (prng.di.unimi.it), seeded by splitmix64. */
#include "base.h"

#include <math.h>

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

void es_rng_seed(es_rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        r->s[i] = z ^ z >> 31;
    }
}

uint64_t es_rng_next(es_rng *r)
{
    uint64_t *s = r->s, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

double es_rng_uniform(es_rng *r)
{
    return (double)(es_rng_next(r) >> 11) * 0x1p-53;
}

float es_rng_normal(es_rng *r)
{
    double u = 1.0 - es_rng_uniform(r), v = es_rng_uniform(r); /* u in (0,1]: its logarithm is finite */
    return (float)(sqrt(-2.0 * log(u)) * cos(2.0 * M_PI * v)); /* Box and Muller; the second value is not kept */
}

uint64_t es_rng_below(es_rng *r, uint64_t n)
{
    uint64_t reject = -n % n; /* 2^64 mod n: the values below it would favour small results */
    for (;;) {
        uint64_t x = es_rng_next(r);
        if (x >= reject)
            return x % n;
    }
}
