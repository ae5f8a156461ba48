/* Every view as people see it, on fixed screens. */
#include "screen.h"

#include <locale.h>

#define T(name) static void name(void **unused)
#define UNUSED (void)unused

T(chat_first_run) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    screen_golden(&s, "chat-new");
    screen_close(&s);
    screen_open(&s, FAKE_LOADING, 24, 80);
    screen_golden(&s, "chat-loading");
    screen_close(&s);
    screen_open(&s, FAKE_FAILED, 24, 80);
    screen_golden(&s, "chat-failed");
    screen_close(&s);
    screen_open(&s, FAKE_BARE, 24, 80);
    screen_golden(&s, "chat-bare");
    screen_close(&s);
}

T(chat_used) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_golden(&s, "chat-used");
    screen_keys(&s, ESC "k");
    screen_golden(&s, "chat-selected");
    screen_keys(&s, "f");
    screen_golden(&s, "chat-panel");
    ui_screen_resize(s.u, 50, 200);
    screen_golden(&s, "chat-200x50");
    screen_close(&s);
}

T(chat_streams) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    screen_keys(&s, "Is it **good**?" ENTER);
    assert_string_equal(fake_log(s.studio), "say Is it **good**?\n");
    for (int i = 0; i < 9; i++)
        fake_tick(s.studio);
    screen_keys(&s, "");
    screen_golden(&s, "chat-streaming");
    screen_keys(&s, "next" ENTER); /* still answering: the text stays in the box */
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "still answering"));
    assert_true(screen_shows(&s, "next"));
    screen_keys(&s, "\x03");
    assert_string_equal(fake_log(s.studio), "stop\n");
    assert_true(screen_shows(&s, "stopped"));
    screen_keys(&s, "\x03");
    assert_true(screen_shows(&s, ":quit leaves"));
    assert_false(s.u->leave);
    screen_close(&s);
}

T(chat_teaches) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, "-");
    assert_string_equal(fake_log(s.studio), "rate 4 -1\n");
    assert_true(screen_shows(&s, "rated -"));
    screen_keys(&s, "-");
    assert_string_equal(fake_log(s.studio), "rate 4 0\n");
    screen_keys(&s, "a-b+"); /* in a line with text they are letters */
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "a-b+"));
    screen_keys(&s, "\x15\x05"); /* Ctrl-U, Ctrl-E */
    screen_golden(&s, "chat-edit");
    screen_keys(&s, "\x15Short." ENTER);
    assert_string_equal(fake_log(s.studio), "edit 4 Short.\n");
    assert_true(screen_shows(&s, "your correction"));
    screen_keys(&s, ESC "kkke"); /* the first reply */
    screen_keys(&s, " X" ESC);
    assert_string_equal(fake_log(s.studio), "");
    screen_keys(&s, "e");
    assert_true(screen_shows(&s, "try. X")); /* a cancelled text comes back */
    screen_keys(&s, "\x13"); /* Ctrl-S */
    assert_non_null(strstr(fake_log(s.studio), "edit 2 Water boils"));
    screen_keys(&s, "u");
    assert_string_equal(fake_log(s.studio), "undo\n");
    screen_keys(&s, "o");
    assert_true(screen_shows(&s, "before your correction"));
    screen_close(&s);
}

T(chat_edit_empty) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, "\x05\x15" ENTER);
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "teaches nothing"));
    screen_close(&s);
}

T(chat_edit_outside) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    s.u->drawn = false; /* there is no terminal to hand over */
    s.u->o.editor = "sed -i s/About/Around/";
    screen_keys(&s, ESC "E");
    assert_string_equal(fake_log(s.studio), "edit 4 Around 71 degrees.\n");
    s.u->o.editor = "false";
    screen_keys(&s, "E");
    assert_string_equal(fake_log(s.studio), "");
    s.u->drawn = true;
    assert_true(screen_shows(&s, "the editor 'false' failed; nothing was changed"));
    screen_close(&s);
}

