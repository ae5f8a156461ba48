#include "generate.h"

void reply_free(reply *r)
{
    es_buf_free(&r->text);
    es_ids_free(&r->ids);
}

int generate_reply(es_context *c, const es_model *m, const es_ids *prompt, const es_sampling *sampling, int max_tokens,
                   void (*stream)(const char *s, size_t n), reply *r, es_error *err)
{
    es_rng rng;
    es_rng_seed(&rng, sampling->seed);
    double began = es_seconds();
    r->prompt_tokens = (int)prompt->n;
    int rc = es_context_sync(c, prompt->id, (int)prompt->n, NULL, &app_cancel, err);
    if (rc != ES_OK)
        return rc;
    size_t sent = 0;
    double decoding = es_seconds();
    r->first = decoding - began;
    for (int i = 0; i < max_tokens && !app_cancel; i++) {
        int32_t id = es_sample(c, sampling, &rng);
        if (i == 0)
            r->first = es_seconds() - began;
        if (es_token_ends(m, id)) {
            r->ended = true;
            break;
        }
        size_t n;
        const char *bytes = es_token_bytes(m, id, &n);
        if (!es_token_is_control(m, id))
            es_buf_add(&r->text, bytes, n);
        if (r->text.failed || es_ids_add(&r->ids, id) != 0)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the answer");
        size_t whole = r->text.len ? es_utf8_whole(r->text.data + sent, r->text.len - sent) : 0;
        if (r->text.len - sent - whole > 3) /* not the beginning of a character: broken for good */
            whole = r->text.len - sent;
        if (stream && whole)
            stream(r->text.data + sent, whole);
        sent += whole;
        if (i + 1 == max_tokens || es_context_length(c) >= es_context_size(c))
            break;
        rc = es_context_feed(c, &id, 1, &app_cancel, err);
        if (rc == ES_ERR_CANCELLED)
            break;
        if (rc != ES_OK)
            return rc;
    }
    if (stream && sent < r->text.len)
        stream(r->text.data + sent, r->text.len - sent);
    r->seconds = es_seconds() - decoding;
    return ES_OK;
}
