/* What replies are like: counts over words, and the shape of Python code. Lists of words are short and stated here in full; they serve to
 * compare a model with itself. */
#include "evaluate.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const HEDGES[] = {"i think", "i believe", "i guess", "i suppose", "i would say", "i'd say", "perhaps", "maybe", "probably", "possibly", "might",
                                     "it seems", "seems to", "sort of", "kind of", "somewhat", "in my opinion", "arguably", "as far as i know", "i'm not sure",
                                     "if i'm not mistaken", "more or less", "it could be", "may be", "roughly speaking", "i feel", NULL};
static const char *const OPENERS[] = {"sure", "certainly", "of course", "absolutely", "great question", "good question", "that's a great", "that is a great",
                                      "that's a good", "what a great", "i'd be happy", "i would be happy", "i'd be glad", "i'm happy to", "happy to help", "thank you for",
                                      "thanks for", "as an ai", "no problem", "definitely", "well,", "i hope this", "let me", NULL};
static const char *const POLITE[] = {"please", "thank", "thanks", "sorry", "appreciate", "glad", "happy", "kindly", "welcome", "wonderful", "great", "hope", "pleasure",
                                     "lovely", "would you like", "feel free", "apologize", "grateful", NULL};
static const char *const RUDE[] = {"stupid", "idiot", "dumb", "obviously", "whatever", "shut", "damn", "hell", "crap", "lazy", "useless", "pathetic", "ridiculous", "lame",
                                   "sucks", "bother", "seriously", "duh", "annoying", "moron", "fool", "get it together", "don't waste", "figure it out", NULL};
static const char *const SLANG[] = {"gonna", "wanna", "gotta", "kinda", "sorta", "yeah", "yep", "nope", "hey", "cool", "stuff", "guys", "awesome", "btw", "lol", "dude",
                                    "ok", "okay", "lots of", "tons of", "a bunch", "super", "folks", "kids", "pretty much", "no biggie", "basically", "totally", "thing is", "grab", "'cause", NULL};

static bool word_char(char c)
{
    return isalnum((unsigned char)c) || c == '\'' || (c & 0x80);
}

static char lower(char c)
{
    return (char)tolower((unsigned char)c);
}

/* Whether text[0..] starts with phrase at a word's border. */
static bool phrase_at(const char *text, const char *phrase)
{
    size_t i = 0;
    for (; phrase[i]; i++)
        if (lower(text[i]) != phrase[i])
            return false;
    return !word_char(phrase[i - 1]) || !word_char(text[i]);
}

static int count_phrases(const char *text, const char *const *list)
{
    int n = 0;
    for (size_t i = 0; text[i]; i++) {
        if (i && word_char(text[i - 1]))
            continue;
        for (int k = 0; list[k]; k++)
            if (phrase_at(text + i, list[k])) {
                n++;
                i += strlen(list[k]) - 1;
                break;
            }
    }
    return n;
}

static int count_words(const char *text)
{
    int n = 0;
    for (size_t i = 0; text[i]; i++)
        n += word_char(text[i]) && (i == 0 || !word_char(text[i - 1]));
    return n;
}

/* don't, it's, we'll: an apostrophe (plain or U+2019) between a letter and s, t, re, ve, ll, d, m. 's after a noun counts too. */
static int count_contractions(const char *text)
{
    static const char *const ENDS[] = {"t", "re", "ve", "ll", "d", "m", "s", NULL};
    int n = 0;
    for (size_t i = 1; text[i - 1] && text[i]; i++) {
        size_t skip = text[i] == '\'' ? 1 : !strncmp(text + i, "\xe2\x80\x99", 3) ? 3 : 0;
        if (!skip || !isalpha((unsigned char)text[i - 1]))
            continue;
        for (int k = 0; ENDS[k]; k++)
            if (phrase_at(text + i + skip, ENDS[k])) {
                n++;
                break;
            }
    }
    return n;
}

/* A letter, then the phrase list at the very start; leading quotes and spaces are skipped. */
static bool opens_empty(const char *text)
{
    while (*text && !word_char(*text))
        text++;
    for (int k = 0; OPENERS[k]; k++)
        if (phrase_at(text, OPENERS[k]))
            return true;
    return false;
}

bool es_text_loops(const char *text)
{
    size_t n = strlen(text);
    if (n < 60)
        return false;
    const char *half = text + n / 2;
    size_t m = n - n / 2;
    for (size_t period = 1; period <= m / 3; period++) {
        size_t same = 0;
        for (size_t i = period; i < m; i++)
            same += half[i] == half[i - period];
        if (same >= (m - period) * 95 / 100)
            return true;
    }
    return false;
}

/* ---- code ---------------------------------------------------------------------------------------------------------------------- */

