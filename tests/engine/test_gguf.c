/* GGUF files, sound and spoilt. A spoilt one gives one clear line and nothing else. */
#include "failing.h"
#include "gguf.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void opens_every_type(void **state)
{
    (void)state;
    static const struct {
        es_type type;
        float bound; /* on a number, as a share of the row's largest */
    } types[] = {
        {ES_F32, 0}, {ES_F16, 5e-4f}, {ES_BF16, 4e-3f}, {ES_Q4_0, 0.08f}, {ES_Q4_1, 0.08f}, {ES_Q5_0, 0.04f}, {ES_Q5_1, 0.04f},
        {ES_Q8_0, 5e-3f}, {ES_Q2_K, 0.4f}, {ES_Q3_K, 0.2f}, {ES_Q4_K, 0.09f}, {ES_Q5_K, 0.05f}, {ES_Q6_K, 0.02f}, {ES_IQ4_NL, 0.15f},
    };
    float *exact = NULL;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        tiny_options o = tiny_default();
        o.type = types[i].type;
        o.d_model = o.d_ff = 256; /* one block of the K types */
        es_model *m = open_tiny(&o);
        const es_model_info *k = es_model_get_info(m);
        assert_string_equal(k->architecture, "llama");
        assert_string_equal(k->name, "Tiny");
        assert_int_equal(k->n_layer, 4);
        assert_int_equal(k->d_model, 256);
        assert_int_equal(k->n_head, 4);
        assert_int_equal(k->n_kv, 2);
        assert_int_equal(k->head_dim, 64);
        assert_int_equal(k->d_ff, 256);
        assert_int_equal(k->n_vocab, TINY_VOCAB);
        assert_int_equal(k->n_ctx, 512);
        assert_true(k->tied_head);
        assert_int_equal(es_model_head(m).type, types[i].type);
        assert_int_equal(es_site_n_in(m, ES_SITE_DOWN), 256);
        assert_int_equal(es_site_n_out(m, ES_SITE_K), 128);
        assert_string_equal(es_site_name(ES_SITE_O), "attn_output");

        /* the same seed: rows of the tied heads differ by the rounding of the type only */
        float row[256], worst = 0, norm = 0;
        es_model_unembed_row(m, 100, row);
        if (!exact) {
            exact = calloc(256, sizeof *exact);
            memcpy(exact, row, sizeof row);
        }
        for (int d = 0; d < 256; d++) {
            worst = fmaxf(worst, fabsf(row[d] - exact[d]));
            norm = fmaxf(norm, fabsf(exact[d]));
        }
        print_message("%-7s %.4f of the largest\n", es_type_get((int)types[i].type)->name, worst / norm);
        assert_true(worst <= norm * types[i].bound);
        for (int d = 0; d < 256; d++)
            assert_true(isfinite(es_model_final_norm(m)[d]) && isfinite(row[d]));
        es_model_free(m);
    }
    free(exact);
}

static void untied_head_opens(void **state)
{
    (void)state;
    tiny_options o = tiny_default();
    o.type = ES_Q4_1;
    o.untied = true;
    es_model *m = open_tiny(&o);
    assert_false(es_model_get_info(m)->tied_head);
    assert_int_equal(es_model_head(m).type, ES_Q4_1);
    es_model_free(m);
}

static void hash_is_of_the_file(void **state)
{
    (void)state;
    es_model *m = open_tiny(NULL);
    es_error err;
    char a[65], b[65];
    assert_ok(es_model_hash(m, a, &err), &err);
    assert_ok(es_sha256_file(b, es_model_get_info(m)->path, &err), &err);
    assert_string_equal(a, b);
    memset(b, '7', 64);
    es_model_set_hash(m, b);
    assert_ok(es_model_hash(m, a, &err), &err);
    assert_string_equal(a, b);
    es_model_set_hash(m, "short"); /* not a digest: computed again */
    assert_ok(es_model_hash(m, a, &err), &err);
    assert_string_not_equal(a, b);
    es_model_free(m);
}