T(chat_compares) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, ESC "cCapital of France?" ENTER);
    assert_string_equal(fake_log(s.studio), "compare Capital of France?\n");
    for (int i = 0; i < 250; i++)
        fake_tick(s.studio);
    screen_keys(&s, "");
    screen_golden(&s, "compare");
    ui_screen_resize(s.u, 20, 50);
    screen_golden(&s, "compare-narrow");
    screen_keys(&s, ESC);
    assert_string_equal(fake_log(s.studio), "close\n");
    screen_close(&s);
}

T(chat_shades) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, ESC "s");
    screen_golden(&s, "chat-choosing");
    screen_keys(&s, "2");
    assert_string_equal(fake_log(s.studio), "shade 0\n");
    assert_true(screen_shows(&s, "coloured by 0 apologies"));
    es_buf styles = {0};
    ui_screen_styles(s.u, &styles);
    assert_non_null(strstr(styles.data, "66"));
    es_buf_free(&styles);
    screen_keys(&s, ":shade off" ENTER);
    assert_string_equal(fake_log(s.studio), "shade -1\n");
    screen_close(&s);
}

T(shade_without_colour) { UNUSED;
    screen s;
    screen_open_as(&s, FAKE_USED, 24, 80, "xterm-256color", true, false); /* NO_COLOR */
    screen_keys(&s, ":shade 8" ENTER);
    screen_text(&s);
    es_buf styles = {0};
    ui_screen_styles(s.u, &styles);
    assert_non_null(strchr(styles.data, 'u'));
    assert_non_null(strstr(styles.data + 81, "rr"));
    assert_null(strpbrk(styles.data, "c123456"));
    es_buf_free(&styles);
    screen_close(&s);
}

T(features) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2);
    screen_golden(&s, "features");
    screen_keys(&s, "G");
    assert_true(screen_shows(&s, "599"));
    screen_keys(&s, "/pol");
    screen_golden(&s, "features-filter");
    screen_keys(&s, ENTER "j" ENTER);
    screen_golden(&s, "features-card");
    screen_keys(&s, ESC ESC);
    assert_true(screen_shows(&s, "600 features"));
    fake_log(s.studio);
    screen_keys(&s, "tI am \"very\" sorry" ENTER);
    assert_string_equal(fake_log(s.studio), "find text:\"I am \\\"very\\\" sorry\" by best\n");
    screen_golden(&s, "features-text");
    screen_keys(&s, "o");
    assert_string_equal(fake_log(s.studio), "find text:\"I am \\\"very\\\" sorry\" by token\n");
    assert_true(screen_shows(&s, "sorted by token"));
    screen_keys(&s, "o");
    assert_string_equal(fake_log(s.studio), "find text:\"I am \\\"very\\\" sorry\" by surprise\n");
    screen_keys(&s, "ooo"); /* by density, best, token; another text begins with the best again */
    fake_log(s.studio);
    screen_keys(&s, "tNo" ENTER);
    assert_string_equal(fake_log(s.studio), "find text:\"No\" by best\n");
    ui_screen_resize(s.u, 50, 200);
    screen_keys(&s, ESC "jj");
    screen_golden(&s, "features-200x50");
    screen_close(&s);
}

T(features_found) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "/density<");
    assert_true(screen_shows(&s, "what follows is not a number")); /* said where the rows would be, not over what is being typed */
    assert_true(screen_shows(&s, "Filter (words"));
    screen_keys(&s, "\x15pol" ESC); /* given up: as before */
    assert_true(screen_shows(&s, "600 features"));
    fake_log(s.studio);
    screen_keys(&s, "jj=");
    assert_string_equal(fake_log(s.studio), "find like:2 by best\n");
    screen_golden(&s, "features-like");
    screen_keys(&s, ESC "oo");
    assert_string_equal(fake_log(s.studio), "find  by density\nfind  by label\n");
    screen_keys(&s, ":contrast \"a b.txt\" c.txt" ENTER);
    assert_string_equal(fake_log(s.studio), "contrast a b.txt c.txt\n");
    screen_golden(&s, "features-contrast");
    screen_keys(&s, ":contrast one" ENTER);
    assert_true(screen_shows(&s, "which two files"));
    screen_keys(&s, ESC);
    assert_true(screen_shows(&s, "600 features"));
    screen_keys(&s, ":find tag:tone" ENTER);
    assert_true(screen_shows(&s, "3 of 600 match: tag:tone"));
    screen_keys(&s, "?");
    assert_true(screen_shows(&s, "promotes:T"));
    screen_close(&s);
}

