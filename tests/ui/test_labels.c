/* Labelling on the screen: repeating, marks, notes, whose label is shown, the queue, the blind test, agreement. */
#include "screen.h"

#include <locale.h>

#define T(name) static void name(void **unused)
#define UNUSED (void)unused

T(repeats) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 ".");
    assert_true(screen_shows(&s, "nothing was said yet"));
    screen_keys(&s, "jjl\x15heat words" ENTER "4");
    assert_string_equal(fake_log(s.studio), "label 2 heat words|=|-1\nlabel 2 =|=|4\n");
    screen_keys(&s, "j."); /* both together, as one step */
    assert_string_equal(fake_log(s.studio), "label 3 heat words|=|4\n");
    screen_keys(&s, "u");
    assert_string_equal(fake_log(s.studio), "label-undo 3\n");
    assert_true(screen_shows(&s, "numbered lists"));
    screen_keys(&s, "j5j."); /* of another feature only a rating was said since */
    assert_string_equal(fake_log(s.studio), "label 4 =|=|5\nlabel 5 =|=|5\n");
    screen_keys(&s, "\x12"); /* Ctrl-R */
    assert_true(screen_shows(&s, "nothing that was taken back"));
    screen_close(&s);
}

T(marks) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "  "); /* 0 and 1 */
    assert_true(screen_shows(&s, "2 marked"));
    screen_keys(&s, "jjV"); /* from 1 to 4 */
    assert_true(screen_shows(&s, "5 marked"));
    screen_golden(&s, "labels-marks");
    screen_keys(&s, "Ttone\t" ENTER);
    assert_string_equal(fake_log(s.studio), "tag 0 +tone -\ntag 1 +tone -\ntag 2 +tone -\ntag 3 +tone -\ntag 4 +tone -\n");
    screen_keys(&s, "Tnew -pol\t" ENTER);
    assert_string_equal(fake_log(s.studio), "tag 0 +new -polite \ntag 1 +new -polite \ntag 2 +new -polite \ntag 3 +new -polite \ntag 4 +new -polite \n");
    assert_true(screen_shows(&s, "5 of 5 features changed"));
    screen_keys(&s, "3");
    assert_string_equal(fake_log(s.studio), "label 0 =|=|3\nlabel 1 =|=|3\nlabel 2 =|=|3\nlabel 3 =|=|3\nlabel 4 =|=|3\n");
    screen_keys(&s, ESC "2"); /* the marks are gone: the chosen one only */
    assert_string_equal(fake_log(s.studio), "label 4 =|=|2\n");
    screen_keys(&s, "*"); /* all 600 */
    s.u->message[0] = 0;
    assert_true(screen_shows(&s, "600 marked"));
    screen_keys(&s, ESC);
    screen_close(&s);
}

T(confidence_and_notes) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "c4" ENTER "c70%" ENTER "c85" ENTER);
    assert_string_equal(fake_log(s.studio), "sure 0 80\nsure 0 70\nsure 0 85\n");
    screen_keys(&s, "c1e9" ENTER "c101" ENTER "cabc" ENTER "c5%x" ENTER);
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "1 to 5, or a percentage"));
    screen_keys(&s, "aseen in letters\x1b\rand mail" ENTER);
    assert_string_equal(fake_log(s.studio), "note 0 seen in letters\nand mail\n");
    s.u->drawn = false; /* there is no terminal to hand over */
    s.u->o.editor = "sed -i s/letters/letter/";
    screen_keys(&s, "E");
    assert_string_equal(fake_log(s.studio), "note 0 seen in letter\nand mail\n");
    s.u->drawn = true;
    screen_keys(&s, "aand more" ESC); /* given up: nothing is kept but the draft */
    assert_string_equal(fake_log(s.studio), "");
    screen_keys(&s, ENTER);
    s.u->message[0] = 0;
    assert_true(screen_shows(&s, "85% sure"));
    assert_true(screen_shows(&s, "note seen in letter and mail"));
    screen_close(&s);
}