static void the_real_model(void **state)
{
    (void)state;
    es_error err;
    es_model *m;
    if (!test_real_model())
        skip();
    double t = es_seconds();
    assert_ok(es_model_open(&m, test_real_model(), &err), &err);
    print_message("opened in %.0f ms\n", 1e3 * (es_seconds() - t));
    const es_model_info *k = es_model_get_info(m);
    assert_int_equal(k->n_layer, 30);
    assert_int_equal(k->d_model, 576);
    assert_int_equal(k->n_vocab, 49152);
    assert_int_equal(k->n_params, 134515008);
    assert_true(k->tied_head);
    assert_true(fabsf(k->rope_base - 100000) < 1);
    es_model_free(m);
}

/* Version 2 has the same layout; 3 is what tiny files are. */
static void version_2_opens(void **state)
{
    (void)state;
    tiny_file *f = tiny_build(NULL);
    f->version = 2;
    const char *path = test_path("v2.gguf");
    tiny_write(path, f);
    tiny_free(f);
    es_model *m;
    es_error err;
    assert_ok(es_model_open(&m, path, &err), &err);
    es_model_free(m);
}

/* Integers of any width, keys that may be absent, linear rope scaling: other writers' habits. */
static void other_habits(void **state)
{
    (void)state;
    tiny_file *f = tiny_build(NULL);
    uint64_t four = 4;
    double eps = 1e-6;
    float factor = 2;
    static const char *const absent[] = {"general.name", "llama.attention.key_length", "llama.attention.value_length",
                                         "llama.rope.freq_base", "llama.rope.dimension_count", "llama.vocab_size",
                                         "general.alignment"};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        tiny_drop_kv(f, absent[i]);
    tiny_set(tiny_find_kv(f, "llama.block_count"), 10, &four, 8);
    tiny_set(tiny_find_kv(f, "llama.attention.layer_norm_rms_epsilon"), 12, &eps, 8);
    tiny_add_kv(f, "llama.rope.scaling.type", 8, "\6\0\0\0\0\0\0\0linear", 14);
    tiny_add_kv(f, "llama.rope.scaling.factor", 6, &factor, 4);
    const char *path = test_path("habits.gguf");
    tiny_write(path, f);
    tiny_free(f);
    es_model *m;
    es_error err;
    assert_ok(es_model_open(&m, path, &err), &err);
    assert_int_equal(es_model_get_info(m)->head_dim, 16);
    assert_true(es_model_get_info(m)->norm_eps == 1e-6f);
    es_model_free(m);
}

/* ---- faults ---- */

#define DOWN "blk.1.ffn_down.weight"
#define NORM "blk.1.ffn_norm.weight"

static uint64_t huge(int bits) { return bits == 64 ? UINT64_MAX : (uint64_t)1 << bits; }
static tiny_kv *first(tiny_file *f) { return &f->kv[0]; }
static tiny_tensor *down(tiny_file *f) { return tiny_find_tensor(f, DOWN); }