T(dashboard) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 ENTER);
    screen_text(&s);
    screen_keys(&s, PGDN PGDN);
    screen_golden(&s, "dashboard-intervals");
    screen_keys(&s, PGDN PGDN PGDN PGDN);
    screen_golden(&s, "dashboard-relations");
    screen_keys(&s, PGUP "K");
    assert_true(screen_shows(&s, "% of active tokens"));
    screen_keys(&s, "e");
    screen_golden(&s, "dashboard-full");
    screen_keys(&s, "jjj"); /* without what an atlas of version 1 does not have */
    for (int i = 0; i < 12; i++)
        screen_keys(&s, PGDN);
    assert_true(screen_shows(&s, "this atlas is of version 1"));
    ui_screen_resize(s.u, 50, 200);
    screen_keys(&s, "eee");
    screen_golden(&s, "dashboard-200x50");
    screen_close(&s);
}

T(map) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    fake_map_done(s.studio, .4);
    screen_keys(&s, F2 "m");
    screen_golden(&s, "map-waits");
    fake_map_done(s.studio, 1);
    screen_keys(&s, "");
    screen_golden(&s, "map");
    screen_keys(&s, "++" RIGHT DOWN);
    screen_golden(&s, "map-near");
    screen_keys(&s, ENTER);
    assert_true(screen_shows(&s, "fires on"));
    screen_keys(&s, ESC);
    assert_true(screen_shows(&s, "map of 600"));
    screen_keys(&s, "/tag:tone" ENTER);
    assert_true(screen_shows(&s, "map: 3 of 600 match tag:tone"));
    es_buf styles = {0};
    screen_text(&s);
    screen_keys(&s, "\x1b[H" "HJKL-"); /* everywhere, and back */
    screen_text(&s);
    ui_screen_styles(s.u, &styles);
    es_buf_free(&styles);
    for (int i = 0; i < 200; i++)
        screen_keys(&s, i % 4 ? LEFT UP : "+");
    screen_text(&s);
    screen_keys(&s, "\x1b[H" "l");
    assert_true(screen_shows(&s, "Label of "));
    screen_keys(&s, ESC "m");
    assert_true(screen_shows(&s, "3 of 600 match"));
    screen_keys(&s, ESC ":map" ENTER);
    ui_screen_resize(s.u, 50, 200);
    screen_golden(&s, "map-200x50");
    screen_close(&s);
}

T(labelling) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "g" "g" "/zzz" ENTER);
    assert_true(screen_shows(&s, "nothing matches"));
    fake_log(s.studio);
    screen_keys(&s, ESC "n"); /* the next without a label: 10 */
    screen_keys(&s, "lheat words" ENTER);
    assert_string_equal(fake_log(s.studio), "label 10 heat words|=|-1\n");
    assert_true(screen_shows(&s, "heat words"));
    screen_keys(&s, "Ttopic science" ENTER "4");
    assert_string_equal(fake_log(s.studio), "label 10 =|topic science|-1\nlabel 10 =|=|4\n");
    screen_keys(&s, "x");
    assert_string_equal(fake_log(s.studio), "skip 10 1\n");
    screen_keys(&s, "uuuu");
    assert_string_equal(fake_log(s.studio), "label-undo 10\nlabel-undo 10\nlabel-undo 10\nlabel-undo 10\n");
    assert_null(strstr(screen_text(&s), "heat words"));
    screen_keys(&s, "u");
    assert_true(screen_shows(&s, "no change of a label"));
    screen_keys(&s, "lpol\t" ENTER); /* completed from another label */
    assert_string_equal(fake_log(s.studio), "label 10 polite requests|=|-1\n");
    screen_keys(&s, "b");
    assert_string_equal(fake_log(s.studio), "add 10 1 -1\n");
    screen_keys(&s, "s\x15" "8" ENTER "How hot?" ENTER);
    assert_string_equal(fake_log(s.studio), "steer 10 8 How hot?\n");
    assert_true(screen_shows(&s, "unsteered"));
    screen_close(&s);
}