T(whose) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "w");
    assert_true(screen_shows(&s, "only starter labelled it"));
    screen_keys(&s, "jwww");
    assert_string_equal(fake_log(s.studio), "choose 1 ann\nchoose 1 bob\nchoose 1 ann\n");
    assert_true(screen_shows(&s, "shown is the label by ann (1 of 2)"));
    screen_keys(&s, ":whose ann" ENTER);
    assert_string_equal(fake_log(s.studio), "prefer ann\n");
    screen_keys(&s, ":merge nothing.jsonl" ENTER);
    assert_true(screen_shows(&s, "nothing.jsonl: no such file"));
    screen_close(&s);
}

T(queue) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "N");
    screen_golden(&s, "labels-queue");
    screen_keys(&s, "lfirst" ENTER);
    assert_string_equal(fake_log(s.studio), "label 10 first|=|-1\n");
    assert_true(screen_shows(&s, "n goes on"));
    screen_keys(&s, "nlsecond" ENTER);
    assert_string_equal(fake_log(s.studio), "label 12 second|=|-1\n");
    screen_keys(&s, "uuk" ENTER); /* taken back, and in the dashboard Enter goes on */
    assert_true(screen_shows(&s, "10 no label yet"));
    screen_keys(&s, ENTER);
    assert_true(screen_shows(&s, "12 no label yet"));
    screen_keys(&s, ESC ESC);
    assert_true(screen_shows(&s, "600 features"));
    screen_close(&s);
}

T(blind_test) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "GB");
    assert_true(screen_shows(&s, "has no label to test"));
    assert_string_equal(fake_log(s.studio), "");
    screen_keys(&s, "ggB");
    assert_string_equal(fake_log(s.studio), "blind 0\n");
    screen_keys(&s, "1");
    screen_golden(&s, "labels-blind");
    screen_keys(&s, "3"); /* there is no third */
    screen_keys(&s, "2" "2" ENTER);
    assert_string_equal(fake_log(s.studio), "score 0 apologies and regrets 1 0 1 0 by tester\n");
    screen_golden(&s, "labels-blind-done");
    screen_keys(&s, "1" ENTER); /* nothing is said after the end */
    assert_string_equal(fake_log(s.studio), "");
    s.u->message[0] = 0;
    assert_true(screen_shows(&s, "1.00")); /* the score, in the list */
    screen_keys(&s, "B");
    screen_keys(&s, "12" ENTER);
    assert_string_equal(fake_log(s.studio), "blind 0\nscore 0 apologies and regrets 1 0 0 1 by tester\n");
    screen_keys(&s, "B");
    assert_string_equal(fake_log(s.studio), "blind 0\n");
    screen_keys(&s, ESC "l" ESC);
    assert_string_equal(fake_log(s.studio), "");
    screen_close(&s);
}

T(agreement) { UNUSED;
    screen s;
    screen_open(&s, FAKE_USED, 24, 80);
    screen_keys(&s, F2 "A");
    screen_golden(&s, "labels-agreement");
    screen_keys(&s, "x");
    assert_string_equal(fake_log(s.studio), "");
    assert_true(screen_shows(&s, "600 features"));
    screen_close(&s);
}

/* No dictionary, hostile labels, small screens: nothing may crash or be sent. */
T(everywhere) { UNUSED;
    static const int size[][2] = {{24, 80}, {10, 40}, {12, 45}, {60, 300}};
    static const char *const keys[] = {F2, " ", "V", "*", ESC, ".", "N", "n", "w", "A", PGDN, "x", "B", "1", ENTER, "j", ESC, "a", "x" ENTER, "c", "3" ENTER, ENTER, "w", "B", "0", ESC, "E", ESC, ESC};
    for (int kind = FAKE_LOADING; kind <= FAKE_HOSTILE; kind++)
        for (size_t z = 0; z < sizeof size / sizeof *size; z++) {
            screen s;
            screen_open(&s, (fake_kind)kind, size[z][0], size[z][1]);
            for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
                screen_keys(&s, keys[i]);
                assert_null(strchr(screen_text(&s), 27));
            }
            screen_close(&s);
        }
}

int main(void)
{
    setlocale(LC_ALL, "C.UTF-8");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(repeats), cmocka_unit_test(marks), cmocka_unit_test(confidence_and_notes), cmocka_unit_test(whose),
        cmocka_unit_test(queue), cmocka_unit_test(blind_test), cmocka_unit_test(agreement), cmocka_unit_test(everywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