static void bad_magic(tiny_file *f) { memcpy(f->magic, "GGML", 4); }
static void version_0(tiny_file *f) { f->version = 0; }
static void version_1(tiny_file *f) { f->version = 1; }
static void version_4(tiny_file *f) { f->version = 4; }
static void byte_swapped(tiny_file *f) { f->version = 0x03000000; }
static void tensors_max(tiny_file *f) { f->said_tensor = UINT64_MAX; }
static void kvs_max(tiny_file *f) { f->said_kv = UINT64_MAX; }
static void tensors_none(tiny_file *f) { f->said_tensor = 0; }
static void kvs_none(tiny_file *f) { f->said_kv = 0; }
static void tensors_fewer(tiny_file *f) { f->said_tensor--; }
static void kvs_fewer(tiny_file *f) { f->said_kv--; }
static void kvs_more(tiny_file *f) { f->said_kv++; }
static void key_len_31(tiny_file *f) { first(f)->key_len = huge(31); }
static void key_len_64(tiny_file *f) { first(f)->key_len = huge(64); }
static void key_overlong(tiny_file *f)
{
    char *s = malloc(65537);
    memset(s, 'k', 65536);
    s[65536] = 0;
    tiny_add_kv(f, s, 7, "\1", 1);
    free(s);
}
static void key_escape(tiny_file *f) { tiny_add_kv(f, "\x1b[2J", 7, "\1", 1); }
static void str_len_31(tiny_file *f) { uint64_t n = huge(31); tiny_set(first(f), 8, &n, 8); }
static void str_len_64(tiny_file *f) { uint64_t n = huge(64); tiny_set(first(f), 8, &n, 8); }
static void key_empty(tiny_file *f) { tiny_add_kv(f, "", 7, "\1", 1); }
static void key_twice(tiny_file *f) { tiny_add_kv(f, "llama.block_count", 4, "\4\0\0", 4); }
static void type_13(tiny_file *f) { first(f)->type = 13; }
static void type_max(tiny_file *f) { first(f)->type = UINT32_MAX; }
static void bool_2(tiny_file *f) { tiny_add_kv(f, "x", 7, "\2", 1); }
static void set_array(tiny_file *f, uint32_t type, uint64_t count)
{
    es_buf b = {0};
    es_buf_add(&b, &type, 4);
    es_buf_add(&b, &count, 8);
    tiny_add_kv(f, "x", 9, b.data, b.len);
    es_buf_free(&b);
}
static void array_type(tiny_file *f) { set_array(f, 99, 1); }
static void array_wraps(tiny_file *f) { set_array(f, 10, huge(61)); }
static void array_wraps_2(tiny_file *f) { set_array(f, 4, huge(62) + 1); }
static void array_strings_max(tiny_file *f) { set_array(f, 8, UINT64_MAX); }
static void array_bytes_max(tiny_file *f) { set_array(f, 0, UINT64_MAX); }
static void array_nested(tiny_file *f)
{
    es_buf b = {0};
    uint32_t type = 9;
    uint64_t one = 1;
    for (int i = 0; i < 10000; i++) {
        es_buf_add(&b, &type, 4);
        es_buf_add(&b, &one, 8);
    }
    tiny_add_kv(f, "x", 9, b.data, b.len);
    es_buf_free(&b);
}
static void align_0(tiny_file *f) { tiny_set_u32(f, "general.alignment", 0); }
static void align_13(tiny_file *f) { tiny_set_u32(f, "general.alignment", 13); }
static void align_31(tiny_file *f) { tiny_set_u32(f, "general.alignment", (uint32_t)huge(31)); }
static void align_type(tiny_file *f) { tiny_set_str(f, "general.alignment", "32"); }
static void align_u64(tiny_file *f) { uint64_t n = 32; tiny_set(tiny_find_kv(f, "general.alignment"), 10, &n, 8); }
static void dims_0(tiny_file *f) { down(f)->n_dims = 0; }
static void dims_5(tiny_file *f) { down(f)->n_dims = 5; }
static void dims_max(tiny_file *f) { down(f)->n_dims = UINT32_MAX; }
static void dim_0(tiny_file *f) { down(f)->ne[1] = 0; }
static void dim_minus_1(tiny_file *f) { down(f)->ne[1] = UINT64_MAX; }
static void dims_wrap(tiny_file *f)
{
    tiny_tensor *t = down(f);
    t->n_dims = 4;
    for (int d = 0; d < 4; d++)
        t->ne[d] = (uint64_t)1 << 30;
}
static void bytes_wrap(tiny_file *f) /* elements fit in 64 bits, their bytes do not */
{
    tiny_tensor *t = down(f);
    t->n_dims = 3;
    t->ne[0] = t->ne[1] = (uint64_t)1 << 30;
    t->ne[2] = 8;
}
static void offset_wraps(tiny_file *f) { down(f)->offset = UINT64_MAX - 31; }
static void not_a_block(tiny_file *f) { down(f)->type = ES_Q4_1; down(f)->ne[0] = 40; }
static void not_a_k_block(tiny_file *f) { down(f)->type = ES_Q4_K; } /* rows of 128, half a block */
static void type_iq2_s(tiny_file *f) { down(f)->type = 22; }
static void type_q8_1(tiny_file *f) { down(f)->type = 9; }
static void type_after_the_last(tiny_file *f) { down(f)->type = 31; }
static void type_gone(tiny_file *f) { down(f)->type = 4; }
static void type_huge(tiny_file *f) { down(f)->type = UINT32_MAX; }
static void misaligned(tiny_file *f) { down(f)->offset += 4; }
static void overlapping(tiny_file *f) { down(f)->offset -= 32; }
static void same_place(tiny_file *f) { down(f)->offset = 0; }
static void past_end(tiny_file *f) { f->tensor[f->n_tensor - 1].offset += 32; }
static void far_past_end(tiny_file *f) { down(f)->offset = huge(40); }
static void rename_down(tiny_file *f, const char *name)
{
    tiny_tensor *t = down(f);
    es_buf_clear(&t->name);
    es_buf_str(&t->name, name);
    t->name_len = strlen(name);
}
static void name_overlong(tiny_file *f) { rename_down(f, "blk.1.ffn_down.weightweightweightweightweightweightweightweightweight"); }
static void name_twice(tiny_file *f) { rename_down(f, "blk.0.ffn_down.weight"); }
static void name_empty(tiny_file *f) { rename_down(f, ""); }
static void name_len_64(tiny_file *f) { down(f)->name_len = UINT64_MAX; }
static void name_escape(tiny_file *f) { rename_down(f, "blk\x1b]52;c;eA==\x07"); }
static void blocks_513(tiny_file *f) { tiny_set_u32(f, "llama.block_count", 513); }
static void blocks_0(tiny_file *f) { tiny_set_u32(f, "llama.block_count", 0); }
static void blocks_5(tiny_file *f) { tiny_set_u32(f, "llama.block_count", 5); }
static void blocks_3(tiny_file *f) { tiny_set_u32(f, "llama.block_count", 3); }
static void heads_0(tiny_file *f) { tiny_set_u32(f, "llama.attention.head_count", 0); }
static void heads_3(tiny_file *f) { tiny_set_u32(f, "llama.attention.head_count", 3); }
static void kv_heads_3(tiny_file *f) { tiny_set_u32(f, "llama.attention.head_count_kv", 3); }
static void kv_heads_8(tiny_file *f) { tiny_set_u32(f, "llama.attention.head_count_kv", 8); }
static void heads_array(tiny_file *f)
{
    tiny_kv *kv = tiny_find_kv(f, "llama.attention.head_count");
    tiny_set(kv, 9, "\4\0\0\0\1\0\0\0\0\0\0\0\4\0\0\0", 16);
}
static void head_odd(tiny_file *f) { tiny_set_u32(f, "llama.attention.key_length", 15); }
static void head_differs(tiny_file *f) { tiny_set_u32(f, "llama.attention.value_length", 32); }
static void rope_partial(tiny_file *f) { tiny_set_u32(f, "llama.rope.dimension_count", 8); }
static void width_0(tiny_file *f) { tiny_set_u32(f, "llama.embedding_length", 0); }
static void width_other(tiny_file *f) { tiny_set_u32(f, "llama.embedding_length", 128); }
static void width_huge(tiny_file *f) { tiny_set_u32(f, "llama.embedding_length", UINT32_MAX); }
static void width_text(tiny_file *f) { tiny_set_str(f, "llama.embedding_length", "64"); }
static void context_0(tiny_file *f) { tiny_set_u32(f, "llama.context_length", 0); }
static void set_eps(tiny_file *f, float eps) { tiny_set(tiny_find_kv(f, "llama.attention.layer_norm_rms_epsilon"), 6, &eps, 4); }
static void eps_nan(tiny_file *f) { set_eps(f, NAN); }
static void eps_inf(tiny_file *f) { set_eps(f, INFINITY); }
static void eps_negative(tiny_file *f) { set_eps(f, -1e-5f); }
static void eps_missing(tiny_file *f) { tiny_drop_kv(f, "llama.attention.layer_norm_rms_epsilon"); }
static void rope_base_nan(tiny_file *f) { float x = NAN; tiny_set(tiny_find_kv(f, "llama.rope.freq_base"), 6, &x, 4); }
static void rope_base_0(tiny_file *f) { float x = 0; tiny_set(tiny_find_kv(f, "llama.rope.freq_base"), 6, &x, 4); }
static void rope_long(tiny_file *f) { tiny_add_kv(f, "llama.rope.scaling.type", 8, "\10\0\0\0\0\0\0\0longrope", 16); }
static void rope_freqs_0(tiny_file *f) { float x[8] = {1, 1, 1, 0, 1, 1, 1, 1}; tiny_add_tensor(f, "rope_freqs.weight", ES_F32, 8, 1, x); }
static void experts(tiny_file *f) { tiny_add_kv(f, "llama.expert_count", 4, "\10\0\0", 4); }
static void vocab_other(tiny_file *f) { tiny_set_u32(f, "llama.vocab_size", 7); }
static void other_architecture(tiny_file *f) { tiny_set_str(f, "general.architecture", "mamba"); }
static void architecture_missing(tiny_file *f) { tiny_drop_kv(f, "general.architecture"); }
static void tensor_missing(tiny_file *f) { tiny_drop_tensor(f, DOWN); }
static void embedding_missing(tiny_file *f) { tiny_drop_tensor(f, "token_embd.weight"); }
static void norm_missing(tiny_file *f) { tiny_drop_tensor(f, "output_norm.weight"); }
static void transposed(tiny_file *f) { down(f)->ne[0] = 64; down(f)->ne[1] = 128; }
static void three_dims(tiny_file *f) { down(f)->n_dims = 3; down(f)->ne[0] = 64; down(f)->ne[1] = 64; down(f)->ne[2] = 2; }
static void norm_short(tiny_file *f) { tiny_find_tensor(f, NORM)->ne[0] = 32; }
static void norm_f16(tiny_file *f) { tiny_find_tensor(f, NORM)->type = ES_F16; }
static void extra_tensor(tiny_file *f) { float x[64] = {0}; tiny_add_tensor(f, "blk.0.attn_q.bias", ES_F32, 64, 1, x); }
static void poke_f32(tiny_file *f, const char *name, size_t at, float x) { memcpy(tiny_find_tensor(f, name)->data.data + 4 * at, &x, 4); }
static void norm_nan(tiny_file *f) { poke_f32(f, NORM, 63, NAN); }
static void weight_inf(tiny_file *f) { poke_f32(f, DOWN, 64 * 128 - 1, -INFINITY); }
static void embedding_nan(tiny_file *f) { poke_f32(f, "token_embd.weight", 0, NAN); }