T(basis) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    screen_keys(&s, F3);
    screen_golden(&s, "basis-empty");
    screen_close(&s);
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F3);
    screen_golden(&s, "basis");
    screen_keys(&s, "j+");
    assert_string_equal(fake_log(s.studio), "add 1 0 4.25\n");
    screen_keys(&s, "b\x15-1 2" ENTER);
    assert_string_equal(fake_log(s.studio), "add 1 -1 2\n");
    screen_keys(&s, "b\x15" "2 1" ENTER);
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "two numbers"));
    screen_keys(&s, "xn");
    assert_string_equal(fake_log(s.studio), "");
    screen_keys(&s, "xy");
    assert_string_equal(fake_log(s.studio), "remove 1\n");
    screen_keys(&s, "s\x15" "20" ENTER);
    assert_string_equal(fake_log(s.studio), "suggest 20\n");
    screen_golden(&s, "basis-suggested");
    screen_keys(&s, "t\x15" "5" ENTER);
    assert_string_equal(fake_log(s.studio), "take 5\n");
    screen_keys(&s, "v");
    screen_golden(&s, "basis-saved");
    screen_keys(&s, "jj" ENTER);
    assert_string_equal(fake_log(s.studio), "basis starter 1\n");
    screen_close(&s);
}

T(drift) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    screen_keys(&s, F4);
    screen_golden(&s, "drift-empty");
    screen_close(&s);
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F4 "j");
    screen_golden(&s, "drift");
    screen_keys(&s, "m");
    screen_golden(&s, "drift-several");
    screen_keys(&s, "R");
    screen_golden(&s, "drift-snapshots");
    screen_keys(&s, "GR");
    assert_true(screen_shows(&s, "Go back to the base model?"));
    screen_keys(&s, "y");
    assert_string_equal(fake_log(s.studio), "rollback 0\n");
    ui_screen_resize(s.u, 50, 200);
    screen_golden(&s, "drift-200x50");
    screen_close(&s);
}

T(experiences) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    screen_keys(&s, F5);
    screen_golden(&s, "experiences-empty");
    screen_close(&s);
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F5);
    screen_golden(&s, "experiences");
    screen_keys(&s, "jjj ");
    assert_string_equal(fake_log(s.studio), "include 2 0\n");
    screen_keys(&s, ENTER);
    screen_golden(&s, "experience");
    screen_close(&s);
}

T(jobs) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F6);
    screen_golden(&s, "jobs");
    screen_keys(&s, "x");
    assert_string_equal(fake_log(s.studio), "job-cancel 1\n");
    screen_keys(&s, "jx");
    assert_string_equal(fake_log(s.studio), "");
    screen_keys(&s, "r");
    assert_string_equal(fake_log(s.studio), ""); /* nothing was stopped */
    screen_close(&s);
}

