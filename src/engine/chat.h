/* chat: the template that a model's conversations are written in (engine only; what others call is in engine.h). A template is data from a
 * stranger: it is recognised by what it says and rendered by our own code; its Jinja is never run. */
#ifndef ES_CHAT_H
#define ES_CHAT_H

#include "base.h"

struct es_tokenizer;

typedef enum es_chat_style {
    ES_CHAT_LINES,  /* "User: ..." and "Assistant: ...": for what is not a chat model */
    ES_CHAT_CHATML, /* <|im_start|>ROLE\n...<|im_end|>\n (SmolLM2, Qwen, OLMo 3) */
    ES_CHAT_LLAMA3, /* <|start_header_id|>ROLE<|end_header_id|>\n\n...<|eot_id|> */
    ES_CHAT_GEMMA,  /* <start_of_turn>user|model\n...<end_of_turn>\n; a system message goes in front of the first turn */
    ES_CHAT_OLMO2,  /* <|ROLE|>\n...\n, the end token after the assistant (OLMo 2, Tulu) */
    ES_CHAT_ZEPHYR, /* <|ROLE|>\n...END\n (Zephyr, TinyLlama) */
    ES_CHAT_LLAMA2, /* [INST] ... [/INST] ... END */
} es_chat_style;

typedef struct es_chat {
    es_chat_style style;
    bool bos;           /* a conversation begins with the begin token */
    char *system;       /* the system prompt that the template gives a conversation without one; NULL: none */
    char *date;         /* Llama 3.1 and later: the day that its header names; NULL: it has no such header */
    bool system_anywhere; /* OLMo 3: that prompt is left out when any message, not only the first, is the system's */
    bool no_functions;  /* OLMo 3: a system message goes on to say that there are no functions to call */
    bool end_last;      /* OLMo 3: a last assistant's turn is closed with the end token */
    bool forget_thoughts; /* Qwen 3: what earlier turns thought is left out, and the last one shows that it thought nothing */
    const char *opening; /* what an assistant's turn to be written begins with, "" or thoughts (static) */
    char *warning;      /* why the style is a guess; NULL: the template is known */
} es_chat;

/* template[0..n), n 0: the file has none. The tokenizer's special tokens must be there; what is needed of the template is copied. path: for the
 * warning. ES_ERR_MEMORY */
int es_chat_open(es_chat *c, const struct es_tokenizer *t, const char *template, size_t n, const char *path, es_error *err);
void es_chat_free(es_chat *c);

#endif