static const struct fault {
    const char *name, *says;
    void (*spoil)(tiny_file *f);
} faults[] = {
    {"bad magic", "not a GGUF file", bad_magic},
    {"version 0", "version 0", version_0},
    {"version 1", "version 1", version_1},
    {"version 4", "version 4", version_4},
    {"byte-swapped", "big-endian", byte_swapped},
    {"2^64-1 tensors", "number of tensors", tensors_max},
    {"2^64-1 keys", "number of keys", kvs_max},
    {"no tensors", "token_embd.weight is missing", tensors_none},
    {"no keys", NULL, kvs_none},
    {"a tensor not counted", "output_norm.weight is missing", tensors_fewer},
    {"a key not counted", NULL, kvs_fewer},
    {"a key too many", NULL, kvs_more},
    {"key of 2^31 bytes", "ends inside key 1", key_len_31},
    {"key of 2^64-1 bytes", "ends inside key 1", key_len_64},
    {"key over 64 KiB", "overlong", key_overlong},
    {"key with an escape", "printable", key_escape},
    {"string of 2^31 bytes", "ends inside key general.architecture", str_len_31},
    {"string of 2^64-1 bytes", "ends inside key general.architecture", str_len_64},
    {"empty key", "empty key", key_empty},
    {"key twice", "twice (key llama.block_count", key_twice},
    {"value type 13", "unknown value type", type_13},
    {"value type 2^32-1", "unknown value type", type_max},
    {"bool 2", "neither 0 nor 1", bool_2},
    {"array of type 99", "array elements", array_type},
    {"array that wraps", "overflows", array_wraps},
    {"array that wraps to 4", "overflows", array_wraps_2},
    {"2^64-1 strings", "more strings", array_strings_max},
    {"2^64-1 bytes", "ends inside", array_bytes_max},
    {"arrays nested 10k deep", "array of arrays", array_nested},
    {"alignment 0", "alignment", align_0},
    {"alignment 13", "alignment", align_13},
    {"alignment 2^31", "alignment", align_31},
    {"alignment a string", "alignment", align_type},
    {"alignment u64", "alignment", align_u64},
    {"0 dimensions", "1 to 4 dimensions", dims_0},
    {"5 dimensions", "1 to 4 dimensions", dims_5},
    {"2^32-1 dimensions", "1 to 4 dimensions", dims_max},
    {"dimension 0", "dimension of 0", dim_0},
    {"dimension -1", "dimension of 0 or over", dim_minus_1},
    {"elements wrap", "overflows", dims_wrap},
    {"bytes wrap", "overflows", bytes_wrap},
    {"offset and bytes wrap", "past the file's end", offset_wraps},
    {"row not whole blocks", "whole number of blocks", not_a_block},
    {"row not a block of 256", "whole number of blocks", not_a_k_block},
    {"type IQ2_S", "IQ2_S (22), which is not read here: use a file in F32, F16, Q4_0", type_iq2_s},
    {"type Q8_1", "Q8_1 (9)", type_q8_1},
    {"type 31", "unknown (31)", type_after_the_last},
    {"type Q4_2", "Q4_2 (4)", type_gone},
    {"type 2^32-1", "unknown (4294967295)", type_huge},
    {"offset misaligned", "not aligned", misaligned},
    {"offset overlapping", "overlap", overlapping},
    {"two at one place", "overlap", same_place},
    {"offset past the end", "past the file's end", past_end},
    {"offset far past the end", "past the file's end", far_past_end},
    {"tensor twice", "twice (tensor blk.0.ffn_down.weight", name_twice},
    {"tensor name overlong", "over 64 bytes", name_overlong},
    {"tensor name empty", "empty", name_empty},
    {"tensor name of 2^64-1", "ends inside", name_len_64},
    {"tensor name with OSC 52", "printable", name_escape},
    {"513 blocks", "block_count is 513", blocks_513},
    {"0 blocks", "block_count is 0", blocks_0},
    {"a block too many", "blk.4.attn_norm.weight is missing", blocks_5},
    {"a block too few", "blk.3.", blocks_3},
    {"0 heads", "head_count is 0", heads_0},
    {"3 heads for 2", "cannot share", heads_3},
    {"3 key-value heads", "cannot share", kv_heads_3},
    {"8 key-value heads", "head_count_kv is 8", kv_heads_8},
    {"heads an array", "head_count is an array", heads_array},
    {"odd head size", "head size 15", head_odd},
    {"value size differs", "value size 32", head_differs},
    {"rope over half", "rope over 8", rope_partial},
    {"width 0", "embedding_length is 0", width_0},
    {"width other", "token_embd.weight is 64", width_other},
    {"width 2^32-1", "embedding_length", width_huge},
    {"width a string", "is string", width_text},
    {"context 0", "context_length is 0", context_0},
    {"NaN epsilon", "epsilon is nan", eps_nan},
    {"infinite epsilon", "epsilon is inf", eps_inf},
    {"negative epsilon", "epsilon is -1e-05", eps_negative},
    {"no epsilon", "epsilon is missing", eps_missing},
    {"NaN rope base", "rope base is nan", rope_base_nan},
    {"rope base 0", "rope base is 0", rope_base_0},
    {"longrope", "'longrope'", rope_long},
    {"rope factor 0", "rope_freqs.weight holds 0", rope_freqs_0},
    {"experts", "mixture of 8", experts},
    {"vocabulary size other", "vocab_size is 7", vocab_other},
    {"other architecture", "'mamba'", other_architecture},
    {"no architecture", "general.architecture is missing", architecture_missing},
    {"tensor missing", DOWN " is missing", tensor_missing},
    {"embedding missing", "token_embd.weight is missing", embedding_missing},
    {"last norm missing", "output_norm.weight is missing", norm_missing},
    {"tensor transposed", "should be 128 x 64", transposed},
    {"tensor of 3 dims", "64 x 64 x 2", three_dims},
    {"norm too short", "should be 64 x 1", norm_short},
    {"norm in F16", "should be F32", norm_f16},
    {"a tensor we do not know", "blk.0.attn_q.bias has no place", extra_tensor},
    {"NaN in a norm", NORM " holds NaN", norm_nan},
    {"infinity in a weight", DOWN " holds NaN or infinity", weight_inf},
    {"NaN in the embedding", "token_embd.weight holds NaN", embedding_nan},
};

