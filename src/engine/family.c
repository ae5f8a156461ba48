#include "family.h"

#include <stdio.h>
#include <string.h>

static const es_family families[] = {
    {.name = "llama", .model_type = "llama", .paired_rope = true, .pre_norm = true},
    {.name = "qwen3", .model_type = "qwen3", .pre_norm = true, .qk_norm = ES_QK_HEAD},
    {.name = "olmo2", .model_type = "olmo2", .post_norm = true, .qk_norm = ES_QK_WHOLE, .full_every = 4}, /* a GGUF of OLMo 3 says olmo2, and a window */
    {.name = "olmo2", .model_type = "olmo3", .post_norm = true, .qk_norm = ES_QK_WHOLE, .full_every = 4},
    {.name = "gemma2", .model_type = "gemma2", .pre_norm = true, .post_norm = true, .gelu = true, .scaled_embedding = true, .norm_plus_one = true,
     .full_every = 2, .attn_cap = 50, .final_cap = 30, .wide_layers = 46},
    {.name = "gemma3", .model_type = "gemma3_text", .pre_norm = true, .post_norm = true, .qk_norm = ES_QK_HEAD, .gelu = true,
     .scaled_embedding = true, .norm_plus_one = true, .full_every = 6, .window_rope_base = 10000, .wide_layers = 62},
};

enum { N = sizeof families / sizeof *families };

const es_family *es_family_by_name(const char *name)
{
    for (int i = 0; i < N; i++)
        if (!strcmp(families[i].name, name))
            return &families[i];
    return NULL;
}

const es_family *es_family_by_model_type(const char *model_type)
{
    for (int i = 0; i < N; i++)
        if (!strcmp(families[i].model_type, model_type))
            return &families[i];
    return NULL;
}

void es_family_list(char *out, size_t n)
{
    size_t at = 0;
    for (int i = 0; i < N && at < n; i++)
        if (!i || strcmp(families[i].name, families[i - 1].name) != 0)
            at += (size_t)snprintf(out + at, n - at, "%s%s", i ? ", " : "", families[i].name);
}
