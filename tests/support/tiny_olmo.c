/* The tiny model in OLMo 2's shape: norms after each half of a block and on whole rows of q and k, a head of its own, OLMo 2's pre-tokenizer, tokens and chat
 * template. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char TEMPLATE[] =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '\n' }}{% elif m.role == 'system' %}{{ '<|system|>\n' + m.content + "
    "'\n' }}{% else %}{{ '<|assistant|>\n' + m.content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

/* b becomes `to` with what follows the first `from` bytes of it. */
static void replace_start(es_buf *b, size_t from, const char *to)
{
    es_buf made = {0};
    es_buf_str(&made, to);
    es_buf_add(&made, b->data + from, b->len - from);
    es_buf_free(b);
    *b = made;
}

static void rename_tensor(tiny_file *f, const char *name, const char *to)
{
    tiny_tensor *t = tiny_find_tensor(f, name);
    replace_start(&t->name, t->name.len, to);
    t->name_len = t->name.len;
}

/* A norm of width n with unequal weights. */
static void add_norm(tiny_file *f, es_rng *rng, const char *name, int n)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int i = 0; x && i < n; i++)
        x[i] = 1 + 0.1f * es_rng_normal(rng);
    tiny_add_tensor(f, name, ES_F32, (size_t)n, 1, x);
    free(x);
}

tiny_file *tiny_build_olmo2(const tiny_options *options)
{
    tiny_options o = options ? *options : tiny_default();
    int hd = o.head_dim ? o.head_dim : o.d_model / o.n_head;
    es_rng rng;
    o.untied = true;
    es_rng_seed(&rng, o.seed + 1000);
    tiny_file *f = tiny_build(&o);
    for (size_t i = 0; i < f->n_kv; i++)
        if (f->kv[i].key.len > 6 && !memcmp(f->kv[i].key.data, "llama.", 6)) {
            replace_start(&f->kv[i].key, 6, "olmo2.");
            f->kv[i].key_len = f->kv[i].key.len;
        }
    tiny_set_str(f, "general.architecture", "olmo2");
    tiny_set_str(f, "general.name", "Tiny OLMo 2");
    tiny_set_str(f, "tokenizer.ggml.pre", "dbrx");
    tiny_set_str(f, "tokenizer.chat_template", TEMPLATE);
    tiny_set_entry(f, "tokenizer.ggml.tokens", 1, "<|fim_prefix|>", 14);
    tiny_set_entry(f, "tokenizer.ggml.tokens", 2, "<|pad|>", 7);
    tiny_set_u32(f, "tokenizer.ggml.bos_token_id", 0); /* <|endoftext|> is both */
    tiny_set_u32(f, "tokenizer.ggml.eos_token_id", 0);
    for (int l = 0; l < o.n_layer; l++) {
        char from[64], to[64];
        snprintf(from, sizeof from, "blk.%d.attn_norm.weight", l);
        snprintf(to, sizeof to, "blk.%d.post_attention_norm.weight", l);
        rename_tensor(f, from, to);
        snprintf(from, sizeof from, "blk.%d.ffn_norm.weight", l);
        snprintf(to, sizeof to, "blk.%d.post_ffw_norm.weight", l);
        rename_tensor(f, from, to);
        snprintf(to, sizeof to, "blk.%d.attn_q_norm.weight", l);
        add_norm(f, &rng, to, o.n_head * hd);
        snprintf(to, sizeof to, "blk.%d.attn_k_norm.weight", l);
        add_norm(f, &rng, to, o.n_kv * hd);
    }
    return f;
}