static void faults_give_one_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        tiny_file *f = tiny_build(NULL);
        faults[i].spoil(f);
        const char *path = test_path("fault.gguf");
        tiny_write(path, f);
        tiny_free(f);
        es_model *m = (es_model *)path;
        es_error err = {0};
        int rc = es_model_open(&m, path, &err);
        print_message("%-26s %s\n", faults[i].name, err.text);
        assert_error(rc, &err, faults[i].says);
        assert_non_null(strstr(err.text, "fault.gguf: "));
        assert_null(m);
        assert_int_equal(es_model_open(&m, path, NULL), rc); /* the caller may not care why */
    }
}

/* The scale of any block of any quantised type, NaN or infinite, is found. */
static void bad_scales_are_found(void **state)
{
    (void)state;
    static const struct {
        es_type type;
        size_t at, bytes; /* of a half in a block */
    } halves[] = {
        {ES_F16, 0, 2},     {ES_Q4_0, 0, 18},   {ES_Q4_1, 0, 20},    {ES_Q4_1, 2, 20},  {ES_Q5_0, 0, 22},  {ES_Q5_1, 0, 24},  {ES_Q5_1, 2, 24},
        {ES_Q8_0, 0, 34},   {ES_Q2_K, 80, 84},  {ES_Q2_K, 82, 84},   {ES_Q3_K, 108, 110}, {ES_Q4_K, 0, 144}, {ES_Q4_K, 2, 144},
        {ES_Q5_K, 0, 176},  {ES_Q5_K, 2, 176},  {ES_Q6_K, 208, 210}, {ES_IQ4_NL, 0, 18}, {ES_BF16, 0, 2},
    };
    static const uint16_t half_bits[] = {0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff}, bfloat_bits[] = {0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff};
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        for (size_t k = 0; k < sizeof half_bits / sizeof *half_bits; k++) {
            const uint16_t bits = halves[i].type == ES_BF16 ? bfloat_bits[k] : half_bits[k];
            tiny_options o = tiny_default();
            o.type = halves[i].type;
            o.d_model = o.d_ff = 256;
            o.n_layer = 2;
            tiny_file *f = tiny_build(&o);
            tiny_tensor *t = down(f);
            size_t blocks = t->data.len / halves[i].bytes, block = k * (blocks - 1) / 4;
            memcpy(t->data.data + block * halves[i].bytes + halves[i].at, &bits, 2);
            const char *path = test_path("scale.gguf");
            tiny_write(path, f);
            tiny_free(f);
            es_model *m;
            es_error err = {0};
            assert_error(es_model_open(&m, path, &err), &err, DOWN " holds NaN or infinity");
        }
}