/* The form: a plan first, of what the fields say then; what makes no sense is gone to; another Enter begins it. */
T(making) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F6 "n");
    screen_keys(&s, ENTER);
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "texts: a .jsonl"));
    screen_keys(&s, "nothing.jsonl" UP "dict" ENTER);
    assert_string_equal(fake_log(s.studio), "plan nothing.jsonl layers 15 sites resid batchtopk features 6144 k 32 tokens 2000000 into dict\n");
    assert_true(screen_shows(&s, "nothing.jsonl: there is no such file"));
    screen_keys(&s, DOWN "\x18texts q.jsonl" DOWN ",16" DOWN ",mlp" DOWN DOWN "  " DOWN "\x18" "1024" DOWN "\x18" "x" ENTER);
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "k: active features"));
    screen_keys(&s, "\x18" "16" DOWN "\x18" "500k" ENTER);
    assert_string_equal(fake_log(s.studio), "plan texts q.jsonl layers 15,16 sites resid,mlp matryoshka features 1024 k 16 tokens 500000 into dict\n");
    screen_golden(&s, "making");
    screen_keys(&s, "0"); /* another number, another plan */
    assert_true(screen_shows(&s, "Enter says what it will take"));
    screen_keys(&s, "\x7f" ENTER);
    assert_string_equal(fake_log(s.studio), "plan texts q.jsonl layers 15,16 sites resid,mlp matryoshka features 1024 k 16 tokens 500000 into dict\n");
    screen_keys(&s, ENTER);
    assert_string_equal(fake_log(s.studio), "make texts q.jsonl layers 15,16 sites resid,mlp matryoshka features 1024 k 16 tokens 500000 into dict\n");
    screen_keys(&s, "j");
    screen_golden(&s, "jobs-training");
    screen_keys(&s, "x");
    assert_string_equal(fake_log(s.studio), "job-cancel 9\n");
    screen_keys(&s, "n" DOWN DOWN DOWN " " ENTER); /* only activations; Esc closes, and what was typed stays */
    assert_string_equal(fake_log(s.studio), "plan texts q.jsonl layers 15,16 sites resid,mlp matryoshka features 6144 k 32 tokens 500000 into dict harvest\n");
    screen_keys(&s, ESC "n");
    assert_true(screen_shows(&s, "store activations") && screen_shows(&s, "texts q.jsonl"));
    screen_close(&s);
    screen_open(&s, FAKE_USED, 50, 200);
    screen_keys(&s, F6 "n");
    screen_golden(&s, "making-wide");
    screen_close(&s);
}

T(help_and_commands) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, "?");
    screen_golden(&s, "help-chat");
    for (int i = 0; i < 20; i++)
        screen_keys(&s, PGDN);
    assert_true(screen_shows(&s, ":undo"));
    screen_keys(&s, ESC ":s\t");
    screen_golden(&s, "completion");
    screen_keys(&s, "\t");
    assert_true(screen_shows(&s, ":steer"));
    screen_keys(&s, ESC ":sh 12" ENTER); /* the beginning of just one */
    assert_string_equal(fake_log(s.studio), "shade 12\n");
    screen_keys(&s, ":s" ENTER);
    assert_true(screen_shows(&s, "could be several"));
    screen_keys(&s, ":nonsense" ENTER);
    assert_true(screen_shows(&s, "there is no command 'nonsense'"));
    screen_keys(&s, ":shade 600" ENTER);
    assert_true(screen_shows(&s, "from 0 to 599"));
    screen_keys(&s, "/undo" ENTER);
    assert_string_equal(fake_log(s.studio), "undo\n");
    screen_keys(&s, ":basis d\t" ENTER);
    assert_string_equal(fake_log(s.studio), "basis directness 0\n");
    screen_close(&s);
}

T(views_by_key) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    const char *to[] = {F2, "gb", "\t", "\x1b" "5", "gj", "\t", F6, "\x1b[Z", "gc"};
    int view[] = {1, 2, 3, 4, 5, 0, 5, 4, 0};
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        screen_keys(&s, to[i]);
        assert_int_equal(s.u->view, view[i]);
    }
    screen_keys(&s, "typed" F3); /* also while typing */
    assert_int_equal(s.u->view, 2);
    screen_keys(&s, F1);
    assert_true(screen_shows(&s, "typed"));
    screen_keys(&s, "\x1b[<0;15;1M"); /* a click on the second tab */
    assert_int_equal(s.u->view, 1);
    screen_keys(&s, "q");
    assert_true(s.u->leave);
    screen_close(&s);
}

T(leaving_while_learning_asks) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, ESC "L");
    assert_string_equal(fake_log(s.studio), "learn\n");
    screen_keys(&s, "q");
    assert_false(s.u->leave);
    assert_true(screen_shows(&s, "is learning"));
    screen_keys(&s, "n");
    assert_false(s.u->leave);
    screen_keys(&s, "qy");
    assert_true(s.u->leave);
    screen_close(&s);
}