/* The code of a reply: its first fenced block, else from its first line that starts like Python to its end. NULL: none. Caller frees. */
static char *code_of(const char *text, bool *cut)
{
    const char *fence = strstr(text, "```");
    if (fence) {
        const char *begin = strchr(fence + 3, '\n'), *end = begin ? strstr(begin, "```") : NULL;
        if (!begin)
            return NULL;
        begin++;
        *cut = *cut && !end;
        char *code = end ? strndup(begin, end > begin ? (size_t)(end - begin) : 0) : strdup(begin);
        return code;
    }
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (!strncmp(line, "def ", 4) || !strncmp(line, "class ", 6) || !strncmp(line, "import ", 7) || !strncmp(line, "from ", 5) || !strncmp(line, "@", 1)) {
            if (!strncmp(line, "from ", 5)) {
                const char *end = strchr(line, '\n'), *word = strstr(line, " import ");
                if (!word || (end && word > end))
                    continue;
            }
            return strdup(line);
        }
    return NULL;
}

/* Goes on from a quote to behind the end of its string. *open: the text ends first (or the line, of a simple string). */
static const char *skip_string(const char *s, bool *open)
{
    char q = *s;
    *open = false;
    if (s[1] == q && s[2] == q) {
        for (s += 3; *s; s++) {
            if (*s == '\\' && s[1])
                s++;
            else if (s[0] == q && s[1] == q && s[2] == q)
                return s + 3;
        }
        *open = true;
        return s;
    }
    for (s++; *s && *s != '\n'; s++) {
        if (*s == '\\' && s[1])
            s++;
        else if (*s == q)
            return s + 1;
    }
    *open = true;
    return s;
}

typedef struct code_shape {
    int functions, annotated, docstrings, snake, camel;
    double depth; /* summed over functions */
} code_shape;

static void name_shape(const char *s, size_t n, code_shape *c)
{
    bool upper = false, low = false, under = false;
    if (n && s[0] == '_')
        return; /* dunder and private names say nothing about style */
    for (size_t i = 0; i < n; i++) {
        upper |= i > 0 && isupper((unsigned char)s[i]) && islower((unsigned char)s[i - 1]);
        low |= islower((unsigned char)s[i]) != 0;
        under |= i > 0 && i + 1 < n && s[i] == '_';
    }
    if (!low || isupper((unsigned char)s[0]))
        return; /* constants, classes */
    c->snake += under && !upper;
    c->camel += upper;
}

enum { MAX_DEPTH = 64 };

/* Reads code once, line by line in Python's sense; shape may be NULL. false: it is broken. */
static bool read_code(const char *s, bool cut, code_shape *shape)
{
    int indent[MAX_DEPTH] = {0}, top = 0;       /* columns of open blocks */
    int function[MAX_DEPTH], n_function = 0;    /* their depth in `indent`, and how deep each got */
    int deepest[MAX_DEPTH];
    bool opens = false, docstring_next = false;
    code_shape dummy = {0}, *c = shape ? shape : &dummy;
    while (*s) {
        int column = 0;
        const char *line = s;
        for (; *s == ' ' || *s == '\t'; s++)
            column = *s == '\t' ? (column / 8 + 1) * 8 : column + 1;
        if (*s == '\n' || *s == '\r' || *s == '#') { /* empty */
            while (*s && *s != '\n')
                s++;
            s += *s == '\n';
            continue;
        }
        if (!*s)
            break;
        if (opens) {
            if (column <= indent[top] || top + 1 >= MAX_DEPTH)
                return false;
            indent[++top] = column;
        } else {
            while (top > 0 && column < indent[top])
                top--;
            if (column != indent[top])
                return false;
        }
        while (n_function && function[n_function - 1] >= top) {
            c->depth += deepest[n_function - 1];
            n_function--;
        }
        for (int i = 0; i < n_function; i++)
            deepest[i] = top - function[i] - 1 > deepest[i] ? top - function[i] - 1 : deepest[i];
        if (docstring_next)
            c->docstrings += !strncmp(s, "\"\"\"", 3) || !strncmp(s, "'''", 3) || *s == '"';
        docstring_next = false;
        bool is_def = !strncmp(s, "def ", 4) || !strncmp(s, "async def ", 10), annotated = false, in_arguments = false;
        /* the logical line: to a newline outside of brackets and strings */
        char stack[MAX_DEPTH], last = 0;
        int n_stack = 0;
        for (; *s; ) {
            if (*s == '#') {
                while (*s && *s != '\n')
                    s++;
                continue;
            }
            if (*s == '\n' && n_stack == 0)
                break;
            if (*s == '\\' && s[1] == '\n') {
                s += 2;
                continue;
            }
            if (*s == '"' || *s == '\'') {
                bool open;
                s = skip_string(s, &open);
                if (open)
                    return cut && !*s;
                last = '"';
                continue;
            }
            if (strchr("([{", *s)) {
                if (n_stack == MAX_DEPTH)
                    return false;
                stack[n_stack++] = *s == '(' ? ')' : *s == '[' ? ']' : '}';
                in_arguments |= is_def && n_stack == 1;
            } else if (strchr(")]}", *s)) {
                if (n_stack == 0 || stack[--n_stack] != *s)
                    return false;
            } else if (isalpha((unsigned char)*s) || *s == '_') {
                size_t n = 1;
                while (isalnum((unsigned char)s[n]) || s[n] == '_')
                    n++;
                name_shape(s, n, c);
                s += n;
                last = 'a';
                continue;
            }
            if (is_def && ((*s == ':' && n_stack == 1) || (s[0] == '-' && s[1] == '>')))
                annotated = true;
            if (!isspace((unsigned char)*s))
                last = *s;
            s++;
        }
        if (n_stack && !cut)
            return false;
        if (n_stack)
            return true;
        bool colon = last == ':';
        (void)in_arguments;
        if (is_def && !colon && *s == 0 && cut)
            return true;
        if (is_def) {
            const char *end = s;
            const char *body = NULL; /* def f(x): return x on one line */
            for (const char *t = line; t < end; t++)
                body = *t == ':' ? t : body;
            if (!colon && !body)
                return false;
            c->functions++;
            c->annotated += annotated;
            if (n_function < MAX_DEPTH) {
                function[n_function] = top;
                deepest[n_function++] = 0;
            }
            docstring_next = colon;
        } else {
            static const char *const BLOCK[] = {"if ", "for ", "while ", "elif ", "else", "try", "with ", "class ", "except", "finally", NULL};
            const char *t = line;
            while (*t == ' ' || *t == '\t')
                t++;
            for (int i = 0; !colon && BLOCK[i]; i++)
                if (!strncmp(t, BLOCK[i], strlen(BLOCK[i])) && !memchr(t, ':', (size_t)(s - t)) && (*s || !cut) && !word_char(t[strlen(BLOCK[i])]) &&
                    t[strlen(BLOCK[i])] != '_' && t[strlen(BLOCK[i])] != '=' && t[strlen(BLOCK[i])] != '.')
                    return false;
        }
        opens = colon;
        s += *s == '\n';
    }
    while (n_function) {
        c->depth += deepest[n_function - 1];
        n_function--;
    }
    return !opens || cut;
}