static void not_files(void **state)
{
    (void)state;
    es_model *m;
    es_error err = {0};
    test_write(test_path("empty.gguf"), "", 0);
    assert_error(es_model_open(&m, test_path("empty.gguf"), &err), &err, "ends inside the header");
    assert_error(es_model_open(&m, test_path("absent.gguf"), &err), &err, "No such file");
    assert_int_equal(err.code, ES_ERR_MISSING);
    assert_error(es_model_open(&m, test_path("."), &err), &err, "config.json");
    assert_error(es_model_open(&m, "/dev/null", &err), &err, "not a regular file");
    char path[3000];
    memset(path, 'p', sizeof path - 1);
    path[sizeof path - 1] = 0;
    assert_error(es_model_open(&m, path, &err), &err, "path is over");
}

/* A smaller model than the default one: what is cut and flipped below must not take minutes. */
static tiny_options smallest(void)
{
    tiny_options o = tiny_default();
    o.n_layer = 1;
    o.d_model = o.d_ff = 32;
    o.n_head = 2;
    o.n_kv = 1;
    o.type = ES_Q8_0;
    return o;
}

/* Cut at every byte of the header, and at a stride of the data: always one line. */
static void truncation(void **state)
{
    (void)state;
    tiny_options o = smallest();
    tiny_file *f = tiny_build(&o);
    es_buf b = {0};
    size_t header = tiny_header(f);
    tiny_pack(&b, f);
    tiny_free(f);
    const char *path = test_path("cut.gguf");
    for (size_t n = 0; n < b.len; n += n < header ? 1 : 97) {
        test_write(path, b.data, n);
        es_model *m;
        es_error err = {0};
        int rc = es_model_open(&m, path, &err);
        assert_error(rc, &err, "cut.gguf: ");
        if (n > 24)
            assert_true(strstr(err.text, "cut short?") || strstr(err.text, "that cannot be") || strstr(err.text, "could hold"));
    }
    test_write(path, b.data, b.len);
    es_model *m;
    es_error err;
    assert_ok(es_model_open(&m, path, &err), &err);
    es_model_free(m);
    es_buf_free(&b);
}