/* All views, dialogues and overlays at this size: nothing may crash, nothing may be drawn outside. */
static void tour(screen *s)
{
    static const char *const keys[] = {F1, "?", ESC, ":s\t\t", ESC, ESC "s", ESC "kkk", "f", "f", "e", ESC, "chello" ENTER, ESC, F2, "jjj", ENTER, "JJJ", "e", PGDN, ESC, "m", "+", UP, "H", "--", "\x1b[H", ENTER, ESC, "m", "/a", ENTER, ESC,
                                       "tx" ENTER, ESC, "l", ESC, "s", ESC, F3, "s" ENTER, ESC, "v", ESC, "?", ESC, F4, "m", "s", "R", "n", ESC, F5, "jj", ENTER, PGDN, ESC, F6, "x", F1, "i"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        screen_keys(s, keys[i]);
        screen_text(s);
        assert_null(strchr(s->text.data, 27));
    }
}

T(every_size) { UNUSED;
    static const int size[][2] = {{1, 1}, {1, 500}, {200, 1}, {2, 2}, {9, 39}, {10, 40}, {24, 80}, {12, 300}, {60, 45}, {200, 500}};
    screen s;
    screen_open(&s, FAKE_HOSTILE, 24, 80);
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        ui_screen_resize(s.u, size[i][0], size[i][1]);
        assert_int_equal(s.u->h, size[i][0]);
        assert_int_equal(s.u->w, size[i][1]);
        tour(&s);
    }
    ui_screen_resize(s.u, 5, 30);
    screen_golden(&s, "small");
    ui_screen_resize(s.u, 10, 40);
    screen_golden(&s, "smallest");
    screen_close(&s);
}

T(resize_storm_while_streaming) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    screen_keys(&s, "go" ENTER);
    for (int i = 0; i < 300; i++) {
        ui_screen_resize(s.u, 1 + i * 7 % 60, 1 + i * 13 % 190);
        if (i % 5 == 0)
            fake_tick(s.studio);
        ui_take_view(s.u);
        screen_text(&s);
    }
    ui_screen_resize(s.u, 24, 80);
    assert_true(screen_shows(&s, "In short: yes."));
    screen_close(&s);
}

T(hostile_text) { UNUSED;
    screen s;
    screen_open(&s, FAKE_HOSTILE, 24, 80);
    screen_golden(&s, "hostile-chat");
    screen_keys(&s, F2);
    screen_golden(&s, "hostile-features");
    screen_keys(&s, "j" ENTER);
    screen_golden(&s, "hostile-card");
    screen_close(&s);
}

T(ascii) { UNUSED;
    setlocale(LC_ALL, "C");
    screen s;
    screen_open_as(&s, FAKE_HOSTILE, 24, 80, "vt100", false, true);
    screen_golden(&s, "ascii-chat");
    screen_keys(&s, F4);
    screen_golden(&s, "ascii-drift");
    tour(&s);
    for (const char *p = s.text.data; *p; p++)
        assert_true((unsigned char)*p < 127);
    screen_close(&s);
    setlocale(LC_ALL, "C.UTF-8");
}

T(pasted_megabyte) { UNUSED;
    screen s;
    screen_open(&s, FAKE_NEW, 24, 80);
    size_t n = 1 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        text[i] = i % 97 == 0 ? ' ' : i % 1013 == 0 ? '\r' : "abcdefgh\x1b]é"[i % 13];
    ui_feed(s.u, "\x1b[200~", 6);
    for (size_t i = 0; i < n; i += 1000)
        ui_feed(s.u, text + i, n - i < 1000 ? n - i : 1000);
    ui_feed(s.u, "\x1b[20", 4);
    ui_feed(s.u, "1~", 2);
    double t = es_seconds();
    screen_text(&s);
    screen_keys(&s, "x");
    screen_text(&s);
    assert_true(es_seconds() - t < 2);
    assert_null(strchr(s.text.data, 27));
    screen_keys(&s, ENTER);
    assert_true(strlen(fake_log(s.studio)) > 2000);
    screen_text(&s);
    screen_keys(&s, ESC "k" PGUP "g" "g");
    screen_text(&s);
    free(text);
    screen_close(&s);
}