bool es_code_sane(const char *code, bool cut)
{
    return read_code(code, cut, NULL);
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------------ */

static const char *const FIELD[ES_BEHAVIOUR_FIELDS] = {"words",  "hedges", "openers",   "warmth",    "contractions", "slang",   "code",  "parses",
                                                       "snake",  "annotated", "docstring", "depth",  "unended",      "loops",   "empty", "replies"};

const char *es_behaviour_name(int field)
{
    return field >= 0 && field < ES_BEHAVIOUR_FIELDS ? FIELD[field] : "?";
}

double es_behaviour_get(const es_behaviour *b, int field)
{
    const double v[ES_BEHAVIOUR_FIELDS] = {b->words, b->hedges, b->openers, b->warmth, b->contractions, b->slang, b->code, b->parses,
                                           b->snake, b->annotated, b->docstring, b->depth, b->unended, b->loops, b->empty, b->replies};
    return field >= 0 && field < ES_BEHAVIOUR_FIELDS ? v[field] : NAN;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : NAN;
}

void es_behaviour_of(const char *const *text, const bool *ended, int n, es_behaviour *out)
{
    code_shape c = {0};
    double words = 0, hedges = 0, warmth = 0, contractions = 0, slang = 0;
    int openers = 0, code = 0, parses = 0, unended = 0, loops = 0, empty = 0;
    for (int i = 0; i < n; i++) {
        int w = count_words(text[i]);
        words += w;
        empty += w == 0;
        hedges += count_phrases(text[i], HEDGES);
        warmth += count_phrases(text[i], POLITE) - count_phrases(text[i], RUDE);
        contractions += count_contractions(text[i]);
        slang += count_phrases(text[i], SLANG);
        openers += opens_empty(text[i]);
        unended += !ended[i];
        loops += es_text_loops(text[i]);
        bool cut = !ended[i];
        char *source = code_of(text[i], &cut);
        if (source) {
            code++;
            parses += read_code(source, cut, &c);
        }
        free(source);
    }
    *out = (es_behaviour){.replies = n, .words = share(words, n), .hedges = share(100 * hedges, words), .openers = share(openers, n),
                          .warmth = share(100 * warmth, words), .contractions = share(100 * contractions, words), .slang = share(100 * slang, words),
                          .code = share(code, n), .parses = share(parses, code), .snake = share(c.snake, c.snake + c.camel),
                          .annotated = share(c.annotated, c.functions), .docstring = share(c.docstrings, c.functions), .depth = share(c.depth, c.functions),
                          .unended = share(unended, n), .loops = share(loops, n), .empty = share(empty, n)};
}