/* Random damage to the header: either one line, or a model that can be asked everything without a crash. */
static void flipped_bytes(void **state)
{
    (void)state;
    enum { ROUNDS = 4000 };
    tiny_options o = smallest();
    tiny_file *f = tiny_build(&o);
    es_buf b = {0};
    size_t header = tiny_header(f);
    tiny_pack(&b, f);
    tiny_free(f);
    const char *path = test_path("flip.gguf");
    es_rng r;
    es_rng_seed(&r, 11);
    int opened = 0;
    for (int round = 0; round < ROUNDS; round++) {
        char *copy = malloc(b.len);
        memcpy(copy, b.data, b.len);
        for (uint64_t k = 1 + es_rng_below(&r, 3); k > 0; k--) {
            size_t at = es_rng_below(&r, round % 8 == 0 ? b.len : header), n = 1 + es_rng_below(&r, 8);
            for (size_t i = at; i < at + n && i < b.len; i++)
                copy[i] = (char)(es_rng_below(&r, 2) ? es_rng_next(&r) : es_rng_below(&r, 2) ? 0 : 0xff);
        }
        test_write(path, copy, b.len);
        free(copy);
        es_model *m;
        es_error err = {0};
        int rc = es_model_open(&m, path, &err);
        if (rc != ES_OK) {
            assert_error(rc, &err, NULL);
            continue;
        }
        opened++;
        const es_model_info *k = es_model_get_info(m);
        float *row = calloc((size_t)k->d_model, sizeof *row);
        for (int id = 0; id < k->n_vocab; id += 50)
            es_model_unembed_row(m, id, row);
        free(row);
        es_ids l = {0};
        const es_message q = {"user", "the <|im_start|> \xff and  123"};
        (void)es_chat_render(m, &q, 1, true, &l, &err);
        for (size_t i = 0; i < l.n; i++) {
            size_t n;
            assert_true(es_token_bytes(m, l.id[i], &n) != NULL);
            assert_in_range(l.id[i], 0, k->n_vocab - 1);
        }
        es_ids_free(&l);
        es_model_free(m);
    }
    print_message("%d of %d damaged files still opened\n", opened, (int)ROUNDS);
    es_buf_free(&b);
}