T(a_million_features) { UNUSED;
    screen s = {.studio = fake_studio(FAKE_USED, 1000000)};
    es_error err;
    assert_int_equal(ui_open(&s.u, s.studio, &(es_ui_options){.unicode = true, .colour = true}, &err), 0);
    assert_int_equal(ui_screen_open(s.u, "xterm-256color", 24, 80, &err), 0);
    screen_keys(&s, F2 "G");
    assert_true(screen_shows(&s, "999999"));
    double t = es_seconds();
    for (int i = 0; i < 200; i++) {
        screen_keys(&s, i % 2 ? PGUP : "k");
        screen_text(&s);
    }
    double each = (es_seconds() - t) / 200;
    print_message("a key in a list of a million rows: %.2f ms\n", each * 1e3);
    assert_true(each < 0.05);
    screen_close(&s);
}

/* Any keys in any order, at any size, while the studio goes on. */
T(random_keys) { UNUSED;
    static const char *const some[] = {F1, F2, F3, F4, F5, F6, ESC, ENTER, "\t", "\x1b[Z", UP, DOWN, LEFT, RIGHT, PGUP, PGDN, "\x1b[H", "\x1b[F", "\x05", "\x18", "\x13", "\x03", "\x0c", "\x7f",
                                       "\x1b\r", ":", "/", "?", "g", "G", "y", "+", "-", "é", "日", "e\xcc\x81", "\x1b[200~a\rb\x1b[201~", "\x1b[<0;9;1M", "\x1b[<65;9;9M", "shade 3", "steer 4 8 x",
                                       "basis d", "is:labelled", "tag:t", "8 9", "0", "\xff", "\x1b[99;9~"};
    es_rng r;
    es_rng_seed(&r, 7);
    for (int kind = FAKE_LOADING; kind <= FAKE_HOSTILE; kind++) {
        screen s;
        screen_open(&s, (fake_kind)kind, 24, 80);
        for (int i = 0; i < 2500; i++) {
            char letter[2] = {(char)('!' + es_rng_below(&r, 94)), 0};
            screen_keys(&s, es_rng_below(&r, 3) ? some[es_rng_below(&r, sizeof some / sizeof *some)] : letter);
            if (es_rng_below(&r, 4) == 0)
                fake_tick(s.studio);
            if (es_rng_below(&r, 40) == 0)
                ui_screen_resize(s.u, 1 + (int)es_rng_below(&r, 60), 1 + (int)es_rng_below(&r, 160));
            if (es_rng_below(&r, 3) == 0)
                assert_null(strchr(screen_text(&s), 27));
        }
        screen_close(&s);
    }
}

int main(void)
{
    setlocale(LC_ALL, "C.UTF-8");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_first_run), cmocka_unit_test(chat_used), cmocka_unit_test(chat_streams), cmocka_unit_test(chat_teaches),
        cmocka_unit_test(chat_edit_empty), cmocka_unit_test(chat_edit_outside), cmocka_unit_test(chat_compares), cmocka_unit_test(chat_shades), cmocka_unit_test(shade_without_colour),
        cmocka_unit_test(features), cmocka_unit_test(features_found), cmocka_unit_test(dashboard), cmocka_unit_test(map),
        cmocka_unit_test(labelling), cmocka_unit_test(basis), cmocka_unit_test(drift), cmocka_unit_test(experiences),
        cmocka_unit_test(jobs), cmocka_unit_test(making), cmocka_unit_test(help_and_commands), cmocka_unit_test(views_by_key), cmocka_unit_test(leaving_while_learning_asks),
        cmocka_unit_test(every_size), cmocka_unit_test(resize_storm_while_streaming), cmocka_unit_test(hostile_text), cmocka_unit_test(ascii),
        cmocka_unit_test(random_keys), cmocka_unit_test(pasted_megabyte), cmocka_unit_test(a_million_features),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