/* Opening and rendering with the nth allocation failing, once and for good: an error that says so, and nothing leaked. */
static void every_allocation_may_fail(void **state)
{
    (void)state;
    if (!test_malloc_hooked())
        skip();
    tiny_options o = smallest();
    const char *path = test_path("nth.gguf");
    make_tiny_gguf(path, &o);
    char text[200];
    memset(text, 'e', sizeof text); /* long enough for the heap */
    for (int for_good = 0; for_good < 2; for_good++)
        for (long n = 0;; n++) {
            es_model *m = NULL;
            es_error err = {0};
            es_ids l = {0};
            const es_message q = {"user", "the question"};
            long live = test_malloc_live();
            test_fail_malloc(n, for_good);
            int rc = es_model_open(&m, path, &err);
            if (rc == ES_OK)
                rc = es_chat_render(m, &q, 1, true, &l, &err);
            size_t had = l.n;
            if (rc == ES_OK && (rc = es_tokenize(m, text, sizeof text, false, &l, &err)) != ES_OK)
                assert_int_equal(l.n, had);
            bool failed = test_malloc_failed();
            test_fail_malloc(-1, false);
            es_ids_free(&l);
            es_model_free(m);
            assert_int_equal(test_malloc_live(), live);
            if (!failed) {
                assert_ok(rc, &err);
                assert_true(n > 15);
                break;
            }
            assert_int_equal(rc, ES_ERR_MEMORY);
            assert_error(rc, &err, "not enough memory");
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_every_type),     cmocka_unit_test(untied_head_opens),    cmocka_unit_test(hash_is_of_the_file),  cmocka_unit_test(the_real_model),
        cmocka_unit_test(version_2_opens),      cmocka_unit_test(other_habits),         cmocka_unit_test(faults_give_one_line),
        cmocka_unit_test(bad_scales_are_found), cmocka_unit_test(not_files),            cmocka_unit_test(truncation),
        cmocka_unit_test(flipped_bytes),        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
